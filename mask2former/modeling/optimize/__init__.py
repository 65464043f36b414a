"""A trained model made faster without other results: what is done, and the switches for it."""

from .build import prepare_for_inference
from .memory import keep_freed_memory, keep_freed_memory_of_program
from .network import optimize_for_inference

__all__ = ["keep_freed_memory", "keep_freed_memory_of_program", "optimize_for_inference", "prepare_for_inference"]
