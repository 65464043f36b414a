"""Using a trained model: pictures of every kind in, results out. ``mask2former.load`` is the way in."""

from mask2former.inference.result import InstanceResult, PanopticResult, PanopticSegment, Result, SemanticResult
from mask2former.inference.segmenter import Segmenter

__all__ = ["InstanceResult", "PanopticResult", "PanopticSegment", "Result", "Segmenter", "SemanticResult"]
