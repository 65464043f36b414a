"""Values that no model can be made of, or none of use, are told by their key, before a model is made."""

import re
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask2former.engine.setup import load_config
from mask2former.modeling.config_checks import check_model_config
from tests.tiny_model import CONFIG


def tiny(*opts: Any) -> CfgNode:
    cfg = load_config()
    cfg.defrost()
    cfg.merge_from_other_cfg(CfgNode(CONFIG))
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg


def test_a_good_configuration() -> None:
    check_model_config(tiny())
    check_model_config(load_config())


@pytest.mark.parametrize(
    "key",
    [
        "BACKBONE.NAME",
        "SEM_SEG_HEAD.NAME",
        "SEM_SEG_HEAD.PIXEL_DECODER_NAME",
        "MASK_FORMER.TRANSFORMER_DECODER_NAME",
        "MASK_FORMER.CROSS_ATTENTION_NAME",
    ],
)
def test_names_that_are_not_registered(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^MODEL\.{re.escape(key)} is 'Typo'; registered are \['\w+', "):
        build_model(tiny(f"MODEL.{key}", "Typo"))


@pytest.mark.parametrize("key", ["RESNETS.NORM", "SEM_SEG_HEAD.NORM"])
def test_norms_that_are_unknown(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^MODEL\.{re.escape(key)} is 'BatchNorm'; expected \"BN\", .* or \"\"\."):
        build_model(tiny(f"MODEL.{key}", "BatchNorm"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("DEPTH", 49, "18, 34, 50, 101, 152"),
        ("OUT_FEATURES", ["res2", "res6"], "stem, res2, res3, res4, res5"),
        ("OUT_FEATURES", [], "stem, res2, res3, res4, res5"),
    ],
)
def test_resnets_that_there_are_not(key: str, value: Any, expected: str) -> None:
    resnet = ("MODEL.BACKBONE.NAME", "build_resnet_backbone")
    with pytest.raises(ValueError, match=rf"^MODEL\.RESNETS\.{key} is {re.escape(str(value))}, expected {expected}\.$"):
        build_model(tiny(*resnet, f"MODEL.RESNETS.{key}", value))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MASK_FORMER.NUM_OBJECT_QUERIES", 0, "at least 1"),
        ("MASK_FORMER.NHEADS", 0, "at least 1"),
        ("SEM_SEG_HEAD.NUM_CLASSES", -1, "at least 1"),
        ("SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", -1, "at least 0"),
        ("MASK_FORMER.DICE_WEIGHT", -5.0, "at least 0"),
        ("MASK_FORMER.CLASS_WEIGHT", float("nan"), "at least 0"),
        ("MASK_FORMER.DROPOUT", 1.5, "0 to 1"),
        ("MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 80.0, "0 to 1"),
    ],
)
def test_numbers_out_of_range(key: str, value: float, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"^MODEL\.{re.escape(key)} is {value}, expected {expected}\.$"):
        build_model(tiny(f"MODEL.{key}", value))


def test_a_negative_number_of_detections() -> None:
    """Detectron2 takes it for all of them."""
    with pytest.raises(ValueError, match=r"^TEST\.DETECTIONS_PER_IMAGE is -1, expected at least 0\.$"):
        build_model(tiny("TEST.DETECTIONS_PER_IMAGE", -1))


def test_a_head_without_a_pixel_decoder() -> None:
    """Detectron2's default, where a configuration names none."""
    with pytest.raises(ValueError, match=r"SEM_SEG_HEAD\.NAME is 'SemSegFPNHead', which has no pixel decoder"):
        build_model(tiny("MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32))


@pytest.mark.parametrize(("means", "deviations"), [([1.0, 2.0, 3.0], [1.0]), ([1.0, 2.0], [0.0, 1.0])])
def test_means_and_deviations_of_channels(means: list[float], deviations: list[float]) -> None:
    with pytest.raises(ValueError, match=r"PIXEL_MEAN is \[1\.0, 2\.0.* and MODEL\.PIXEL_STD .*; give as many of both"):
        build_model(tiny("MODEL.PIXEL_MEAN", means, "MODEL.PIXEL_STD", deviations))
