"""A model made faster without other results, in training and for inference: what is done, and the switches for it."""

from .bfloat16 import cpu_has_bfloat16
from .build import prepare_for_inference
from .inference import optimize_for_inference
from .memory import keep_freed_memory, keep_freed_memory_of_program
from .training import prepare_for_training
from .training_graphs import record_training_graphs

__all__ = [
    "cpu_has_bfloat16",
    "keep_freed_memory",
    "keep_freed_memory_of_program",
    "optimize_for_inference",
    "prepare_for_inference",
    "prepare_for_training",
    "record_training_graphs",
]
