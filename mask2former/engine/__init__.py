"""Training: the trainer and what it is made of."""

from mask2former.engine.launch import launch
from mask2former.engine.optimizer import build_optimizer
from mask2former.engine.setup import load_config, setup
from mask2former.engine.test_time_augmentation import SegmentorWithTTA, SemanticSegmentorWithTTA
from mask2former.engine.trainer import Trainer

__all__ = [
    "SegmentorWithTTA",
    "SemanticSegmentorWithTTA",
    "Trainer",
    "build_optimizer",
    "launch",
    "load_config",
    "setup",
]
