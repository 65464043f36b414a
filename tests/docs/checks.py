"""Whether a command could be typed: program, options, files, keys, names of models and data sets. Nothing is run."""

import argparse
import functools
import importlib.util
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from setuptools.config.pyprojecttoml import load_file
from torch.distributed.run import get_args_parser as torchrun_parser

from mask2former import add_maskformer2_config, cli
from mask2former.engine.config_files import merge_yaml
from mask2former.weights import zoo
from tests.docs.pages import PROGRAMS, REPOSITORY

# What begins so is in the repository, all else is the reader's.
_OURS = re.compile(
    r"(configs|demo|examples|model_zoo|tools|tests)/.|datasets/\w+\.(py|md)$|\w+\.(py|toml)$|constraints\.txt$"
)
_ZOO_NAME = re.compile(r"(coco|ade20k|cityscapes|mapillary-vistas|nuclei)/(panoptic|instance|semantic)/[\w-]+")
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")


class _ReachedError(Exception):
    """A program has made its parser and would now read its arguments."""


def check(words: list[str], *, complete: bool = True) -> Iterator[str]:
    """Say what is wrong with a command.

    Args:
        words: the program first.
        complete: False for one within a sentence, which may leave out arguments that are required.
    """
    program, *rest = words
    if program not in PROGRAMS:
        yield f"the program {program} is none of {', '.join(PROGRAMS)}: teach it to tests/docs/checks.py"
    elif program == "make":
        yield from _check_make(rest)
    elif program == "pip":
        yield from _check_pip(rest)
    elif program == "torchrun":
        try:
            args = torchrun_parser().parse_args(rest)
        except SystemExit:
            yield "torchrun does not take these options"
        else:
            yield from check(["python", args.training_script, *args.training_script_args], complete=complete)
    elif program == "tools/run_on_arm.sh":  # a folder, and any command
        yield from check([rest[1].removeprefix(".venv/bin/"), *rest[2:]], complete=complete)
    elif program == "sbatch":  # its own options come first, then a script, which gives the rest to train_net.py
        script = next((word for word in rest if word.endswith(".sbatch")), "(none)")
        yield from _check_files(rest)
        if script in rest:
            yield from check(["python", "train_net.py", *rest[rest.index(script) + 1 :]], complete=complete)
        else:
            yield "sbatch needs a script"
    else:
        yield from _check_files(rest)
        yield from _check_arguments(program, rest, complete)


def _check_make(words: list[str]) -> Iterator[str]:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[1].split()
    for word in words:
        name, _, value = word.partition("=")
        if value and not re.search(rf"^{name} [?:]?=", makefile, re.MULTILINE):
            yield f"the Makefile has no variable {name}"
        elif not value and word not in targets:
            yield f"the Makefile has no target {word}"


