"""Detectron2's residual blocks with each ReLU, and the sum before it, in the convolution."""

from typing import Any, cast

from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops.convolution import convolve_relu

__all__ = ["fuse_blocks"]


def fuse_blocks(model: nn.Module) -> int:
    """Change the class of blocks whose batch norms have been folded, in place; their parameters stay.

    Returns:
        How many.
    """
    blocks = [x for x in model.modules() if type(x) in _FUSED and all(map(_is_plain, _convolutions(x)))]
    for block in blocks:
        cast(Any, block).__class__ = _FUSED[type(block)]
    return len(blocks)


def _convolutions(block: nn.Module) -> list[nn.Module]:
    """Those that a ReLU follows."""
    return [x for name, x in block.named_children() if name != "shortcut"]


def _is_plain(conv: Any) -> bool:
    """Whether it is a convolution with a bias and nothing after it."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.bias is not None
        and conv.padding_mode == "zeros"
        and isinstance(getattr(conv, "norm", None), nn.Identity | None)
        and getattr(conv, "activation", None) is None
    )


class _FusedStem(BasicStem):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(convolve_relu(self.conv1, x), kernel_size=3, stride=2, padding=1)


class _FusedBasicBlock(BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return convolve_relu(self.conv2, convolve_relu(self.conv1, x), shortcut)


class _FusedBottleneckBlock(BottleneckBlock):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        out = convolve_relu(self.conv2, convolve_relu(self.conv1, x))
        return convolve_relu(self.conv3, out, shortcut)


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    BasicStem: _FusedStem,
    BasicBlock: _FusedBasicBlock,
    BottleneckBlock: _FusedBottleneckBlock,
}
