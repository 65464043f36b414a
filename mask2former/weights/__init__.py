"""Where files of weights come from, and how they are read. Knows nothing of models."""

from mask2former.weights import packages as _packages  # noqa: F401  registers package://
from mask2former.weights.download import hash_file
from mask2former.weights.files import read_checkpoint, read_weights, to_tensors, write_weights
from mask2former.weights.find import find_weights
from mask2former.weights.hub import Repository, parse_repository
from mask2former.weights.zoo import ZooEntry, find_entry, installed_file, list_models, suggest_names, zoo

__all__ = [
    "Repository",
    "ZooEntry",
    "find_entry",
    "find_weights",
    "hash_file",
    "installed_file",
    "list_models",
    "parse_repository",
    "read_checkpoint",
    "read_weights",
    "suggest_names",
    "to_tensors",
    "write_weights",
    "zoo",
]
