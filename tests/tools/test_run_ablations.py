"""The runner of the ablation tables: on a tiny data set, a tiny model and two iterations a row."""

import csv
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import ablation_report
import cv2
import numpy as np
import pytest
import run_ablations
import yaml

REPOSITORY = Path(__file__).parents[2]
ROWS = {path.stem for path in (REPOSITORY / "configs" / "ablations").glob("*.yaml")}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configuration of a tiny model, for two pictures of a disc."""
    monkeypatch.setenv("MASK2FORMER_CACHE", str(tmp_path / "cache"))
    for name, column in (("a", 20), ("b", 40)):
        ids = np.zeros((64, 64), np.uint8)
        cv2.circle(ids, (column, 30), 12, 1, -1)
        for kind, array in (("images", np.stack([40 + 150 * ids] * 3, axis=2)), ("instances", ids)):
            (tmp_path / kind).mkdir(exist_ok=True)
            assert cv2.imwrite(str(tmp_path / kind / f"{name}.png"), array)
    settings: dict[str, Any] = {
        "_BASE_": str(REPOSITORY / "configs" / "common" / "mask2former.yaml"),
        "VERSION": 2,
        "DATASETS": {
            "TRAIN": ["ablation_disc"],
            "TEST": ["ablation_disc"],
            "CUSTOM": {
                "ablation_disc": {
                    "FORMAT": "id_png",
                    "IMAGES": str(tmp_path / "images"),
                    "INSTANCES": str(tmp_path / "instances"),
                }
            },
        },
        "INPUT": {"DATASET_MAPPER_NAME": "coco_panoptic_lsj", "IMAGE_SIZE": 64, "MIN_SIZE_TEST": 64},
        "MODEL": {
            "DEVICE": "cpu",
            "WEIGHTS": "",
            "BACKBONE": {"NAME": "build_resnet_backbone"},
            "RESNETS": {
                "DEPTH": 18,
                "RES2_OUT_CHANNELS": 64,
                "STEM_TYPE": "basic",
                "RES5_MULTI_GRID": [1, 1, 1],
                "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            },
            "SEM_SEG_HEAD": {"NUM_CLASSES": 2, "CONVS_DIM": 64, "MASK_DIM": 64, "TRANSFORMER_ENC_LAYERS": 1},
            "MASK_FORMER": {
                "HIDDEN_DIM": 32,
                "NHEADS": 4,
                "DIM_FEEDFORWARD": 64,
                "DEC_LAYERS": 2,
                "NUM_OBJECT_QUERIES": 8,
                "TRAIN_NUM_POINTS": 64,
                "TEST": {"INSTANCE_ON": True, "PANOPTIC_ON": True},
            },
        },
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "STEPS": [1]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "TEST": {"EVAL_PERIOD": 0},
    }
    file = tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def _arguments(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["run_ablations.py", *map(str, words)])


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run rows here, not in a process each; gives the folders of those that ran."""
    ran: list[str] = []

    def start(args: Any, folder: Path) -> bool:
        ran.append("/".join(folder.parts[-2:]))
        run_ablations.run(folder, json.loads((folder / run_ablations.OPTIONS).read_text()), 1)
        return True

    monkeypatch.setattr(run_ablations, "start", start)
    return ran


def test_every_row_has_a_file_and_every_file_a_row() -> None:
    rows = {row["config"] for table in run_ablations.TABLES.values() for row in table["rows"]}
    assert rows == ROWS - {"swin_large_fapn"}  # Table 3's


def test_two_rows_train_and_are_not_trained_again(
    base: Path,
    tmp_path: Path,
    in_this_process: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"name": "ours", "config": "mask2former", "AP": 43.7}, {"name": "SMCA", "config": "smca", "AP": 37.9}]
    monkeypatch.setattr(run_ablations, "count_operations", lambda *_, **__: {"total": {"a": 5e9, "b": 2e9}})
    monkeypatch.setattr(run_ablations, "TABLES", {"t": {"title": "two rows", "rows": rows}})
    output = tmp_path / "out"
    arguments = ("t", "--config", base, "--output", output, "SOLVER.BASE_LR", "0.001")
    _arguments(monkeypatch, *arguments)
    run_ablations.main()
    assert in_this_process == ["mask2former/seed1", "smca/seed1"]
    printed = capsys.readouterr().out
    assert "| row | runs | AP (paper) | PQ (paper) | mIoU (paper) | GFLOPs (paper) | M parameters |" in printed
    result = json.loads((output / "smca" / "seed1" / "result.json").read_text())
    assert {"segm/AP", "panoptic_seg/PQ", "sem_seg/mIoU"} <= set(result["metrics"])
    assert result["gflops"] == 7.0
    assert result["peak_memory_gb"] > 0.1
    assert "CROSS_ATTENTION_NAME: SMCALayer" in (output / "smca" / "seed1" / "settings.yaml").read_text()
    assert "BASE_LR: 0.001" in (output / "smca" / "seed1" / "settings.yaml").read_text()
    for suffix in ("md", "csv", "png"):
        assert (output / f"table_t.{suffix}").stat().st_size > 100

    (output / "smca" / "seed1" / "result.json").unlink()
    run_ablations.main()
    assert in_this_process == ["mask2former/seed1", "smca/seed1", "smca/seed1"]
    log = (output / "smca" / "seed1" / "log.txt").read_text()
    assert re.search(r"Loading from .*model_final.pth", log)  # the evaluation alone was repeated

    _arguments(monkeypatch, *arguments[:-1], "0.002")
    with pytest.raises(SystemExit, match=r"mask2former.seed1 holds a run with other settings .* another --output"):
        run_ablations.main()