def _read_packages() -> tuple[set[str], set[str]]:
    """The packages that pyproject.toml names, and its extras."""
    project = load_file(REPOSITORY / "pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(name for names in extras.values() for name in names), "setuptools"]
    return {re.match(r"[\w-]+", name)[0].lower() for name in declared}, set(extras)


def _check_pip(words: list[str]) -> Iterator[str]:
    known, extras = _read_packages()
    yield from _check_files(words)
    for word in words:
        name, wanted = re.match(r"([\w.-]+)(?:\[(.*)\])?", word).groups()
        if name in ("mask2former", "."):
            yield from (
                f"there is no extra {extra}" for extra in (wanted or "").split(",") if extra and extra not in extras
            )
        elif word not in ("install", "constraints.txt") and not word.startswith("-") and name.lower() not in known:
            yield f"pyproject.toml does not name the package {name}"


def _check_files(words: list[str]) -> Iterator[str]:
    for word in words:
        if _OURS.match(word) and not (REPOSITORY / word).exists():
            yield f"there is no {word}"
        if _ZOO_NAME.fullmatch(word) and word not in zoo():
            yield f"the model zoo has no {word}"


def _check_arguments(program: str, words: list[str], complete: bool) -> Iterator[str]:
    found: tuple[argparse.ArgumentParser, list[str]] | None
    if program == "mask2former":
        found = cli.get_parser(), []
    elif not words:
        yield "python needs a script"
        return
    elif words[0] == "-m":
        module = words[1]
        if importlib.util.find_spec(module) is None:
            if module not in _read_packages()[0]:  # such as mkdocs, which not every Python has
                yield f"there is no module {module}"
            return
        if not module.startswith("mask2former"):
            return  # its arguments are another project's
        if importlib.util.find_spec(module).submodule_search_locations:  # a package
            module += ".__main__"
        found, words = find_parser(Path(importlib.util.find_spec(module).origin)), words[2:]
    elif not (REPOSITORY / words[0]).is_file():
        return  # _check_files has said so
    else:
        found, words = find_parser(REPOSITORY / words[0]), words[1:]
    if found is None:
        yield from [f"it takes no arguments: {words}"] if words else []
    else:
        parser, before = found
        yield from (_parse if complete else _check_mention)(parser, [*before, *words])


@functools.cache
def find_parser(path: Path) -> tuple[argparse.ArgumentParser, list[str]] | None:
    """The parser of a program, which is run up to where it would read its arguments; None if it takes none.

    With it, the words that the program itself puts before those that it is given.
    """
    if not re.search(r"\bsys\.argv|\b(parse\w*_args|run_script)\(", path.read_text()):
        return None

    def reach(self: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
        raise _ReachedError(self, list(words or []))

    before = sys.path.copy()
    sys.path.insert(0, str(path.parent))
    parser = argparse.ArgumentParser
    try:
        with (
            patch.object(parser, "parse_args", reach),
            patch.object(parser, "parse_intermixed_args", reach),
            patch.object(sys, "argv", [str(path)]),
        ):
            runpy.run_path(str(path), run_name="__main__")
    except _ReachedError as reached:
        return reached.args
    finally:
        sys.path[:] = before
    raise AssertionError(f"{path} ended without reading its arguments")


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[str]:
    complaints: list[str] = []
    with patch.object(
        argparse.ArgumentParser, "_print_message", lambda _, message, __=None: complaints.append(message)
    ):
        try:
            mixes = any(action.nargs == "*" for action in parser._actions)
            args = (parser.parse_intermixed_args if mixes else parser.parse_args)(words)
        except SystemExit:
            yield complaints[-1].strip()
            return
    yield from _check_config(args)


def _check_config(args: argparse.Namespace) -> Iterator[str]:
    """Whether the keys that are set exist, with values of their types, and the data sets too."""
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    for name in ("config_file", "config", "model"):
        file = str(getattr(args, name, None) or "")
        if file.startswith("configs/") and (REPOSITORY / file).is_file():
            merge_yaml(cfg, str(REPOSITORY / file))
    options = getattr(args, "opts", None) or []
    try:
        cfg.merge_from_list(list(options))
    except (AssertionError, KeyError, ValueError) as error:
        yield f"{' '.join(options)}: {error}"
    yield from _check_data_sets(cfg)


def _check_data_sets(cfg: CfgNode) -> Iterator[str]:
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog and name not in cfg.DATASETS.CUSTOM:
            yield f"there is no data set {name}"


def _check_mention(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[str]:
    """The options and keys that are named exist."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words:
            if words[0] not in action.choices:
                yield f"there is no command {words[0]}"
                return
            parser, words = action.choices[words[0]], words[1:]
            break
    for word in words:
        if word.startswith("--") and word not in parser._option_string_actions:
            yield f"there is no option {word}"
        if _KEY.fullmatch(word):
            yield from _check_key(word)


def _check_key(key: str) -> Iterator[str]:
    node: Any = get_cfg()
    add_maskformer2_config(node)
    for part in key.split("."):
        if part not in node:
            yield f"there is no key {key}"
            return
        node = node[part]
