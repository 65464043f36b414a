"""From annotated pictures of every format to a trained model and its report, by the commands that users type."""

import argparse
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train_net
from mask2former import cli
from mask2former.engine import load_config
from mask2former.inference import Segmenter
from mask2former.inference.loading import model_config
from mask2former.own_data.base import find_base
from mask2former.weights import ZooEntry
from tests.brick_data import FORMATS, NAMES, make_pictures, write_data
from tests.engine.test_folder_lock import training_elsewhere
from tests.engine.test_train_net import parse
from tests.engine.test_wandb_logger import FakeWandb
from tests.small_disk import disk_of

Run = Callable[..., int]


def data_words(folder: Path, entry: dict[str, Any]) -> list[str]:
    """What a user types to name data of a format."""
    form = entry["FORMAT"]
    if form == "yolo_seg":
        return ["--data", str(folder / "data.yaml")]
    if form == "id_png":
        (folder / "classes.txt").write_text("\n".join(entry["CLASS_NAMES"]))
    if form in ("id_png", "color_png"):
        classes = ["--classes", str(folder / "colors.csv")] if form == "color_png" else []
        things = ["--things", "brick, tile,"] if form == "id_png" else []
        return ["--data", str(folder), *classes, *things]
    return ["--data", str(entry["ANNOTATIONS"]), "--images", str(entry["IMAGES"])]


@pytest.fixture
def train(tiny_base: Path, tmp_path: Path) -> Run:
    """Train for a few steps; the report is in ``out``."""

    def _train(*words: object, steps: int = 4, opts: Sequence[str] = ()) -> int:
        options = ["--config-file", str(tiny_base), "--output", str(tmp_path / "out")]
        keys = ["INPUT.IMAGE_SIZE", "64", "SOLVER.MAX_ITER", str(steps), "SOLVER.IMS_PER_BATCH", "2"]
        keys += ["DATALOADER.NUM_WORKERS", "0", "SEED", "1", "MODEL.DEVICE", "cpu"]
        return cli.main(["train", *map(str, words), *options, *keys, *opts])

    return _train


@pytest.mark.parametrize("form", list(FORMATS))
def test_every_format(form: str, train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = write_data(tmp_path / "own", form, make_pictures(6))
    assert train(*data_words(tmp_path / "own", entry)) == 0
    out = tmp_path / "out"
    task = {"coco_panoptic": "panoptic", "id_png": "panoptic", "color_png": "semantic"}.get(form, "instance")
    metric = {"panoptic": "panoptic_seg/PQ", "semantic": "sem_seg/mIoU", "instance": "segm/AP"}[task]
    config = yaml.safe_load((out / "own_data.yaml").read_text())
    assert config["INPUT"]["DATASET_MAPPER_NAME"] == f"coco_{task}_lsj"
    assert config["DATASETS"]["CUSTOM"]["own_train"]["FORMAT"] == form if form != "yolo_seg" else True
    assert metric in (out / "metrics.json").read_text()
    assert torch.load(out / "model_best.pth", weights_only=True)["iteration"] >= 3
    page = (out / "report.html").read_text()
    assert f"{task} segmentation" in page
    assert f"<dt>{metric.partition('/')[2]} of model_best.pth</dt>" in page
    assert "<dt>trained for</dt><dd>4 of 4 steps</dd>" in page
    images, held_out = (len((out / f"{part}.txt").read_text().split()) for part in ("train", "val"))
    assert f"<dt>images</dt><dd>{images} to train, {held_out} to validate</dd>" in page
    assert all(f"<h2>{title}</h2>" in page for title in ("Training data", "Validation data", "Settings"))
    assert "DATASETS.CUSTOM" not in page  # a tree, which is in the file
    assert all(name in page for name in NAMES)
    assert page.count("data:image/jpeg;base64,") >= 2
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)  # nothing from elsewhere
    printed = capsys.readouterr().out
    assert "Training data" in printed
    assert "Settings, in" in printed
    assert "Left out" not in printed


