"""What the documentation names is there: files, configuration keys, parameters."""

import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import device

from mask2former import add_maskformer2_config

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ["configs", "datasets", "demo", "docs", "tools"]
DOCUMENTS = [
    path.relative_to(REPOSITORY).as_posix()
    for path in sorted([*REPOSITORY.glob("*.md"), *(p for name in FOLDERS for p in (REPOSITORY / name).rglob("*.md"))])
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    document = REPOSITORY / name
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL))
    files = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith(("#", "mailto:"))]
    assert [file for file in files if not (document.parent / file).exists()] == []


@pytest.fixture(scope="module")
def official() -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    file = REPOSITORY / "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
    cfg.merge_from_file(str(file), allow_unsafe=False)
    return cfg


def read_table() -> list[list[list[str]]]:
    """Rows of docs/architecture.md's table: what stands in backticks in each column."""
    lines = (REPOSITORY / "docs/architecture.md").read_text().splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|") and not line.startswith("|---")]
    return [[re.findall(r"`([^`]+)`", cell) for cell in row] for row in rows[1:]]


def test_table_of_the_paper_s_words(official: CfgNode) -> None:
    with device("meta"):
        names = list(META_ARCH_REGISTRY.get("MaskFormer")(official).state_dict())
    rows = read_table()
    assert len(rows) > 8
    for _, paths, keys, prefixes in rows:
        assert [path for path in paths if not (REPOSITORY / "mask2former" / path).exists()] == []
        assert all(has_key(official.MODEL, key) for key in keys)
        assert [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)] == []


def has_key(node: CfgNode, key: str) -> bool:
    """Whether a dotted key exists."""
    for part in key.split("."):
        if part not in node:
            return False
        node = node[part]
    return True


@pytest.mark.parametrize("mode", ["auto", "reference", "jit"])
def test_readme_tells_every_mode_of_the_operator(mode: str) -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert f"`{mode}`" in text[text.index("### The compiled operator") :]


def test_every_tool_is_listed() -> None:
    text = (REPOSITORY / "tools/README.md").read_text()
    tools = {path.name for path in (REPOSITORY / "tools").glob("*.py") if "__main__" in path.read_text()}
    assert {name for name in tools if f"`{name}`" not in text} == set()
    assert set(re.findall(r"^\| `(\w+\.py)`", text, flags=re.MULTILINE)) == tools
