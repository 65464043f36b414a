"""docs/configuration.md says what config.py says."""

import re

import pytest
import write_config_reference
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from write_config_reference import BEGIN, END, PAGE, default_config, our_keys, read_comments, with_tables

SOURCE = """
def add(cfg):
    cfg.MODEL.PART = CN()
    part = cfg.MODEL.PART
    # How wide, of two
    # lines (official).
    part.WIDTH = 3

    # Of nothing.

    part.BARE = "a"
"""


def test_the_page_is_not_stale() -> None:
    page = PAGE.read_text("utf-8")
    assert with_tables(page) == page, "run python tools/write_config_reference.py"


def leaves(node: CfgNode, prefix: str = "") -> dict[str, object]:
    """Values by their dotted keys."""
    found: dict[str, object] = {}
    for name, value in node.items():
        is_section = isinstance(value, CfgNode) and not value.is_new_allowed()
        found |= leaves(value, f"{prefix}{name}.") if is_section else {prefix + name: value}
    return found


def test_every_key_is_there_with_its_default() -> None:
    theirs = get_cfg()
    add_deeplab_config(theirs)
    added = {name: value for name, value in leaves(default_config()).items() if name not in leaves(theirs)}
    assert {key.name: key.default for key in our_keys()} == added


def test_a_row() -> None:
    text = PAGE.read_text("utf-8")
    section = text[text.index("### MODEL.MASK_FORMER\n") : text.index("### MODEL.MASK_FORMER.TEST\n")]
    assert re.search(r"\| `NUM_OBJECT_QUERIES` \| `100` \| int \| Queries: the most segments that ", section)
    assert "| `SOLVER.BASE_LR` | `0.001` | float | learning rate, " in text


def test_comments_are_those_right_above() -> None:
    assert read_comments(SOURCE) == [
        ("MODEL.PART", "CN()", ""),
        ("MODEL.PART.WIDTH", "3", "How wide, of two lines (official)."),
        ("MODEL.PART.BARE", "'a'", ""),
    ]


def test_a_key_without_a_comment_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    source = tmp_path / "config.py"
    source.write_text("def add(cfg):\n    cfg.INPUT.IMAGE_SIZE = 1024\n")
    monkeypatch.setattr(write_config_reference, "SOURCE", source)
    with pytest.raises(ValueError, match=r"INPUT\.IMAGE_SIZE has no comment in config\.py: write above it"):
        list(our_keys())


def test_a_set_key_of_detectron2_without_a_meaning_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    keys = tmp_path / "detectron2_keys.json"
    keys.write_text("{}")
    monkeypatch.setattr(write_config_reference, "DETECTRON2_KEYS", keys)
    with pytest.raises(ValueError, match=r"\.yaml sets [A-Z0-9_.]+: say in detectron2_keys\.json what it means"):
        write_config_reference.detectron2_keys()


def test_markers_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"configuration\.md must have the lines .*begin.* and .*end.* once each"):
        with_tables(BEGIN + "no end")
    assert with_tables(f"before\n{BEGIN}old\n{END}after\n").startswith(f"before\n{BEGIN}\n## Mask2Former's keys")
