"""Convolutions of 3x3 pixels by Winograd's algorithm, on CPUs."""

from typing import Any

from torch import Tensor, nn

from ...ops.winograd import has_native_winograd, takes_convolution, transform_weight, winograd_conv2d

__all__ = ["WinogradConv2d", "use_winograd"]


class WinogradConv2d(nn.Module):
    """A convolution and what follows it in Detectron2's; done as before where the native operator is not for it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        weight = conv.weight.detach()
        self.register_buffer("weight", transform_weight(weight), persistent=False)
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H, W)."""
        conv: Any = self.conv
        if not has_native_winograd(x):
            result: Tensor = conv(x)
            return result
        x = winograd_conv2d(x, self.weight, self.bias)
        for name in ("norm", "activation"):
            follows = getattr(conv, name, None)
            x = x if follows is None else follows(x)
        return x


def use_winograd(model: nn.Module) -> int:
    """Replace the convolutions that the operator takes by :class:`WinogradConv2d`, in place.

    Returns:
        How many they were.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        if not isinstance(parent, WinogradConv2d)
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and takes_convolution(child)
    ]
    for parent, name, child in found:
        setattr(parent, name, WinogradConv2d(child))
    return len(found)
