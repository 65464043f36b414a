"""What makes a job what it is, kept with its results: only the same job may go on with them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from mask2former.durable_files import replace_file
from mask2former.inference.many.shards import Shard, digest_shards
from mask2former.inference.many.worker import Settings
from mask2former.weights import find_weights, hash_file

__all__ = ["check_manifest", "describe_job"]

MANIFEST_FILE = "manifest.json"
# They say where and how fast, not what: a job may go on with other values of these.
_FREE_KEYS = ("MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR", "VERSION")
_SHOWN = 5


def describe_job(settings: Settings, cfg: CfgNode, source: Path, shards: Sequence[Shard]) -> dict[str, Any]:
    """What is written into the manifest.

    Args:
        settings: With ``task``.
        cfg: The model's configuration.
        source: Of the pictures, as given.
        shards: The parts.

    Raises:
        FileNotFoundError: There are no weights.
        OSError: They cannot be downloaded.
    """
    weights = find_weights(cfg.MODEL.WEIGHTS.partition("?")[0])
    config = _flatten(yaml.safe_load(cfg.dump()))
    return {
        "source": str(source),
        "model": settings.model,
        "pictures": {"parts": len(shards), "sha256": digest_shards(shards)},
        "settings": {"task": settings.task, "threshold": settings.threshold, "size": settings.size},
        "weights": {"sha256": hash_file(weights)},
        "config": {key: value for key, value in config.items() if key not in _FREE_KEYS},
    }


def check_manifest(output: Path, job: Mapping[str, Any]) -> None:
    """Write the manifest of a new output; of an old one, check that its job is the same.

    Raises:
        ValueError: It is another, or the folder has something else.
    """
    path = output / MANIFEST_FILE
    if not path.is_file():
        if any((output / "parts").glob("[0-9]*")):
            raise ValueError(f"{output} has parts, but no {MANIFEST_FILE}; choose another --output.")
        with replace_file(path) as file:
            file.write(json.dumps(job, indent=1).encode() + b"\n")
        return
    try:
        before = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); choose another --output.") from error
    differences = _differences(before, job)
    if differences:
        more = f", and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ValueError(
            f"{output} has results of another job, which differs in {'; '.join(differences[:_SHOWN])}{more}. Go on "
            "with the same model, settings and pictures as before, or choose another --output."
        )


def _differences(before: Any, now: Mapping[str, Any]) -> list[str]:
    compared = ("pictures", "settings", "weights", "config")
    jobs = before if isinstance(before, dict) else {}, json.loads(json.dumps(now))
    old, new = (_flatten({key: job.get(key) for key in compared}) for job in jobs)
    return [
        f"{key.removeprefix('config.').removeprefix('settings.')} (was {old.get(key)!r}, now {new.get(key)!r})"
        for key in sorted(old.keys() | new.keys(), key=lambda key: (compared.index(key.partition(".")[0]), key))
        if old.get(key) != new.get(key)
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