def test_a_failed_run_is_named_and_the_others_go_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def fake_run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        kwargs["stdout"].write("no memory\n")
        kwargs["stdout"].flush()
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(run_ablations.subprocess, "run", fake_run)
    _arguments(monkeypatch, "5", "--config", base, "--output", tmp_path / "out", "--num-gpus", 2)
    with pytest.raises(SystemExit, match=r"4 runs failed; see ablation\.log in .*match_points_train_masks"):
        run_ablations.main()
    assert len(commands) == 4
    assert commands[0][-2:] == ["--num-gpus", "2"]
    captured = capsys.readouterr()
    assert "no memory" in captured.err
    assert "| match points, train points | 0 | - (43.7) | - (51.9) | - (47.2) | - (6) |" in captured.out


def test_slurm_jobs_are_submitted_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[list[str]] = []

    def fake_run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        if command[0] == "squeue":
            waiting = any(f"--job-name={command[-1].removeprefix('--name=')}" in job for job in submitted)
            return subprocess.CompletedProcess(command, 0, stdout="1 job" if waiting else "")
        submitted.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run_ablations.subprocess, "run", fake_run)
    options = ("--slurm", "--sbatch", "--gres=gpu:8 --time=3-0")
    _arguments(monkeypatch, "4a", "--seeds", 2, "--config", base, "--output", tmp_path / "out", *options)
    run_ablations.main()
    run_ablations.main()
    assert len(submitted) == 6
    assert submitted[0][:2] == ["sbatch", "--job-name=ablation-cross_attention-seed1"]
    assert "--gres=gpu:8" in submitted[0]
    assert {"--requeue", "--signal=B:USR1@120"} <= set(submitted[0])
    assert re.match(r"--wrap=exec \S+/tools/slurm/requeue.sh .* --run ", submitted[0][-1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["6"], "there is no table 6; expected some of 4a, 4b"),
        (["4a", "SOLVER.MAX_ITER"], "SOLVER.MAX_ITER are not pairs of KEY VALUE"),
        ([], "name at least one table and one seed"),
        (["4a", "--seeds", "0"], "name at least one table and one seed"),
    ],
)
def test_wrong_arguments(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _arguments(monkeypatch, *words)
    with pytest.raises(SystemExit):
        run_ablations.main()
    assert message in capsys.readouterr().err


def _result(ap: float) -> dict[str, Any]:
    return {"metrics": {"val/segm/AP": ap}, "peak_memory_gb": 2.0, "parameters": 44e6, "gflops": 226.4}


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    rows = [{"name": "one", "config": "x", "AP": 43.7}, {"name": "two", "config": "y"}, {"name": "none", "config": "z"}]
    results = {"x": [_result(40.0), _result(43.0)], "y": [_result(10.0)]}
    text = ablation_report.write_report("t", {"title": "T", "rows": rows}, results, tmp_path)
    assert text.splitlines() == [
        "### Table t: T",
        "",
        "| row | runs | AP (paper) | GFLOPs (paper) | M parameters | peak GB (paper) |",
        "|---|---:|---:|---:|---:|---:|",
        "| one | 2 | 41.5 ± 2.1 (43.7) | 226 ± 0 | 44.0 ± 0.0 | 2.0 ± 0.0 |",
        "| two | 1 | 10.0 | 226 | 44.0 | 2.0 |",
        "| none | 0 | - | - | - | - |",
    ]
    lines = list(csv.DictReader((tmp_path / "table_t.csv").open()))
    assert float(lines[0]["AP mean"]) == 41.5
    assert float(lines[0]["AP deviation"]) == pytest.approx(1.5 * 2**0.5)
    assert lines[0]["AP paper"] == "43.7"
    assert lines[1]["AP deviation"] == lines[2]["AP mean"] == lines[1]["AP paper"] == ""
