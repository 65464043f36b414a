"""Metrics: panoptic quality, mask AP and mean IoU."""

from mask2former.evaluation.boundary_evaluation import BoundaryEvaluator
from mask2former.evaluation.build import build_evaluator
from mask2former.evaluation.by_group import evaluate_groups
from mask2former.evaluation.cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator
from mask2former.evaluation.lvis_evaluation import LVISEvaluator
from mask2former.evaluation.panoptic_evaluation import PanopticEvaluator
from mask2former.evaluation.proposal_evaluation import ProposalEvaluator
from mask2former.evaluation.saved_predictions import SavedPredictions, find_predictions
from mask2former.evaluation.sem_seg_evaluation import SemSegEvaluator
from mask2former.evaluation.semantic_pq_evaluation import SemanticPQEvaluator, evaluate_saved_semantic_pq

__all__ = [
    "BoundaryEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "InstanceSegEvaluator",
    "LVISEvaluator",
    "PanopticEvaluator",
    "ProposalEvaluator",
    "SavedPredictions",
    "SemSegEvaluator",
    "SemanticPQEvaluator",
    "build_evaluator",
    "evaluate_groups",
    "evaluate_saved_semantic_pq",
    "find_predictions",
]
