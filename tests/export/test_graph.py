"""What a subclass of the model does otherwise does not vanish from its export without a word."""

from typing import Any

import pytest
from detectron2.modeling import build_model

from mask2former.export import ExportGraph
from mask2former.modeling import MaskFormer
from mask2former.modeling.optimize import optimize_for_inference
from tests.modeling.conftest import make_tiny_cfg

EVERYTHING = ("none", "semantic", "panoptic", "instance")


@pytest.fixture(scope="module")
def model() -> MaskFormer:
    built: MaskFormer = build_model(make_tiny_cfg()).eval()
    return built


def _with_own(model: MaskFormer, name: str) -> MaskFormer:
    """The model of a subclass that defines a method."""

    def method(self: MaskFormer, *arguments: Any) -> Any:
        return getattr(MaskFormer, name)(self, *arguments)

    own: MaskFormer = model.with_outputs(["panoptic", "instance", "semantic"])
    own.__class__ = type("Mine", (MaskFormer,), {name: method})
    return own


@pytest.mark.parametrize("name", ["run_network", "predict_queries"])
@pytest.mark.parametrize("postprocessing", EVERYTHING)
def test_another_network_is_refused(model: MaskFormer, name: str, postprocessing: Any) -> None:
    with pytest.raises(ValueError, match=rf"Mine has its own {name}, .* into the backbone or the head"):
        ExportGraph(_with_own(model, name), postprocessing)


def test_an_optimised_model_is_refused(model: MaskFormer) -> None:
    with pytest.raises(ValueError, match=r"before that, as load\(\.\.\., optimize=False\) gives it"):
        ExportGraph(optimize_for_inference(model))


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("forward", ("semantic", "panoptic", "instance")),
        ("postprocess", ("semantic", "panoptic", "instance")),
        ("semantic_inference", ("semantic",)),
        ("panoptic_inference", ("panoptic",)),
        ("instance_inference", ("instance",)),
    ],
)
def test_other_results_are_refused_inside_and_told_outside(
    model: MaskFormer, name: str, refused: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    own = _with_own(model, name)
    for postprocessing in EVERYTHING:
        caplog.clear()
        if postprocessing in refused:
            with pytest.raises(ValueError, match=rf"Mine has its own {name}, but {postprocessing} .*-processing none"):
                ExportGraph(own, postprocessing)
        else:
            ExportGraph(own, postprocessing)
        told = f"Mine has its own {name}, which is no part of the file" in caplog.text
        assert told == (postprocessing == "none")


def test_nothing_is_told_of_the_model_itself(model: MaskFormer, caplog: pytest.LogCaptureFixture) -> None:
    for postprocessing in EVERYTHING:
        ExportGraph(model, postprocessing)
    assert not caplog.text


def test_targets_of_a_subclass_have_no_part_in_it(model: MaskFormer, caplog: pytest.LogCaptureFixture) -> None:
    ExportGraph(_with_own(model, "prepare_targets"), "panoptic")
    assert not caplog.text
