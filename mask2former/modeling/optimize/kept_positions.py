"""Position encodings, which depend on the size of a map alone, are kept for the next image."""

import torch
from torch import Tensor, nn

from ...ops.recording import is_recording
from ..position_encoding import PositionEmbeddingSine

__all__ = ["KeptPositionEmbedding", "keep_position_encodings"]

_SIZES = 16  # of maps, of which one module keeps the encodings at most; an image's pyramid has three


class KeptPositionEmbedding(nn.Module):
    """What ``encode`` gives, computed once for each size and device; not to be written into. Threads may share it."""

    def __init__(self, encode: PositionEmbeddingSine, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.encode = encode
        self.dtype = dtype
        self._kept: dict[tuple[int, int, str], Tensor] = {}

    def forward(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """Return the encoding (1, C, height, width) of :class:`PositionEmbeddingSine`, in this module's dtype."""
        if is_recording():
            return self.encode(height, width, device).to(self.dtype)
        key = (height, width, str(device))
        kept = self._kept.get(key)
        if kept is None:
            with torch.inference_mode(False):  # an inference tensor could not be used in training later
                kept = self.encode(height, width, device).to(self.dtype)
            if len(self._kept) >= _SIZES:
                self._kept.clear()
            self._kept[key] = kept
        return kept


def keep_position_encodings(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Let all position encodings of a model be kept, in place; on a GPU this spares dozens of small kernels.

    Args:
        model: any.
        dtype: of what they are added to.
    """
    holders = [module for module in model.modules() if not isinstance(module, KeptPositionEmbedding)]
    for module in holders:
        for name, child in module.named_children():
            encode = child.encode if isinstance(child, KeptPositionEmbedding) else child  # perhaps in another dtype
            if isinstance(encode, PositionEmbeddingSine):
                setattr(module, name, KeptPositionEmbedding(encode, dtype))
