"""A reader's working directory in miniature, in which the pages' commands run.

It has the repository's programs and configurations, a few small pictures and data sets under the names that the pages
use, and stand-ins for what takes long or is not there: every configuration of the repository gives a small model, every
file of weights is random, and trainings have two steps.
"""

import contextlib
import functools
import importlib
import json
import os
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask2former import cli
from mask2former.engine import load_config
from mask2former.engine.config_files import merge_yaml
from mask2former.inference.video import VideoWriter
from mask2former.weights import ZooEntry, find_entry, write_weights, zoo
from tests.brick_data import make_pictures, write_data
from tests.datasets import trees
from tests.datasets.conftest import _register_all
from tests.datasets.test_train_net import TINY
from tests.docs.pages import REPOSITORY, Command

SMALL = TINY | {"MODEL.TIMM.MODEL_NAME": "test_efficientnet", "TEST.AUG.MIN_SIZES": "(48,)", "MODEL.DEVICE": "cpu"}
QUICK = {
    "SOLVER.MAX_ITER": 2,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.WARMUP_ITERS": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.IMAGE_SIZE": 64,
    "TEST.EVAL_PERIOD": 0,
}
PICTURES = (
    "street.jpg",
    "new.jpg",
    "a.jpg",
    "b.png",
    "cells.png",
    "cells.tif",
    "picture.png",
    "slide.tif",
    "scans/c.tif",
)
MORE_PICTURES = ("more/d.tif", "holiday/e.jpg", "folder/f.png", "folder/g.png")
ADVICE = "Mend the page; or list the command in tests/docs/plan.py, with the reason why it does not run here."
COCO = "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"


def make_world(folder: Path) -> None:
    """Fill the working directory."""
    for name in ("configs", "demo", "examples", "tools", "train_net.py", "constraints.txt", "pyproject.toml"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "datasets").mkdir()
    for script in (REPOSITORY / "datasets").glob("*.py"):
        (folder / "datasets" / script.name).symlink_to(script)
    for number, name in enumerate((*PICTURES, *MORE_PICTURES)):
        (folder / name).parent.mkdir(exist_ok=True)
        small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / name), cv2.resize(small, (80, 60), interpolation=cv2.INTER_CUBIC))
    with VideoWriter(folder / "clip.mp4", 10) as video:
        for value in (50, 200):
            video.write(np.full((48, 64, 3), value, np.uint8))
    _make_data(folder)


def _make_data(folder: Path) -> None:
    pictures = make_pictures(8)
    entry = write_data(folder / "my_data", "coco_instance", pictures)
    Path(entry["ANNOTATIONS"]).rename(folder / "my_data/annotations.json")
    for split in ("train", "val"):
        for name in ("nuclei", "my_data"):
            write_data(folder / "datasets" / name / split, "id_png", pictures[:2])
    for split, count in (("train", 4), ("val", 2)):  # in place of the 1200 that the script draws
        write_data(folder / "datasets/shapes" / split, "id_png", make_pictures(count))
        first = folder / "datasets/shapes" / split / "images/p00.png"
        shutil.copy(first, first.with_name("0000.png"))
        for kind in ("instances", "classes"):
            shutil.copy(first.parents[1] / kind / "p00.png", first.parents[1] / kind / "0000.png")
    kinds = [{"file": "p00.png", "kind": "one"}, {"file": "p01.png", "kind": "other"}]
    (folder / "val.json").write_text(json.dumps(kinds))
    trees.write_coco(folder / "datasets")
    trees.write_ade20k(folder / "datasets")
    for script in ("prepare_coco_semantic_annos_from_panoptic_annos", "prepare_ade20k_sem_seg"):
        words = [f"datasets/{script}.py", "--root", str(folder / "datasets"), "--workers", "1"]
        assert run_script(str(REPOSITORY / words[0]), words) is None


@contextlib.contextmanager
def living_in(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Make it the working directory, with the stand-ins at work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
        patch.setenv("MASK2FORMER_CACHE", str(folder / "cache"))
        patch.setattr(importlib.import_module("mask2former.engine.setup"), "merge_yaml", _merge_small)
        patch.setattr(ZooEntry, "checkpoint_file", _checkpoint_file)
        _register_all(folder / "datasets")
        for entry in zoo().values():
            if "://" not in entry.checkpoint:  # those that come with the repository
                entry.checkpoint_file()
        try:
            yield patch
        finally:
            _register_all(Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser())


def _merge_small(cfg: CfgNode, config_file: str) -> None:
    merge_yaml(cfg, config_file)
    path = Path(config_file).resolve()
    if path.is_relative_to(REPOSITORY / "configs"):
        cfg.merge_from_list([str(part) for pair in SMALL.items() for part in pair])


def _checkpoint_file(self: ZooEntry) -> str:
    file = Path(self.checkpoint if "://" not in self.checkpoint else f"downloaded/{self.file_name}.pth")
    return str(write_random_weights(self.config, file))


def write_random_weights(config: str, file: Path) -> Path:
    """Weights for the small model that a configuration gives, unless the file is there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_weights(_random_weights(config), file)
    return file


@functools.cache
def _random_weights(config: str) -> dict[str, torch.Tensor]:
    return build_model(load_config(str(REPOSITORY / config))).state_dict()


def run(command: Command) -> None:
    """Run a command in this process.

    Raises:
        AssertionError: it did not end with exit code 0.
    """
    program, *words = command.words
    failed = f"{command.place}: {command.text}\n{ADVICE}\n"
    assert program == "mask2former" or (program, words[0][-3:]) == ("python", ".py"), failed + "no script of Python"
    _provide(words)
    words = _make_quick(program, words)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in command.environment.items():
            patch.setenv(name, value)
        try:
            code = cli.main(words) if program == "mask2former" else run_script(words[0], words)
        except Exception as error:
            raise AssertionError(f"{failed}{type(error).__name__}: {error}") from error
    assert code in (0, None), f"{failed}It ended with exit code {code}."


def run_script(path: str, words: list[str]) -> int | str | None:
    """Run a program of Python as Python does, in this process; returns what it exits with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(Path(path).resolve().parent), *sys.path])
        patch.setattr(sys, "argv", words)
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            return end.code
    return None


def _provide(words: list[str]) -> None:
    """Weights that the command names, and that a reader would have."""
    config = next((word for word in words if word.startswith("configs/")), COCO)
    for word in words:
        wanted = re.fullmatch(r"(output/)?model\w*\.(pth|pkl)", word)
        if wanted and not Path(word).exists() and not find_entry(word):
            write_random_weights(config, Path(word))
            if Path(word).parent.name == "output":  # as a training leaves it
                Path("output/config.yaml").write_text(load_config(config).dump())


def _make_quick(program: str, words: list[str]) -> list[str]:
    """Two steps for a training, one small picture to check an export with, and one process."""
    if (program, words[0]) == ("mask2former", "export"):
        words = [words[0], "--check-pictures", "1", "--check-size", "128", *words[1:]]
    if "--num-gpus" in words:
        at = words.index("--num-gpus")
        words = words[:at] + words[at + 2 :]
    if "train_net.py" in words or (program == "mask2former" and words[0] in ("train", "eval")):
        words = [*words, *(str(part) for pair in QUICK.items() for part in pair)]
    return words
