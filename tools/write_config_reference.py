#!/usr/bin/env python
"""Write the tables of docs/configuration.md from mask2former/config.py; run it after a change of either.

python tools/write_config_reference.py

A key's meaning is the comment above it in config.py. Keys of Detectron2 that the configurations set have theirs in
tools/detectron2_keys.json.
"""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config
from mask2former.config import find_value

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "configuration.md"
SOURCE = REPOSITORY / "mask2former" / "config.py"
DETECTRON2_KEYS = REPOSITORY / "tools" / "detectron2_keys.json"
BEGIN = "<!-- Tables written by tools/write_config_reference.py: begin -->\n"
END = "<!-- Tables written by tools/write_config_reference.py: end -->\n"


class Key(NamedTuple):
    """A key of the configuration, or a section, whose default is a ``CfgNode``."""

    name: str
    default: Any
    meaning: str


def main() -> None:
    """Run the command line."""
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
    print(f"{sum(1 for _ in our_keys())} keys -> {PAGE}")


def with_tables(page: str) -> str:
    """The page with today's tables between its markers.

    Raises:
        ValueError: a marker is not there, or a key has no meaning.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{PAGE.name} must have the lines {BEGIN.strip()} and {END.strip()} once each.")
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + write_tables() + END + rest.partition(END)[2]


def write_tables() -> str:
    """Our keys by section, then Detectron2's, as Markdown."""
    sections: dict[str, list[Key]] = {}
    for key in our_keys():
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    notes = {key.name: key.meaning for key in read_comments(SOURCE.read_text("utf-8")) if _is_section(key.default)}
    text = "\n## Mask2Former's keys\n"
    for section, keys in sections.items():
        text += (
            f"\n### {section}\n\n"
            + (f"{_cell(notes[section])}\n\n" if notes.get(section) else "")
            + _table(keys, short=True)
        )
    return text + "\n## Detectron2's keys\n\n" + _table(detectron2_keys())


def our_keys() -> Iterator[Key]:
    """Every key that config.py adds, in its order, with the value that it gets.

    Raises:
        ValueError: a key has no comment.
    """
    cfg = default_config()
    for key in read_comments(SOURCE.read_text("utf-8")):
        value = find_value(cfg, key.name)
        if isinstance(value, CfgNode) and not value.is_new_allowed():
            continue
        if not key.meaning:
            raise ValueError(f"{key.name} has no comment in {SOURCE.name}: write above it what it means.")
        yield key._replace(default=value)


def default_config() -> CfgNode:
    """Detectron2's configuration with our keys."""
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    return cfg


def read_comments(source: str) -> list[Key]:
    """Keys and sections that ``source`` assigns, in its order, each with the comment right above it.

    A default is the assigned expression's text.
    """
    lines = source.splitlines()
    found = []
    for function in ast.parse(source).body:
        short = {"cfg": ""}
        for statement in function.body if isinstance(function, ast.FunctionDef) else ():
            if not isinstance(statement, ast.Assign):
                continue
            (target,) = statement.targets
            if isinstance(target, ast.Name):  # head = cfg.MODEL.SEM_SEG_HEAD
                short[target.id] = _dotted(statement.value, short) + "."
            else:
                comment = _comment_above(lines, statement.lineno)
                found.append(Key(_dotted(target, short), ast.unparse(statement.value), comment))
    return found


def detectron2_keys() -> list[Key]:
    """Keys of Detectron2, its DeepLab included, that some configuration sets or that matter otherwise.

    Raises:
        ValueError: a configuration sets one that has no meaning.
    """
    meanings: dict[str, str] = json.loads(DETECTRON2_KEYS.read_text("utf-8"))
    theirs = get_cfg()
    add_deeplab_config(theirs)
    defaults = dict(_flatten(theirs))
    for file in sorted((REPOSITORY / "configs").rglob("*.yaml")):
        for name, _ in _flatten(yaml.safe_load(file.read_text("utf-8")) or {}):
            if name in defaults and name not in meanings:
                raise ValueError(f"{file.name} sets {name}: say in {DETECTRON2_KEYS.name} what it means.")
    return [Key(name, defaults[name], meaning) for name, meaning in meanings.items()]


def _dotted(node: ast.expr, short: Mapping[str, str]) -> str:
    name, _, rest = ast.unparse(node).partition(".")
    return short[name] + rest


def _comment_above(lines: list[str], number: int) -> str:
    """The block of comments that ends right above a line, counted from 1, as one line."""
    block: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.lstrip().startswith("#"):
            break
        block.insert(0, line.strip().removeprefix("#").strip())
    return " ".join(block)


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _is_section(default: str) -> bool:
    return default.startswith("CN(")


def _table(keys: list[Key], short: bool = False) -> str:
    """A row a key, whose name is ``short`` below its section's heading."""
    lines = ["| key | default | type | meaning |", "|---|---|---|---|"]
    for key in keys:
        name = key.name.rpartition(".")[2] if short else key.name
        lines.append(f"| `{name}` | `{_literal(key.default)}` | {_type(key.default)} | {_cell(key.meaning)} |")
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return "{}" if isinstance(value, Mapping) else repr(value)


def _type(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " of ".join(["list", *sorted({type(entry).__name__ for entry in value})])
    return "" if value is None else "section" if isinstance(value, Mapping) else type(value).__name__


def _cell(text: str) -> str:
    """Text of a comment in a table: keys, file names and what is between quotes become code."""
    code = (
        r'(?<![`\w/(])("[^"\n]*"|[A-Z][A-Z0-9]*(?:[_.][A-Z0-9_.]*[A-Z0-9])+|\w+_\*\w*|[\w/]+\.(?:md|pth|py))(?![`\w])'
    )
    marked = text if "](" in text or "`" in text else re.sub(code, r"`\1`", text)
    return marked.replace("|", "\\|")


if __name__ == "__main__":
    main()
