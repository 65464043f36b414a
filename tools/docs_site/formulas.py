"""MkDocs hook: formulas between dollars become MathML, which browsers draw themselves; no script is needed."""

import re

from latex2mathml.converter import convert
from pages import outside_code

_FORMULA = re.compile(
    r"`[^`\n]*`|\$\$(?P<block>.+?)\$\$|(?<![\w$])\$(?P<inline>[^$\s](?:[^$]*?[^$\s])?)\$(?!\w)", re.DOTALL
)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Convert the formulas of a page."""
    return outside_code(markdown, lambda text: _FORMULA.sub(_convert, text))


def _convert(match: re.Match[str]) -> str:
    if match["block"]:
        return f"\n{convert(match['block'].strip(), display='block')}\n"
    return convert(match["inline"]) if match["inline"] else match[0]
