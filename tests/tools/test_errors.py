"""What the user of a tool has to mend is one line on stderr, and exit code 1."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from mask2former.inference.runs import run_tool

TOOLS = Path(__file__).resolve().parents[2] / "tools"
CONFIG = "--config-file no.yaml"
ANNOTATIONS = {"images": [{"id": 7}], "annotations": [], "categories": []}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of JSON files that are right, damaged, and of something else."""
    contents = {
        "damaged": "[1, ",
        "list": "[]",
        "dict": "{}",
        "coco": json.dumps(ANNOTATIONS),
        "other": '[{"image_id": 8}]',
    }
    for name, text in contents.items():
        (tmp_path / f"{name}.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"analyze_model {CONFIG}", "No such file or directory: 'no.yaml'"),
        ("run_ablations 4a --config no.yaml --output abl", "No such file or directory: "),
        (f"visualize_predictions {CONFIG} --predictions . --output out", "No such file or directory: 'no.yaml'"),
        (f"visualize_queries {CONFIG}", "No such file or directory: 'no.yaml'"),
        (f"evaluate_by_group {CONFIG} --predictions . --groups list.json", "No such file or directory: 'no.yaml'"),
        (f"evaluate_exported {CONFIG} a.onnx", "No such file or directory: 'no.yaml'"),
        (f"evaluate_pq_for_semantic_segmentation {CONFIG} --json-file list.json", "No such file or directory: "),
        (
            "evaluate_pq_for_semantic_segmentation --dataset-name toi --json-file list.json",
            "there is no data set 'toi'",
        ),
        (f"export_model {CONFIG} --output a.onnx", "No such file or directory: 'no.yaml'"),
        ("training_report .", ". has no config.yaml: is it the output folder of a training?"),
        ("evaluate_coco_boundary_ap --gt-json-file no.json --dt-json-file list.json", "No such file or directory: "),
        (
            "evaluate_coco_boundary_ap --gt-json-file list.json --dt-json-file list.json",
            "list.json is no JSON of COCO's",
        ),
        (
            "evaluate_coco_boundary_ap --gt-json-file damaged.json --dt-json-file list.json",
            "damaged.json is no JSON of",
        ),
        (
            "evaluate_coco_boundary_ap --gt-json-file coco.json --dt-json-file damaged.json",
            "damaged.json is not JSON (Exp",
        ),
        (
            "evaluate_coco_boundary_ap --gt-json-file coco.json --dt-json-file dict.json",
            "dict.json holds a dict, expect",
        ),
        (
            "evaluate_coco_boundary_ap --gt-json-file coco.json --dt-json-file other.json",
            "other.json has results of 1 i",
        ),
    ],
)
def test_mistakes(
    words: str, message: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = words.split()
    monkeypatch.setattr(sys, "argv", [name, *rest])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_what_is_no_mistake_of_the_user_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_tool(lambda: 1 / 0)


def test_interrupts_are_told_by_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_tool(interrupt)
    assert end.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"
