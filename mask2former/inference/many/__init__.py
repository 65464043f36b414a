"""Inference over very many pictures, in parts that are finished once, whatever stops in between."""

from mask2former.inference.many.job import Done, Workers, predict_many
from mask2former.inference.many.parts import read_results
from mask2former.inference.many.worker import Settings

__all__ = ["Done", "Settings", "Workers", "predict_many", "read_results"]
