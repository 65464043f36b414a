"""Class tables of the official data sets, which are JSON files beside this one in ``tables/``."""

import json
from importlib.resources import files
from typing import Any

from .categories import Category

__all__ = ["read_categories", "read_table"]


def read_table(name: str) -> list[dict[str, Any]]:
    """The entries of ``tables/<name>.json``, in the order of the model's classes."""
    file = files(__package__) / "tables" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def read_categories(name: str) -> list[Category]:
    """The same as categories; entries without "isthing" are things, as in COCO's instance files."""
    return [Category.from_coco(entry) for entry in read_table(name)]
