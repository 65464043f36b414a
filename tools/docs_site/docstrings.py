"""Griffe extension: the few marks of reStructuredText in docstrings become Markdown."""

import ast
import re
import textwrap
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|obj):`~?\.?([^`]+)`")
# Two colons, and the indented lines below.
_LITERAL_BLOCK = re.compile(r"^( *)(.*)::\n\n((?:\1 +.*\n?|\n)+)", re.MULTILINE)


class PlainMarkdown(Extension):
    """Changes the docstrings of everything that is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change one."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """``:func:`name``` becomes code, and an indented block after two colons a fenced one."""
    return _LITERAL_BLOCK.sub(_fence, _ROLE.sub(r"`\1`", text))


def _fence(match: re.Match[str]) -> str:
    indent, sentence, block = match.groups()
    code = textwrap.dedent(block).strip("\n")
    return textwrap.indent(f"{sentence}:\n\n```{_language(code)}\n{code}\n```\n\n", indent)


def _language(code: str) -> str:
    try:
        ast.parse(code)
    except SyntaxError:
        return "text"
    return "python"
