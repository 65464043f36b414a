"""A configuration as a YAML file that people can read: every key with the reason for its value."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mask2former.durable_files import write_file
from mask2former.own_data.settings import Choice

__all__ = ["write_config"]

_WIDTH = 118


def write_config(path: Path, base: str, choices: Sequence[Choice], header: str) -> None:
    """Write a configuration file.

    Args:
        path: Where to.
        base: The file that it is based on.
        choices: Keys, values and reasons.
        header: A comment at the top.
    """
    tree: dict[str, Any] = {}
    for choice in choices:
        *parents, leaf = choice.key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = choice
    lines = [*_comment(header, ""), f"_BASE_: {_inline(base)}", *_lines(tree, "")]
    write_file(path, ("\n".join(lines) + "\n").encode())


def _lines(tree: dict[str, Any], indent: str) -> list[str]:
    lines, reason = [], ""
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
            continue
        if value.reason != reason:  # one comment for keys that belong together
            lines += _comment(value.reason, indent)
        reason = value.reason
        if isinstance(value.value, dict):
            block = yaml.safe_dump(value.value, sort_keys=False, allow_unicode=True, width=10**6)
            lines += [f"{indent}{key}:", textwrap.indent(block.rstrip(), indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {_inline(value.value)}")
    return lines


def _comment(text: str, indent: str) -> list[str]:
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, _WIDTH - len(indent) - 2)]
    return [f"{indent}# {line}" for line in lines]


def _inline(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip().removesuffix("...").strip()
