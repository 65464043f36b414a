"""A model that nothing is loaded into starts as the official release's does: every parameter from its distribution."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_sem_seg_head
from torch import Tensor, nn

Check = Callable[[Tensor], None]


def _uniform(bound: float, values: Tensor) -> None:
    assert values.abs().max() <= bound
    if len(values) >= 200:  # enough to tell
        tolerance = 4 / math.sqrt(len(values))
        assert values.abs().max() >= bound * (1 - tolerance)
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=tolerance)
        assert abs(values.mean()) < bound * tolerance


def _normal(values: Tensor, std: float = 1.0) -> None:
    tolerance = 4 / math.sqrt(values.numel())
    assert values.std() == pytest.approx(std, rel=tolerance)
    assert abs(values.mean()) < std * tolerance
    assert values.abs().max() > 2 * std  # which no uniform distribution reaches


def _fans(values: Tensor) -> tuple[int, int]:
    area = math.prod(values.shape[2:])
    return values.shape[1] * area, values.shape[0] * area


def xavier(values: Tensor) -> None:
    """``torch.nn.init.xavier_uniform_``."""
    _uniform(math.sqrt(6 / sum(_fans(values))), values.flatten())


def c2_xavier(values: Tensor) -> None:
    """``fvcore.nn.weight_init.c2_xavier_fill``, which divides by inputs alone."""
    _uniform(math.sqrt(3 / _fans(values)[0]), values.flatten())


def c2_msra(values: Tensor) -> None:
    """``fvcore.nn.weight_init.c2_msra_fill``, by outputs."""
    _normal(values, math.sqrt(2 / _fans(values)[1]))


def linear(values: Tensor) -> None:
    """``torch.nn.Linear``'s own."""
    _uniform(1 / math.sqrt(values.shape[1]), values.flatten())


def linear_bias(inputs: int) -> Check:
    """``torch.nn.Linear``'s own."""
    return lambda values: _uniform(1 / math.sqrt(inputs), values)


def zeros(values: Tensor) -> None:
    assert not values.any()


def ones(values: Tensor) -> None:
    assert (values == 1).all()


def normal(values: Tensor) -> None:
    """``torch.nn.Embedding``'s own."""
    _normal(values)


def rays(values: Tensor) -> None:
    """Offsets of deformable attention: a direction for each of eight heads, a pixel further for each of four points."""
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = torch.tensor(directions)[:, None, None] * torch.arange(1, 5)[:, None]
    torch.testing.assert_close(values.view(8, 3, 4, 2), expected.float().expand(-1, 3, -1, -1), atol=1e-5, rtol=0)


CHANNELS, HIDDEN, ENCODER_HIDDEN = 256, 320, 192

NORMS: dict[str, Check] = {r"(decoder_)?norm\d?\.weight": ones, r"(decoder_)?norm\d?\.bias": zeros}

ATTENTION: dict[str, Check] = {
    r"in_proj_weight|out_proj\.weight": xavier,
    r"in_proj_bias|out_proj\.bias": zeros,
    r"linear1\.weight|linear2\.weight": xavier,
}

CLASSES_AND_MASKS: dict[str, Check] = {
    r"class_embed\.weight|mask_embed\.layers\.\d\.weight": linear,
    r"class_embed\.bias|mask_embed\.layers\.\d\.bias": linear_bias(CHANNELS),
}

MASK2FORMER: dict[str, Check] = {
    r"pixel_decoder\.input_proj\.\d\.0\.weight": xavier,
    r"pixel_decoder\.input_proj\.\d\.[01]\.bias": zeros,
    r"pixel_decoder\.input_proj\.\d\.1\.weight": ones,
    r"sampling_offsets\.weight|attention_weights\.(weight|bias)|(value|output)_proj\.bias": zeros,
    r"sampling_offsets\.bias": rays,
    r"(value|output)_proj\.weight": xavier,
    r"pixel_decoder\..*linear1\.bias": linear_bias(CHANNELS),
    r"pixel_decoder\..*linear2\.bias": linear_bias(ENCODER_HIDDEN),
    r"pixel_decoder\.transformer\.level_embed": normal,
    r"pixel_decoder\.(mask_features|adapter_1|layer_1)\.weight": c2_xavier,
    r"pixel_decoder\.mask_features\.bias": zeros,
    r"predictor\.(query_feat|query_embed|level_embed)\.weight": normal,
    r"predictor\..*linear1\.bias": linear_bias(CHANNELS),
    r"predictor\..*linear2\.bias": linear_bias(HIDDEN),
    **NORMS,
    **ATTENTION,
    **CLASSES_AND_MASKS,
}

PYRAMID: dict[str, Check] = {
    r"pixel_decoder\.(mask_features|input_proj|adapter_\d|layer_\d)\.weight": c2_xavier,
    r"pixel_decoder\.(mask_features|input_proj)\.bias": zeros,
    **NORMS,
}

MASKFORMER: dict[str, Check] = {
    **PYRAMID,
    r"predictor\.query_embed\.weight": normal,
    r"linear1\.bias": linear_bias(CHANNELS),
    r"linear2\.bias": linear_bias(HIDDEN),
    r"predictor\.input_proj\.weight": c2_xavier,
    r"predictor\.input_proj\.bias": zeros,
    **ATTENTION,
    **CLASSES_AND_MASKS,
}

PER_PIXEL: dict[str, Check] = {**PYRAMID, r"predictor\.weight": c2_msra, r"predictor\.bias": zeros}


def _head(cfg: CfgNode) -> nn.Module:
    return build_sem_seg_head(cfg, build_backbone(cfg).output_shape())


def _check(head: nn.Module, rules: dict[str, Check]) -> None:
    unused = set(rules)
    for name, values in head.named_parameters():
        found = [rule for rule in rules if re.search(f"(^|\\.)({rule})$", name)]
        assert len(found) == 1, (name, found)
        unused -= set(found)
        try:
            rules[found[0]](values.detach())
        except AssertionError as error:
            raise AssertionError(f"{name} {tuple(values.shape)}: {error}") from error
    assert not unused


@pytest.fixture
def wide_cfg(tiny_cfg: CfgNode) -> CfgNode:
    """The tiny model with as many channels as the real one, so that distributions can be told apart."""
    torch.manual_seed(0)
    head, mask_former = tiny_cfg.MODEL.SEM_SEG_HEAD, tiny_cfg.MODEL.MASK_FORMER
    head.CONVS_DIM = head.MASK_DIM = mask_former.HIDDEN_DIM = CHANNELS
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = mask_former.NHEADS = 8
    head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = ENCODER_HIDDEN
    mask_former.DIM_FEEDFORWARD = HIDDEN
    return tiny_cfg


def test_mask2former(wide_cfg: CfgNode) -> None:
    _check(_head(wide_cfg), MASK2FORMER)


def test_maskformer(wide_cfg: CfgNode) -> None:
    wide_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "TransformerEncoderPixelDecoder"
    wide_cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "StandardTransformerDecoder"
    wide_cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res5"
    _check(_head(wide_cfg), MASKFORMER)


def test_per_pixel_baseline(wide_cfg: CfgNode) -> None:
    wide_cfg.MODEL.SEM_SEG_HEAD.NAME = "PerPixelBaselineHead"
    wide_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "BasePixelDecoder"
    wide_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 40
    _check(_head(wide_cfg), PER_PIXEL)
