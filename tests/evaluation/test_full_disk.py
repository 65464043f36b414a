"""What evaluations save, on a disk that is full."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.evaluation import DatasetEvaluator

from mask2former.evaluation import InstanceSegEvaluator, PanopticEvaluator, SemSegEvaluator
from mask2former.evaluation.lvis_evaluation import LVISEvaluator
from tests.small_disk import disk_of


@pytest.mark.parametrize(
    ("evaluator", "file"),
    [
        (InstanceSegEvaluator, "coco_instances_results.json"),
        (LVISEvaluator, "lvis_instances_results.json"),
        (PanopticEvaluator, "panoptic_predictions.json"),
        (SemSegEvaluator, "sem_seg_predictions.json"),
    ],
)
def test_no_half_file_is_left_and_the_error_names_it(
    evaluator: Callable[..., DatasetEvaluator], file: str, make_scene: Callable, run: Callable, tmp_path: Path
) -> None:
    scene = make_scene()
    out = tmp_path / "out"
    evaluation = evaluator(scene.name, output_dir=str(out))
    evaluation.reset()
    evaluation.process(scene.inputs, scene.outputs)
    if isinstance(evaluation, InstanceSegEvaluator):  # of which Detectron2 saves a file of its own before
        out.mkdir()
        evaluate = functools.partial(evaluation._eval_predictions, evaluation._predictions)
    else:
        evaluate = evaluation.evaluate
    message = rf"^{re.escape(str(out / file))}: cannot be written \(File too large\)"
    with disk_of(300), pytest.raises(OSError, match=message):
        evaluate()
    assert not (out / file).exists()


def test_no_half_png_either(make_scene: Callable, tmp_path: Path) -> None:
    scene = make_scene()
    evaluation = PanopticEvaluator(scene.name, str(tmp_path / "out"))
    evaluation.reset()
    with disk_of(20), pytest.raises(OSError, match=r"panoptic_predictions/.*\.png: cannot be written"):
        evaluation.process(scene.inputs, scene.outputs)
    assert not list((tmp_path / "out").rglob("*.png"))
