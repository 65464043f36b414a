"""Faster convolutions: in the memory format `channels_last`, and of 3x3 pixels by Winograd's algorithm on CPUs."""

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ..ops.winograd import conv2d, has_native_winograd, takes_convolution, transform_weight, winograd_conv2d

__all__ = ["WinogradConv2d", "prepare_for_training", "use_winograd"]


class WinogradConv2d(nn.Conv2d):
    """A convolution and what follows it in Detectron2's; done as before where the native operators are not for it.

    No module is made so: :func:`use_winograd` changes the class of convolutions, whose parameters and names stay.
    """

    transformed: Tensor | None
    """Weights that will not change, transformed."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H, W)."""
        is_differentiated = torch.is_grad_enabled() and x.requires_grad
        if self.transformed is None or is_differentiated or not has_native_winograd(x):
            x = conv2d(x, self.weight, self.bias)
        else:
            x = winograd_conv2d(x, self.transformed, self.bias)
        for name in ("norm", "activation"):
            follows = getattr(self, name, None)
            x = x if follows is None else follows(x)
        return x


def prepare_for_training(model: nn.Module) -> nn.Module:
    """Let the convolutions of a model that is trained be as fast as its device can do them, in place.

    Parameters and checkpoints stay the same, results differ by rounding.
    """
    model.to(memory_format=torch.channels_last)
    if all(x.device.type == "cpu" for x in model.parameters()):
        use_winograd(model, trained=True)
    return model


def use_winograd(model: nn.Module, *, trained: bool) -> int:
    """Make :class:`WinogradConv2d` of the convolutions that the operators take, in place.

    Args:
        model: on a CPU.
        trained: whether weights will change. If not they are transformed now, and not each time.

    Returns:
        How many they were.
    """
    # Not their subclasses, which may do something to the weights first.
    classes = (nn.Conv2d, Conv2d, WinogradConv2d)
    found = [x for x in model.modules() if isinstance(x, nn.Conv2d) and type(x) in classes and takes_convolution(x)]
    for conv in found:
        conv.__class__ = WinogradConv2d
        transformed = None if trained else transform_weight(conv.weight.detach()).contiguous()
        conv.register_buffer("transformed", transformed, persistent=False)
    return len(found)
