"""The page: sections of HTML around what others have made."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

__all__ = ["PairOfPictures", "page", "pictures", "section", "tiles"]


@dataclass(frozen=True)
class PairOfPictures:
    """A prediction beside its truth.

    Attributes:
        name: Of the image.
        note: Below it.
        predicted: Address of a picture.
        true: Address of a picture.
    """

    name: str
    note: str
    predicted: str
    true: str


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document, which needs no other file."""
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{''.join(sections)}</main></body></html>\n"
    )


def section(title: str, *content: str, note: str = "") -> str:
    """A section with a heading; "" if it has no content."""
    inside = "".join(content)
    if not inside:
        return ""
    explained = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{inside}</section>\n"


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values that are read first."""
    return (
        '<dl class="tiles">'
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
        + "</dl>"
    )


def pictures(pairs: Sequence[PairOfPictures]) -> str:
    """Pairs of pictures, each under the name of its image."""
    return "".join(
        f'<figure class="pair"><figcaption><b>{escape(pair.name)}</b> {escape(pair.note)}</figcaption>'
        f'<div><img alt="prediction" src="{pair.predicted}"><img alt="truth" src="{pair.true}"></div></figure>'
        for pair in pairs
    )
