"""From command-line arguments to a frozen configuration and a prepared process."""

import argparse
import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from mask2former.config import add_maskformer2_config
from mask2former.data import register_custom_datasets
from mask2former.engine.config_files import merge_yaml

__all__ = ["finish_config", "load_config", "setup"]


def load_config(config_file: str = "", opts: Sequence[str] | None = None) -> CfgNode:
    """Read a configuration, and register the data sets of your own that it names.

    Args:
        config_file: YAML; "" keeps the defaults.
        opts: ``KEY VALUE`` pairs that override it.

    Returns:
        The frozen configuration. ``MODEL.DEVICE`` is "cpu" where there is no GPU.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if the YAML is damaged or asks to run Python code, or there or in ``opts`` is a key or a value that
            is none.
    """
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    if config_file:
        merge_yaml(cfg, config_file)
    return finish_config(cfg, opts)


def finish_config(cfg: CfgNode, opts: Sequence[str] | None = None) -> CfgNode:
    """The rest of :func:`load_config`, for a configuration that was put together otherwise; in place, and returned."""
    _merge_pairs(cfg, opts or ())
    if not isinstance(cfg.MODEL.DEVICE, str):
        raise ValueError(f'MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, expected "cpu", "cuda" or "cuda:1".')
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).info(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} but there is no GPU: running on the CPU."
        )
        cfg.MODEL.DEVICE = "cpu"
    register_custom_datasets(cfg)
    cfg.freeze()
    return cfg


def _merge_pairs(cfg: CfgNode, opts: Sequence[str]) -> None:
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, KeyError, ValueError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise ValueError(
            f"KEY VALUE pairs {' '.join(map(str, opts))!r} do not change the configuration: {reason}"
        ) from error


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the configuration and prepare this process: output folder, log files, random seed.

    Args:
        args: of ``detectron2.engine.default_argument_parser``.
    """
    setup_logger(distributed_rank=comm.get_rank(), name="mask2former")
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mask2former", configure_stdout=False)
    return cfg
