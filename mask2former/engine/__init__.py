"""Training: the trainer and what it is made of."""

from mask2former.engine.launch import launch
from mask2former.engine.optimizer import build_optimizer
from mask2former.engine.setup import load_config, setup
from mask2former.engine.trainer import Trainer

__all__ = ["Trainer", "build_optimizer", "launch", "load_config", "setup"]
