"""The configuration and the weights that a training starts from."""

from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from mask2former.engine import load_config
from mask2former.inference.loading import model_config
from mask2former.weights import find_weights, installed_file

__all__ = ["Base", "find_base"]

_DEFAULT = "configs/examples/own_data.yaml"


@dataclass(frozen=True)
class Base:
    """What a training starts from.

    Attributes:
        cfg: The configuration, without the data sets of its ``DATASETS.CUSTOM``.
        fine_tuned: Whether its weights are those of a whole model.
    """

    cfg: CfgNode
    fine_tuned: bool


def find_base(weights: str | None, config_file: str) -> Base:
    """Find it.

    Args:
        weights: A name of the model zoo, a checkpoint, or the output folder of a training; None takes what the
            configuration names, a backbone most likely.
        config_file: A configuration; "" takes that of the weights, else that of a small model.

    Raises:
        FileNotFoundError: Something is not there.
        OSError: The weights cannot be downloaded.
        ValueError: The weights have no configuration.
    """
    if config_file and not Path(config_file).is_file():
        raise FileNotFoundError(f"there is no configuration {config_file}; check the path and the working directory.")
    if weights is None:
        cfg = load_config(config_file or str(installed_file(_DEFAULT)))
    elif config_file:
        cfg = load_config(config_file, ["MODEL.WEIGHTS", find_weights(weights)])
    else:
        cfg = model_config(weights)
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"  # a machine without GPU takes its CPU, and another may have one
    if cfg.MODEL.WEIGHTS and Path(cfg.MODEL.WEIGHTS).exists():
        cfg.MODEL.WEIGHTS = str(Path(cfg.MODEL.WEIGHTS).absolute())  # the training may go on from another folder
    cfg.DATASETS.CUSTOM = CfgNode(new_allowed=True)
    return Base(cfg, fine_tuned=weights is not None)