def test_the_written_configuration_trains_the_same_again(train: Run, tmp_path: Path) -> None:
    write_data(tmp_path / "own", "coco_instance", make_pictures(6))
    assert train("--data", tmp_path / "own/coco.json") == 0
    again = ["OUTPUT_DIR", str(tmp_path / "again")]
    train_net.main(parse(["--config-file", str(tmp_path / "out/own_data.yaml"), *again]))

    def weights(folder: str) -> dict[str, torch.Tensor]:
        return torch.load(tmp_path / folder / "model_final.pth", weights_only=True)["model"]

    first, second = weights("out"), weights("again")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluation_of_the_weights_that_the_training_began_with(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path / "own", "coco_instance", make_pictures(6))
    assert train("--data", tmp_path / "own/coco.json") == 0
    told: list[str] = []
    logger = logging.getLogger("mask2former.engine.setup")
    monkeypatch.setattr(logger, "warning", lambda text, *values: told.append(text % values))
    words = ["eval", "--config-file", str(tmp_path / "out/own_data.yaml")]
    trained = f"MODEL.WEIGHTS {tmp_path / 'out/model_best.pth'}"
    for more in (["--resume"], trained.split(), []):
        assert not told
        assert cli.main([*words, *more]) == 0
    (line,) = told
    assert f"not what that has learnt; for that, say {trained}." in line


