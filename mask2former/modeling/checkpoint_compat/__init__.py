"""Checkpoints of every published form, to the names of our models and back.

Pure functions from ``{name: tensor}`` to ``{name: tensor}``; files are read by ``mask2former.weights``.
"""

from .convert import FORMATS, convert_checkpoint, convert_names, is_backbone
from .huggingface import from_huggingface, is_huggingface, to_huggingface
from .legacy import upgrade_before_loading, upgrade_legacy_names

__all__ = [
    "FORMATS",
    "convert_checkpoint",
    "convert_names",
    "from_huggingface",
    "is_backbone",
    "is_huggingface",
    "to_huggingface",
    "upgrade_before_loading",
    "upgrade_legacy_names",
]
