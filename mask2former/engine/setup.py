"""From command-line arguments to a frozen configuration and a prepared process."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from mask2former.config import add_maskformer2_config, find_value
from mask2former.data import check_registered, register_custom_datasets
from mask2former.engine.config_files import merge_opts, merge_yaml
from mask2former.weights.files import LAST

__all__ = [
    "check_data_sets",
    "finish_config",
    "load_config",
    "load_evaluation_config",
    "setup",
    "warn_of_starting_weights",
]

logger = logging.getLogger(__name__)


def load_config(config_file: str = "", opts: Sequence[str] | None = None) -> CfgNode:
    """Read a configuration, and register the data sets of your own that it names.

    Args:
        config_file: YAML; "" keeps the defaults.
        opts: ``KEY VALUE`` pairs that override it.

    Returns:
        The frozen configuration. ``MODEL.DEVICE`` is "cpu" where there is no GPU.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if the YAML is damaged or asks to run Python code, a key of it or of ``opts`` is unknown, a value is
            invalid, or this machine does not have the device.
    """
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    if config_file:
        merge_yaml(cfg, config_file)
    return finish_config(cfg, opts)


def finish_config(cfg: CfgNode, opts: Sequence[str] | None = None) -> CfgNode:
    """The rest of :func:`load_config`, for a configuration that was put together otherwise; in place, and returned."""
    opts = list(opts or [])
    merge_opts(cfg, opts)
    cfg.MODEL.DEVICE = _find_device(cfg.MODEL.DEVICE, asked_for="MODEL.DEVICE" in opts[::2])
    register_custom_datasets(cfg)
    cfg.freeze()
    return cfg


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the configuration and prepare this process: output folder, log files, random seed.

    Args:
        args: of ``detectron2.engine.default_argument_parser``.

    Raises:
        OSError: the output folder cannot be written.
    """
    setup_logger(distributed_rank=comm.get_rank(), name="mask2former")
    cfg = load_config(args.config_file, args.opts)
    config = Path(cfg.OUTPUT_DIR, "config.yaml")
    former = config.read_bytes() if config.is_file() else None
    try:
        default_setup(cfg, args)
    except OSError as error:
        if error.filename is None:  # a full disk, of which Python says nothing else
            config.unlink(missing_ok=True)  # the half of one would count as a whole
            if former is not None:
                config.write_bytes(former)
            error.filename = str(config)
        raise
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mask2former", configure_stdout=False)
    return cfg


def check_data_sets(cfg: CfgNode, *, eval_only: bool) -> None:
    """Check all names of data sets before anything is computed, also those that a training evaluates on in the end.

    Raises:
        ValueError: there is nothing to train or to evaluate on, or a name is not registered.
    """
    key = "DATASETS.TEST" if eval_only else "DATASETS.TRAIN"
    if not find_value(cfg, key):
        raise ValueError(f"{key} is empty; name a data set to {'evaluate' if eval_only else 'train'} on.")
    check_registered(cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def load_evaluation_config(config_file: str, opts: Sequence[str], dataset: str | None) -> CfgNode:
    """As :func:`load_config`, for what was evaluated on a data set; None takes those of ``DATASETS.TEST``.

    Raises:
        ValueError: there is none, or a name is not registered.
    """
    given = ["DATASETS.TEST", f"({dataset!r},)"] if dataset else []
    cfg = load_config(config_file, [*given, *opts])
    check_data_sets(cfg, eval_only=True)
    return cfg


def warn_of_starting_weights(config_file: str | Path, cfg: CfgNode, opts: Sequence[str] = ()) -> None:
    """Say so if a training's configuration is about to be used with the weights that the training began with.

    Args:
        config_file: where ``cfg`` was read; a training's own lies in its output folder.
        cfg: what it says.
        opts: ``KEY VALUE`` pairs of the user, who may have chosen these weights.
    """
    folder = Path(config_file).absolute().parent
    of_training = Path(cfg.OUTPUT_DIR).absolute() == folder or (folder / LAST).is_file()
    if not of_training or "MODEL.WEIGHTS" in opts[::2] or folder in Path(cfg.MODEL.WEIGHTS).absolute().parents:
        return
    trained = next((name for name in ("model_best.pth", "model_final.pth") if (folder / name).is_file()), "")
    logger.warning(
        "%s: MODEL.WEIGHTS is %r, with which its training began, and not what that has learnt; %s.",
        config_file,
        cfg.MODEL.WEIGHTS,
        f"for that, say MODEL.WEIGHTS {folder / trained}" if trained else f"{folder} has no trained model yet",
    )


def _find_device(name: str, *, asked_for: bool) -> str:
    """A device that this machine has; the CPU in place of a GPU where there is none."""
    expected = 'expected "cpu", "cuda" or "cuda:1"'
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"MODEL.DEVICE is {name!r}, {expected}.") from error
    if device.type != "cuda":
        try:
            torch.empty(0, device=device)
        except (NotImplementedError, RuntimeError) as error:
            raise ValueError(f"MODEL.DEVICE is {name!r}, which PyTorch does not have here, {expected}.") from error
        return name
    if not torch.cuda.is_available():
        # Configurations say "cuda" for those who have one.
        level = logging.WARNING if asked_for else logging.INFO
        logger.log(level, f"MODEL.DEVICE is {name!r} but there is no GPU: running on the CPU.")
        return "cpu"
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"MODEL.DEVICE is {name!r}, but this machine has {torch.cuda.device_count()} GPUs, from 0 on.")
    return name
