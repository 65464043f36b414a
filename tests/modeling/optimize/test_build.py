import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.optimize import inference, prepare_for_inference


def test_defaults_leave_the_model_alone(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg)
    assert prepare_for_inference(tiny_cfg, model) is model
    assert not model.training


@pytest.mark.parametrize(
    ("key", "value", "dtype"),
    [("OPTIMIZE", True, torch.float32), ("DTYPE", "bfloat16", torch.bfloat16), ("COMPILE", "default", torch.float32)],
)
def test_each_key_makes_a_fast_copy(tiny_cfg: CfgNode, key: str, value: object, dtype: torch.dtype) -> None:
    tiny_cfg.MODEL.INFERENCE[key] = value
    model = build_model(tiny_cfg)
    fast = prepare_for_inference(tiny_cfg, model)
    assert fast is not model
    assert isinstance(fast.backbone.stem.conv1.norm, nn.Identity)
    assert fast.backbone.stem.conv1.weight.dtype is dtype


@pytest.mark.parametrize(
    ("key", "value", "cuda", "expected"),
    [
        ("OPTIMIZE", True, "13.0", True),
        ("DTYPE", "bfloat16", "13.0", True),
        ("OPTIMIZE", True, None, False),
        ("COMPILE", "default", "13.0", False),
        ("CUDA_GRAPHS", False, "13.0", False),
    ],
)
def test_which_have_graphs_of_frequent_sizes(
    tiny_cfg: CfgNode, key: str, value: object, cuda: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_cfg.MODEL.INFERENCE.OPTIMIZE = True
    tiny_cfg.MODEL.INFERENCE[key] = value
    monkeypatch.setattr(torch.version, "cuda", cuda)
    model = build_model(tiny_cfg)
    made: list[nn.Module] = []
    monkeypatch.setattr(inference, "GraphsOfFrequentSizes", lambda network, model: made.append(model))
    prepare_for_inference(tiny_cfg, model)
    assert not made  # on a CPU
    monkeypatch.setattr(MaskFormer, "device", torch.device("cuda"))
    prepare_for_inference(tiny_cfg, model)
    assert bool(made) == expected


def test_other_models_are_left_alone_by_default(tiny_cfg: CfgNode) -> None:
    model = nn.Linear(1, 1)
    assert prepare_for_inference(tiny_cfg, model) is model


def test_a_word_is_no_switch(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.INFERENCE.OPTIMIZE = "false"  # as a command line has it
    with pytest.raises(ValueError, match=r"OPTIMIZE is 'false', expected True, False or None"):
        prepare_for_inference(tiny_cfg, nn.Linear(1, 1))
