"""Every YAML file under configs/, against what the official release's files of the same name resolve to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config

CONFIGS = Path(__file__).parents[1] / "configs"
ASSETS = Path(__file__).parent / "assets"
OFFICIAL_DEFAULTS: dict[str, Any] = json.loads((ASSETS / "official_config_defaults.json").read_text())
OFFICIAL_CONFIGS: dict[str, dict[str, Any]] = json.loads((ASSETS / "official_configs.json").read_text())
ALL_FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


class UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a mapping with a key twice, which YAML forbids and PyYAML lets pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.YAMLError(f"a key stands twice among {keys}, {node.start_mark}")
        return super().construct_mapping(node, deep)


def default_config() -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    return cfg


def flat(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """``{"MODEL.WEIGHTS": ...}`` with lists for tuples, as JSON has them."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = list(value) if isinstance(value, tuple) else value
    return leaves


def published_millions(name: str) -> int:
    """Parameters of a model as the paper's tables give them, by the backbone in the file's name."""
    sizes = {"R50": 44, "R101": 63, "swin_tiny": 47, "swin_small": 69, "swin_base": 107, "swin_large": 216}
    return next(size for backbone, size in sizes.items() if backbone in name)


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    return flat(default_config())


def test_defaults_are_the_official_ones(defaults: dict[str, Any]) -> None:
    assert {key: defaults.get(key, "missing") for key in OFFICIAL_DEFAULTS} == OFFICIAL_DEFAULTS


def test_adding_the_keys_twice_changes_nothing() -> None:
    cfg = default_config()
    cfg.MODEL.MASK_FORMER.NHEADS = 4
    add_maskformer2_config(cfg)
    assert cfg.MODEL.MASK_FORMER.NHEADS == 4


def test_deeplab_keys_may_have_been_added_before() -> None:
    cfg = get_cfg()
    add_deeplab_config(cfg)  # as the official scripts do
    cfg.SOLVER.POLY_LR_POWER = 0.5
    add_maskformer2_config(cfg)
    assert cfg.SOLVER.POLY_LR_POWER == 0.5


def test_every_official_file_is_there() -> None:
    assert len(OFFICIAL_CONFIGS) == 57
    assert set(OFFICIAL_CONFIGS) <= set(ALL_FILES)


@pytest.mark.parametrize("name", OFFICIAL_CONFIGS)
def test_official_file_resolves_to_the_official_values(name: str, defaults: dict[str, Any]) -> None:
    cfg = default_config()
    cfg.merge_from_file(str(CONFIGS / name), allow_unsafe=False)
    assert {key: value for key, value in flat(cfg).items() if value != defaults[key]} == OFFICIAL_CONFIGS[name]


@pytest.mark.parametrize("name", [name for name in OFFICIAL_CONFIGS if "Base-" not in name])
def test_official_model_can_be_built(name: str) -> None:
    cfg = default_config()
    cfg.merge_from_file(str(CONFIGS / name), allow_unsafe=False)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(published_millions(name), abs=0.6)


@pytest.mark.parametrize("name", ALL_FILES)
def test_file_is_safe_and_known(name: str) -> None:
    assert isinstance(yaml.load((CONFIGS / name).read_text(), UniqueKeyLoader), dict)
    default_config().merge_from_file(str(CONFIGS / name), allow_unsafe=False)


def test_a_key_that_stands_twice_is_noticed() -> None:
    with pytest.raises(yaml.YAMLError, match=r"twice among \['A', 'A'\]"):
        yaml.load("MODEL:\n  A: 1\n  A: 2\n", UniqueKeyLoader)
