"""Metrics: panoptic quality, mask AP and mean IoU."""

from mask2former.evaluation.build import build_evaluator
from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator
from mask2former.evaluation.panoptic_evaluation import PanopticEvaluator

__all__ = ["InstanceSegEvaluator", "PanopticEvaluator", "build_evaluator"]
