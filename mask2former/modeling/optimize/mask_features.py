"""The 1x1 convolution that makes the per-pixel embedding moves from the pixels to the queries, which are far fewer."""

import torch
from torch import Tensor, nn

from ..head import MaskFormerHead

__all__ = ["fold_mask_features"]


def fold_mask_features(head: nn.Module) -> bool:
    """Multiply queries by what the last convolution of the pixel decoder reads, not by what it gives; in place.

    A mask logit is ``e (W y + b) = (e W) y + e b``, for the query's embedding ``e`` and a pixel ``y``. The queries'
    embeddings become ``(e W, e b)``, which the last layer of their network gives at once, and zeros up to a multiple of
    eight channels, for GPUs are slow at rows that begin anywhere.

    Args:
        head: with a pixel decoder and a Transformer decoder.

    Returns:
        Whether it was done. It is not where the convolution is not 1x1, that layer is quantised, or someone else reads
        what the convolution gives, as a part from outside of this package may.
    """
    if not all(_is_ours(part) for part in (head, *head.children())):
        return False
    if not isinstance(head, MaskFormerHead) or head.transformer_in_feature == "pixel_embedding":
        return False
    conv = getattr(head.pixel_decoder, "mask_features", None)
    network = getattr(head.predictor, "mask_embed", None)
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1) or network is None:
        return False
    last = network.layers[-1]
    if not isinstance(last, nn.Linear):
        return False
    weight = conv.weight.detach().flatten(1)  # (C_out, C_in)
    bias = torch.zeros_like(weight[:, 0]) if conv.bias is None else conv.bias.detach()
    columns = torch.cat([weight, bias[:, None]], dim=1)
    network.layers[-1] = _followed_by(last, nn.functional.pad(columns, (0, -columns.shape[1] % 8)))
    head.pixel_decoder.mask_features = nn.Identity()
    return True


def _is_ours(module: nn.Module) -> bool:
    """Whether a module is of a class of this package, and not of a user's, whose parts may mean something else."""
    return type(module).__module__.partition(".")[0] == __name__.partition(".")[0]


@torch.no_grad()
def _followed_by(linear: nn.Linear, matrix: Tensor) -> nn.Linear:
    """One layer for ``linear`` and then a product with ``matrix`` (out, columns)."""
    both = nn.Linear(linear.in_features, matrix.shape[1], device=matrix.device, dtype=matrix.dtype)
    matrix, weight, bias = (x.cpu().double() for x in (matrix, linear.weight, linear.bias))  # not all GPUs have doubles
    both.weight.copy_(matrix.T @ weight)
    both.bias.copy_(bias @ matrix)
    return both.requires_grad_(False)