def test_resume_and_early_stop(train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "own", "yolo_seg", make_pictures(6))
    words = ["--data", tmp_path / "own/data.yaml", "--patience", "3"]
    assert train(*words) == 0
    config = load_config(str(tmp_path / "out/own_data.yaml"))
    assert config.TEST.EARLY_STOPPING.PATIENCE == 3
    assert str(tmp_path / "own/labels") == config.DATASETS.CUSTOM.own_val.LABELS
    assert train(*words) == 1
    assert "has a training already; resume it by --resume" in capsys.readouterr().err
    assert train(*words, "--resume", steps=6) == 0
    assert torch.load(tmp_path / "out/model_final.pth", weights_only=True)["iteration"] == 5
    assert "data and settings stay as they were" in capsys.readouterr().out
    shutil.move(tmp_path / "own", tmp_path / "moved")
    assert train(*words, "--resume", steps=8) == 1
    assert f"error: {tmp_path / 'own/images'}: no such folder." in capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_resume_on_several_machines(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_data.yaml").touch()
    jobs: list[argparse.Namespace] = []
    monkeypatch.setattr("mask2former.own_data.command.run", jobs.append)
    monkeypatch.setattr("mask2former.own_data.command.write_report", lambda output: output / "report.html")
    monkeypatch.setattr("mask2former.own_data.command.read_inspection", lambda output: None)  # started by hand, say
    words = ["--data", "own", "--output", str(tmp_path), "--resume", "--num-gpus", "3", "--num-machines", "2"]
    words += ["--machine-rank", str(rank), "--dist-url", "tcp://first:29500"]
    assert cli.main(["train", *words, "SOLVER.MAX_ITER", "9"]) == 0
    (job,) = jobs
    assert (job.config_file, job.resume, job.eval_only) == (str(tmp_path / "own_data.yaml"), True, False)
    assert (job.num_gpus, job.num_machines, job.machine_rank) == (3, 2, rank)
    assert (job.dist_url, job.opts) == ("tcp://first:29500", ["SOLVER.MAX_ITER", "9"])
    assert ("The report: " in capsys.readouterr().out) == (rank == 0)


def test_wandb(train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "own", "coco_instance", make_pictures(6))
    words = ["--data", tmp_path / "own/coco.json", "--wandb", "bricks"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(*words) == 1
    assert "--wandb needs the package wandb: pip install 'mask2former[wandb]'" in capsys.readouterr().err
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert train(*words) == 0
    assert fake.runs[0].options["project"] == "bricks"
    assert load_config(str(tmp_path / "out/own_data.yaml")).LOGGING.WANDB.PROJECT == "bricks"


def test_faults_before_a_step_is_spent(train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "own", "yolo_seg", make_pictures(6))
    (tmp_path / "own/labels/p00.txt").write_text("9 0 0 1 0 1 1\n0 0 0 1 0")
    (tmp_path / "own/images/p01.png").write_bytes(b"")
    words = ["--data", tmp_path / "own/data.yaml"]
    assert train(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: 3 faults in the data:\n")
    assert "p00.txt: line 1: has the class 9, expected 0 to 1 (brick, tile)." in error
    assert "p00.txt: line 2: has 4 coordinates" not in error  # it is a box
    assert "p00.txt: line 2: has a box, expected a polygon" in error
    assert "p01.png: cannot be read as an image" in error
    assert not (tmp_path / "out").exists()
    assert cli.main(["inspect", *map(str, words)]) == 1
    assert "Left out: 3 faults" in capsys.readouterr().out
    assert train(*words, "--skip-bad") == 0
    end = capsys.readouterr().out.partition("Left out of the data, by --skip-bad:\n")[2].splitlines()
    assert len(end) == 3
    assert any("p01.png: cannot be read as an image" in line for line in end)
    config = yaml.safe_load((tmp_path / "out/own_data.yaml").read_text())
    assert config["DATASETS"]["CUSTOM"]["own_train"]["SKIP_BAD"] is True
    listed = (tmp_path / "out/train.txt").read_text() + (tmp_path / "out/val.txt").read_text()
    assert sorted(set(listed.split())) == ["p00.png", "p02.png", "p03.png", "p04.png", "p05.png"]
    assert "p01.png: cannot be read" in (tmp_path / "out/report.html").read_text()


def test_faults_are_told_where_one_picture_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "own", "yolo_seg", make_pictures(3))
    for name in ("p01.png", "p02.png"):
        (tmp_path / "own/images" / name).write_bytes(b"")
    assert cli.main(["inspect", "--data", str(tmp_path / "own/data.yaml"), "--val-data", str(tmp_path / "own")]) == 1
    assert "Left out: 2 faults" in capsys.readouterr().out
    (tmp_path / "own/data.yaml").write_text("train: images\nnames: [brick, tile]\n")
    assert cli.main(["inspect", "--data", str(tmp_path / "own/data.yaml")]) == 1
    error = capsys.readouterr().err
    assert "p01.png: cannot be read as an image" in error
    assert "images: one image is left, which cannot be divided into training and validation." in error


def test_validation_data_and_weights(train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "own", "coco_instance", make_pictures(5))
    write_data(tmp_path / "more", "coco_instance", make_pictures(3))
    words = ["--data", tmp_path / "own/coco.json", "--val-data", tmp_path / "more/coco.json"]
    assert train(*words) == 0
    out = tmp_path / "out"
    assert len((out / "val.txt").read_text().split()) == 3
    out.rename(tmp_path / "first")
    # Its own classes now: the old head does not fit, and the log says so.
    content = json.loads((tmp_path / "own/coco.json").read_text())
    content["categories"].append({"id": 77, "name": "roof"})
    (tmp_path / "own/coco.json").write_text(json.dumps(content))
    out = tmp_path / "second"
    words = ["--data", str(tmp_path / "own/coco.json"), "--weights", str(tmp_path / "first"), "--output", str(out)]
    assert cli.main(["train", *words, "SOLVER.MAX_ITER", "1"]) == 0
    log = (out / "log.txt").read_text()
    assert "Of another shape, so initialised anew" in log
    assert "sem_seg_head.predictor.class_embed.weight: (3, 32) in the checkpoint, (4, 32) in the model" in log
    config = load_config(str(out / "own_data.yaml"))
    assert str(tmp_path / "first/model_best.pth") == config.MODEL.WEIGHTS
    assert set(config.DATASETS.CUSTOM) == {"own_train", "own_val"}
    model = Segmenter(model_config(str(out)))
    assert model.predict(str(tmp_path / "own/images/p00.png")).instances is not None


def test_without_validation(train: Run, tmp_path: Path) -> None:
    write_data(tmp_path / "own", "labelme", make_pictures(4))
    words = ["--data", tmp_path / "own/labelme", "--images", tmp_path / "own/images", "--val-fraction", "0"]
    assert train(*words, steps=2) == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "Course" in page
    assert "Confusion" not in page


def test_a_model_that_finds_nothing_has_a_report(train: Run, tmp_path: Path) -> None:
    write_data(tmp_path / "own", "coco_instance", make_pictures(4))
    assert train("--data", tmp_path / "own/coco.json", steps=1, opts=["TEST.DETECTIONS_PER_IMAGE", "0"]) == 0
    assert "<dt>AP of model_final.pth</dt><dd>\N{EN DASH}</dd>" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize("command", ["train", "inspect"])
def test_data_without_anything_to_learn(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "own", "coco_instance", make_pictures(4))
    content = json.loads((tmp_path / "own/coco.json").read_text())
    (tmp_path / "own/coco.json").write_text(json.dumps({**content, "annotations": []}))
    assert cli.main([command, "--data", "own/coco.json"]) == 1
    assert capsys.readouterr().err.endswith("images: no image shows anything to learn; annotate some of them.\n")


WRONG: list[tuple[list[str], str]] = [
    (["--data", "nowhere.json"], "nowhere.json: no such file or folder."),
    (["--data", "own/coco.json", "--val-fraction", "2"], "--val-fraction is 2, expected 0 to less than 1."),
    (["--data", "own/coco.json", "--weights", "coco/panoptik/R50"], "there is no model 'coco/panoptik/R50'"),
    (
        ["--data", "own/coco.json", "--weights", "a.pth", "--config-file", "tiny.yaml"],
        "MODEL.WEIGHTS: there is no file a.pth",
    ),
    (["--data", "own/coco.json", "--config-file", "no.yaml"], "there is no configuration no.yaml"),
    (["--data", "own/coco.json", "--patience", "-1"], "--patience is -1, expected 0 or more evaluations."),
    (["--data", "own/coco.json", "SOLVER.MAXITER", "3"], "Non-existent key: SOLVER.MAXITER"),
    (["--data", "own/coco.json", "--num-gpus", "0"], "--num-gpus is 0; expected at least 1"),
    (["--data", "own/coco.json", "SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER is 0, expected at least 1."),
    (["--data", "own/coco.json", "SOLVER.IMS_PER_BATCH", "-2"], "SOLVER.IMS_PER_BATCH is -2, expected at least 1."),
    (["--data", "own/coco.json", "INPUT.IMAGE_SIZE", "0"], "INPUT.IMAGE_SIZE is 0, expected at least 1."),
    (["--data", "own/coco.json", "SOLVER.GRADIENT_ACCUMULATION_STEPS", "0"], "STEPS is 0, expected at least 1."),
    (["--data", "own/coco.json", "OUTPUT_DIR", "x"], "OUTPUT_DIR is --output here."),
    (["--data", "own/coco.json", "--val-data", "other/coco.json"], "training has the classes brick, tile, and"),
    (["--data", "own/coco.json", "--eval-only"], "--eval-only does not go with --data"),
    (["--data", "own/coco.json", "--num-machines", "2"], "settings are chosen by one process"),
    (["--images", "own/images"], "--images says something about --data, which is not given."),
    (["--patience", "3"], "--patience says something about --data, which is not given."),
    (["--format", "id_png"], "--format says something about --data"),
    (["--segments", "own"], "--segments says something about --data"),
    (["--classes", "a.txt"], "--classes says something about --data"),
    (["--things", "brick"], "--things says something about --data"),
    (["--val-data", "own"], "--val-data says something about --data"),
    (["--val-images", "own"], "--val-images says something about --data"),
    (["--val-segments", "own"], "--val-segments says something about --data"),
    (["--skip-bad"], "--skip-bad says something about --data"),
    (["--weights", "a.pth"], "--weights says something about --data"),
    (["--output", "out"], "--output says something about --data"),
    (["--wandb", "bricks"], "--wandb says something about --data"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_commands(
    words: list[str],
    message: str,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "own", "coco_instance", make_pictures(2))
    shutil.copytree(tmp_path / "own", tmp_path / "other")
    text = (tmp_path / "other/coco.json").read_text()
    (tmp_path / "other/coco.json").write_text(text.replace('"tile"', '"roof"'))
    assert cli.main(["train", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "output").exists()


def test_settings_are_chosen_without_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", "--data", "own", "--output", str(tmp_path / "out")]) == 1
    assert "settings are chosen by one process: do that without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "fault"), [(bytes([0xFC]), "is not UTF-8"), (b"a\nb", "has a line break")])
def test_names_that_no_list_can_have(
    train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: bytes, fault: str
) -> None:
    entry = write_data(tmp_path / "own", "yolo_seg", make_pictures(3))
    for folder, suffix in ((entry["IMAGES"], ".png"), (entry["LABELS"], ".txt")):
        (Path(folder) / f"p00{suffix}").rename(Path(folder) / f"{os.fsdecode(name)}{suffix}")
    assert train(*data_words(tmp_path / "own", entry)) == 1
    assert re.search(rf"own/images: the name '.*\.png' {fault}\. Rename it", capsys.readouterr().err)


@pytest.mark.parametrize(("form", "file"), [("coco_instance", "coco.json"), ("coco_panoptic", "panoptic.json")])
def test_validation_that_shows_nothing(
    form: str, file: str, train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = make_pictures(8)
    write_data(tmp_path / "own", form, pictures)
    write_data(tmp_path / "val", form, [picture for picture in pictures if not picture.boxes])
    assert train("--data", tmp_path / "own" / file, "--val-data", tmp_path / "val" / file) == 1
    assert "val/images: no image for validation shows anything" in capsys.readouterr().err


def test_an_output_that_cannot_be_written(train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = data_words(tmp_path / "own", write_data(tmp_path / "own", "coco_instance", make_pictures(6)))
    assert cli.main(["inspect", *words]) == 0
    out = tmp_path / "out"
    with disk_of(2000):
        assert train(*words) == 1
    assert f"error: {out / 'base.yaml'}: cannot be written (File too large)" in capsys.readouterr().err
    assert not (out / "base.yaml").exists()
    (out / "inspection.json").mkdir()
    assert train(*words) == 1
    assert f"error: {out / 'inspection.json'}: cannot be written (Is a directory)" in capsys.readouterr().err
    assert not (out / "own_data.yaml").exists()  # with which --resume would go on


def test_masks_of_0_and_255(train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path / "own", "id_png", make_pictures(4))
    shutil.rmtree(tmp_path / "own/instances")
    for file in (tmp_path / "own/classes").iterdir():
        Image.fromarray(np.where(np.array(Image.open(file)), 255, 0).astype(np.uint8)).save(file)
    words = ("--data", tmp_path / "own", "--classes", tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("background\nbrick\n")
    assert train(*words) == 1
    assert "own/classes: all that is labelled is of the class background" in capsys.readouterr().err
    (tmp_path / "classes.txt").write_text("0 0 0 background\n255 255 255 brick\n")
    assert train(*words) == 0


def test_weights_beside_are_found_from_elsewhere(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier/model_best.pth").touch()
    monkeypatch.chdir(tmp_path)
    for weights in ("earlier/model_best.pth", "earlier"):
        base = find_base(weights, str(tiny_base))
        assert str(tmp_path / "earlier/model_best.pth") == base.cfg.MODEL.WEIGHTS
        assert base.fine_tuned


def test_a_name_of_the_zoo_with_a_configuration(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZooEntry, "checkpoint_file", lambda entry: f"cache/{entry.name}.pkl")
    assert find_base("COCO/panoptic/R50", str(tiny_base)).cfg.MODEL.WEIGHTS == "cache/coco/panoptic/R50.pkl"


def test_data_sets_of_the_base_are_not_trained_on(tiny_base: Path) -> None:
    entry = {"FORMAT": "coco_instance", "IMAGES": "images", "ANNOTATIONS": "a.json"}
    content = yaml.safe_load(tiny_base.read_text())
    tiny_base.write_text(yaml.safe_dump({**content, "DATASETS": {"CUSTOM": {"other_train": entry}}}))
    base = find_base(None, str(tiny_base))
    assert not base.cfg.DATASETS.CUSTOM
    assert not base.fine_tuned


def test_another_training_into_the_folder(train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = data_words(tmp_path / "own", write_data(tmp_path / "own", "coco_instance", make_pictures(6)))
    with training_elsewhere(tmp_path / "out"):
        assert train(*words) == 1
        assert "out: another program trains there" in capsys.readouterr().err
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["training.lock"]
    assert train(*words) == 0
