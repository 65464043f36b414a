"""Finding the configuration and the weights of what a user calls a model."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from mask2former.engine.setup import finish_config, load_config, warn_of_starting_weights
from mask2former.export import is_exported
from mask2former.home import expand_home
from mask2former.inference import huggingface
from mask2former.weights import find_entry, find_weights, installed_file, parse_repository, suggest_names

__all__ = ["model_config"]

_CONFIG_SUFFIXES = {".yaml", ".yml"}


def model_config(model: str | Path, weights: str | Path | None = None, opts: Sequence[str] = ()) -> CfgNode:
    """Find the configuration of a model.

    Args:
        model: a configuration (``.yaml``); a name of the zoo; a checkpoint of the zoo, or one with its ``config.yaml``
            beside it, as training leaves it; the output folder of a training; a folder of Hugging Face's
            ``save_pretrained``; or "<owner>/<name>" at Hugging Face, with or without ``hf://``.
        weights: replaces the weights that go with it; all that :func:`~mask2former.weights.find_weights` knows.
        opts: ``KEY VALUE`` pairs that change the configuration.

    Returns:
        The frozen configuration, with ``MODEL.WEIGHTS``.

    Raises:
        FileNotFoundError: the model, its configuration or its weights are not there.
        OSError: it cannot be downloaded.
        ValueError: it is not a model, or ``model`` or ``weights`` is empty.
    """
    if model == "":  # which, as a path, is the working directory
        raise ValueError("model is empty; name one, as mask2former.list_models() lists them, or a file or folder.")
    if weights == "":  # of a variable that is not set, perhaps
        raise ValueError("weights is empty, which names no checkpoint; leave it out for those that go with the model.")
    path = expand_home(model)
    if path.suffix.lower() in _CONFIG_SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(f"there is no configuration {model}; check the path and the working directory.")
        cfg = _load(path, weights, opts)
        if weights is None:
            warn_of_starting_weights(path, cfg, opts)
        return cfg
    if path.is_dir():
        return _config_of_folder(path, weights, opts)
    if is_exported(path):
        raise ValueError(
            f"{path} is an exported file, which predicts and is timed, but has no configuration; give the model that "
            "it was made of."
        )
    if path.is_file():
        return _config_of_checkpoint(path, weights, opts)
    if entry := find_entry(str(model)):
        return _load(installed_file(entry.config), weights or entry.name, opts)
    if repository := parse_repository(str(model)):
        return _config_of_huggingface(huggingface.download_repository(repository), weights, opts)
    raise FileNotFoundError(
        f"there is no model {str(model)!r}: it is neither a file or folder here nor a name in the model zoo (the "
        f"closest are {', '.join(suggest_names(str(model)))}; mask2former.list_models() has all)."
    )


def _load(config: Path, weights: str | Path | None, opts: Sequence[str]) -> CfgNode:
    given = [] if weights is None else ["MODEL.WEIGHTS", str(weights)]
    return load_config(str(config), [*given, *opts])  # in this order: opts win


def _config_of_checkpoint(path: Path, weights: str | Path | None, opts: Sequence[str]) -> CfgNode:
    beside = path.parent / "config.yaml"
    if beside.is_file():
        return _load(beside, weights or path, opts)
    if entry := find_entry(path.name):
        return _load(installed_file(entry.config), weights or path, opts)
    raise FileNotFoundError(
        f"{path} is a checkpoint without a config.yaml beside it, and none of the model zoo's; give the configuration "
        "first: load(CONFIG, weights=CHECKPOINT)."
    )


def _config_of_folder(folder: Path, weights: str | Path | None, opts: Sequence[str]) -> CfgNode:
    if (folder / "config.json").is_file():
        return _config_of_huggingface(folder, weights, opts)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{folder} is a folder without config.yaml (of a training) or config.json (of Hugging Face); it has "
            f"{sorted(path.name for path in folder.iterdir())[:10]}."
        )
    return _load(folder / "config.yaml", weights or find_weights(folder), opts)


def _config_of_huggingface(folder: Path, weights: str | Path | None, opts: Sequence[str]) -> CfgNode:
    cfg = huggingface.read_folder(folder)
    given = [] if weights is None else ["MODEL.WEIGHTS", str(weights)]
    return finish_config(cfg, [*given, *opts])
