"""Reading YAML configurations as data: nothing in a file is run."""

import io
import re
from collections.abc import Sequence
from typing import IO, Any

import yaml
from detectron2.config import CfgNode

__all__ = ["UniqueKeyLoader", "merge_opts", "merge_yaml", "with_opts"]

# The one expression in official configurations, sizes to train at: "[int(x * 0.1 * 1024) for x in range(5, 21)]"
_MULTIPLES = re.compile(r"\[int\(x \* (\d+\.\d+) \* (\d+)\) for x in range\((\d+), (\d+)\)\]")


def merge_yaml(cfg: CfgNode, config_file: str) -> None:
    """Merge a configuration file and what it is based on into ``cfg``.

    The official files ask YAML's reader to evaluate a list of sizes. That expression, and no other, is understood.

    Raises:
        FileNotFoundError: if it, or what it is based on, is not there.
        ValueError: if a file asks to run any other Python code, is not YAML, or has an unknown key or an invalid value.
    """
    try:
        _merge(cfg, config_file)
    except yaml.constructor.ConstructorError as e:
        raise ValueError(
            f"{config_file} (or its _BASE_) has a YAML tag that is not plain data: {e.problem}{e.problem_mark}\n"
            "Such a tag can run any code, so it is not read; write the resulting value out instead."
        ) from e
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as e:  # of the YAML reader, and of CfgNode, which knows KeyError, ValueError and AssertionError
        raise ValueError(f"{config_file} (or its _BASE_) is not a valid configuration: {_reason(e)}") from e


def merge_opts(cfg: CfgNode, opts: Sequence[Any]) -> None:
    """Merge ``KEY VALUE`` pairs, as at the end of a command line, into ``cfg``.

    Raises:
        ValueError: if a key is unknown or has no value, or a value has another type than the key's default.
    """
    if len(opts) % 2:
        raise ValueError(f"{opts[-1]} has no value; keys of the configuration come in pairs, as KEY VALUE.")
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, KeyError, ValueError) as e:
        raise ValueError(f"{_reason(e)} (docs/configuration.md lists the keys)") from e


def with_opts(cfg: CfgNode, opts: Sequence[Any]) -> CfgNode:
    """A frozen copy of ``cfg`` with ``KEY VALUE`` pairs merged, as by :func:`merge_opts`."""
    cfg = cfg.clone()
    cfg.defrost()
    merge_opts(cfg, opts)
    cfg.freeze()
    return cfg


def _reason(error: Exception) -> object:
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return str(message) or type(error).__name__


def _merge(cfg: CfgNode, config_file: str) -> None:
    content = CfgNode(_File.load_yaml_with_base(config_file))
    _check_sections(content, cfg)
    if content.get("VERSION", cfg.VERSION) == cfg.VERSION:
        cfg.merge_from_other_cfg(content)
    else:
        cfg.merge_from_file(config_file, allow_unsafe=False)  # Detectron2 knows older versions


def _check_sections(content: CfgNode, known: CfgNode, prefix: str = "") -> None:
    """Tell a section without keys by its name; CfgNode's error would print all of the keys that it may have."""
    for key, value in content.items():
        if not isinstance(known.get(key), CfgNode):
            continue
        if not isinstance(value, CfgNode):
            raise ValueError(f"{prefix}{key} is {value}, expected keys below it; leave it out for the defaults.")
        _check_sections(value, known[key], f"{prefix}{key}.")


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key with two values, of which ``yaml.safe_load`` takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            first = seen.setdefault(key.value, value)
            if first is not value and yaml.serialize(first) != yaml.serialize(value):
                line = key.start_mark.line + 1
                raise ValueError(f"line {line} has {key.value} again, with another value; keep one, or join them.")
        return super().construct_mapping(node, deep)


class _Loader(UniqueKeyLoader):
    """Understands the one expression; what others read with ``yaml.safe_load`` stays as it is."""


class _File(CfgNode):
    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        # What it returns is read by yaml.safe_load.
        with super()._open_cfg(filename) as file:
            content = yaml.load(file, _Loader)
        if not isinstance(content, dict):
            raise ValueError(f"{filename} holds {content!r:.50}, expected keys and their values.")
        return io.StringIO(yaml.safe_dump(content))


def _construct_multiples(loader: _Loader, node: yaml.Node) -> list[int]:
    arguments = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    match = _MULTIPLES.fullmatch(str(arguments[0])) if len(arguments) == 1 else None
    if match is None:
        raise yaml.constructor.ConstructorError(None, None, f"{arguments} is code", node.start_mark)
    factor, size, first, end = float(match[1]), *map(int, match.group(2, 3, 4))
    return [int(x * factor * size) for x in range(first, end)]


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _construct_multiples)
