"""Everything before the first step: the data are read, settings chosen, and both written into the output folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from mask2former.config import find_value
from mask2former.durable_files import write_file
from mask2former.engine import load_config
from mask2former.engine.config_files import merge_opts
from mask2former.engine.folder_lock import only_training_in
from mask2former.own_data.base import Base
from mask2former.own_data.config_file import write_config
from mask2former.own_data.data import OwnData
from mask2former.own_data.machine import count_parameters, this_machine
from mask2former.own_data.settings import Choice, Plan, choose_settings

__all__ = ["CONFIG_FILE", "prepare_output", "read_inspection"]

CONFIG_FILE = "own_data.yaml"
_INSPECTION_FILE = "inspection.json"
_BASE_FILE = "base.yaml"
_AT_LEAST_1 = ("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.GRADIENT_ACCUMULATION_STEPS", "INPUT.IMAGE_SIZE")
_HEADER = (
    "Written by `mask2former train --data`, which chose these settings; change them as you like. This trains the same "
    "again: python train_net.py --config-file {path}"
)


def prepare_output(
    output: Path, data: OwnData, base: Base, opts: Sequence[str], *, processes: int = 1, patience: int = 0
) -> list[Choice]:
    """Choose settings and write all files.

    Args:
        output: The folder; made if it is not there.
        data: The data.
        base: Configuration and weights to start from.
        opts: ``KEY VALUE`` pairs of the user.
        processes: Of the training.
        patience: Of early stopping, in evaluations; 0 never stops.

    Returns:
        All keys that the configuration file has, those of the user and of the data included.

    Raises:
        OSError: A file cannot be written, or another program trains into the folder.
        ValueError: Of ``opts``: a key is unknown, or a value is wrong.
    """
    given = _read_opts(base.cfg, opts)
    with only_training_in(output):
        write_file(output / _BASE_FILE, base.cfg.dump().encode())
        cfg = load_config(str(output / _BASE_FILE), opts)  # knows whether there is a GPU
        plan = Plan(
            base=base.cfg,
            given=given,
            inspection=data.inspections["own_train"],
            panoptic=data.panoptic,
            machine=this_machine(cfg.MODEL.DEVICE, processes),
            parameters=count_parameters(cfg),
            processes=processes,
            fine_tuned=base.fine_tuned,
            validation="own_val" in data.entries,
            patience=patience,
        )
        own = [Choice(key, value, "given on the command line") for key, value in given.items()]
        choices = [*_data_choices(output, data), *choose_settings(plan), *own]
        choices.append(Choice("OUTPUT_DIR", str(output.absolute()), "checkpoints, logs and the report"))
        _write_inspection(output, data, plan, choices)
        # Last, because a training can be resumed where this file is.
        write_config(output / CONFIG_FILE, _BASE_FILE, choices, _HEADER.format(path=output / CONFIG_FILE))
        return choices


def read_inspection(output: Path) -> dict[str, Any] | None:
    """What was found out about the data; None for a training that ``mask2former train --data`` did not start."""
    path = output / _INSPECTION_FILE
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _read_opts(cfg: CfgNode, opts: Sequence[str]) -> dict[str, Any]:
    """The keys of ``KEY VALUE`` pairs, with their values as the configuration understands them."""
    merged = cfg.clone()
    merge_opts(merged, opts)
    values = {}
    for key in opts[::2]:
        value = find_value(merged, key)
        values[key] = list(value) if isinstance(value, tuple) else value
        if key in _AT_LEAST_1 and value < 1:
            raise ValueError(f"{key} is {value}, expected at least 1.")
    return values


def _data_choices(output: Path, data: OwnData) -> list[Choice]:
    """Which images are for what, as lists and as keys."""
    entries = {}
    for name, entry in data.entries.items():
        file = output.absolute() / f"{name.removeprefix('own_')}.txt"
        write_file(file, "".join(f"{image}\n" for image in data.images[name]).encode())
        entries[name] = entry | {"LIST": str(file)}
    test = [name for name in entries if name == "own_val"]
    return [
        Choice("DATASETS.TRAIN", ["own_train"], f"{data.inspections['own_train'].images} images"),
        Choice("DATASETS.TEST", test, f"{data.inspections['own_val'].images} images" if test else "no validation"),
        Choice("DATASETS.CUSTOM", entries, "LIST names the images to take"),
    ]


def _write_inspection(output: Path, data: OwnData, plan: Plan, choices: Sequence[Choice]) -> None:
    """What the report tells."""
    hidden = ("DATASETS.CUSTOM",)
    content = {
        "task": plan.task,
        "data": {name: inspection.to_json() for name, inspection in data.inspections.items()},
        "left_out": [str(fault) for fault in data.faults],
        "settings": [asdict(choice) for choice in choices if choice.key not in hidden],
    }
    write_file(output / _INSPECTION_FILE, json.dumps(content, indent=1).encode())
