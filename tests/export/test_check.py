"""The check of an exported file finds what is wrong with its results, and by how much."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mask2former.export import ExportGraph, ExportInfo, PostProcessing
from mask2former.export.check import compare_with_model
from mask2former.export.runtime import ExportedModel
from tests.modeling import sure_model
from tests.modeling.conftest import make_tiny_cfg

Outputs = dict[str, Tensor]
# What an exported model gives, each time with something changed in its outputs, and what the check says of it.
Check = Callable[[Callable[[Outputs], None]], float]
PIXELS = 64 * 96


@pytest.fixture
def check(postprocessing: PostProcessing) -> Check:
    """Of a graph that is not exported, so that it is as the model is, but for what a test changes."""
    cfg = make_tiny_cfg()
    cfg.INPUT.FORMAT = "RGB"
    model = sure_model.build(cfg, {}).eval()
    graph = ExportGraph(model, postprocessing)
    info = ExportInfo.from_config(cfg, model, postprocessing=postprocessing, input_type="uint8", precision="float32")
    exported = ExportedModel(Path("model.onnx"), info, graph)
    images = torch.randint(0, 256, (2, 3, 64, 96), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)

    def run(change: Callable[[Outputs], None]) -> float:
        def changed(pictures: Tensor) -> Outputs:
            with torch.no_grad():
                outputs = {name: output.clone() for name, output in exported(pictures).items()}
            change(outputs)
            return outputs

        errors = compare_with_model(exported.around(lambda _: changed), model, [images, images[:1]]).values()
        return float(np.max(list(errors)))  # a NaN, if there is one

    return run


def nothing(_: Outputs) -> None:
    """The same results."""


@pytest.mark.parametrize("postprocessing", ["none", "semantic", "panoptic", "instance"])
def test_the_same_results(check: Check) -> None:
    assert check(nothing) < 1e-5


@pytest.mark.parametrize(
    ("postprocessing", "name"), [("none", "pred_logits"), ("none", "pred_masks"), ("semantic", "sem_seg")]
)
def test_one_number_is_wrong(check: Check, name: str) -> None:
    def change(outputs: Outputs) -> None:
        values = outputs[name]
        values[-1, 1, 0] += 0.25 * values.abs().amax()

    assert check(change) == pytest.approx(0.25, rel=1e-3)
    assert math.isnan(check(lambda outputs: outputs[name].fill_(torch.nan)))
    assert math.isnan(check(lambda outputs: outputs.update({name: outputs[name][:, 1:]})))  # another shape


@pytest.mark.parametrize("postprocessing", ["panoptic"])
def test_pixels_of_another_segment(check: Check) -> None:
    def change(outputs: Outputs) -> None:
        row = outputs["panoptic_seg"][0, 5]
        row[:] = row + 1

    assert check(change) == pytest.approx(96 / PIXELS)


@pytest.mark.parametrize("postprocessing", ["panoptic"])
@pytest.mark.parametrize("image", [0, 1])
def test_a_segment_of_another_class(check: Check, image: int) -> None:
    areas = []

    def change(outputs: Outputs) -> None:
        if len(outputs["panoptic_seg"]) <= image:
            return
        ids = outputs["panoptic_seg"][image]
        segment_id = ids[ids > 0].mode().values
        areas.append(int((ids == segment_id).sum()))
        outputs["segment_classes"][image][outputs["segment_ids"][image] == segment_id] += 1

    assert check(change) == pytest.approx(max(areas) / PIXELS)
    assert max(areas) > 100


@pytest.mark.parametrize("postprocessing", ["instance"])
def test_a_wrong_score_mask_or_class(check: Check) -> None:
    scores: list[float] = []

    def look(outputs: Outputs) -> None:
        scores.append(float(outputs["scores"].max()))

    def other_class(outputs: Outputs) -> None:
        outputs["classes"] += 1

    def no_masks(outputs: Outputs) -> None:
        outputs["masks"][:] = False

    def smaller_masks(outputs: Outputs) -> None:
        outputs["masks"][:, :, :1] = False

    def other_scores(outputs: Outputs) -> None:
        outputs["scores"] *= 0.75

    check(look)
    surest = max(scores)
    assert check(other_scores) == pytest.approx(0.25 * surest, rel=1e-3)
    assert 0.001 < check(smaller_masks) < 0.5
    for change in (no_masks, other_class, lambda outputs: outputs["scores"].zero_()):
        assert check(change) == pytest.approx(surest)
