"""Names that the official release gave in its earlier versions."""

from collections.abc import Container, MutableMapping
from typing import Any

from torch import nn

__all__ = ["upgrade_before_loading", "upgrade_legacy_names"]


def upgrade_legacy_names(state_dict: MutableMapping[str, Any], prefix: str, known: Container[str] = ()) -> None:
    """Rename, in place, what older checkpoints of the official release call differently; new names stay.

    Before Mask2Former the pixel decoder's parameters were the head's own, and ``query_feat`` was ``static_query``.

    Args:
        state_dict: any.
        prefix: of the segmentation head, with its dot at the end.
        known: names that the model has, which stay: heads of Detectron2 have no pixel decoder.
    """
    for name in [name for name in state_dict if name.startswith(prefix) and name not in known]:
        inside = name.removeprefix(prefix)
        if inside.startswith("predictor."):
            inside = inside.replace("static_query.", "query_feat.")
        elif not inside.startswith("pixel_decoder."):
            inside = "pixel_decoder." + inside
        if prefix + inside != name:
            state_dict[prefix + inside] = state_dict.pop(name)


def upgrade_before_loading(module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Upgrade what a segmentation head is about to load; for ``register_load_state_dict_pre_hook``."""
    upgrade_legacy_names(state_dict, prefix)
