"""``import mask2former as m2f``: what is there, and what importing it costs."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

import mask2former as m2f
from mask2former import api
from mask2former.inference import segmenter
from mask2former.modeling import MaskFormer
from tests.tiny_model import photograph, tiny_config  # noqa: F401


def test_names_are_at_the_top() -> None:
    for name in ("load", "list_models", "Segmenter", "Result"):
        assert getattr(m2f, name) is getattr(api, name)
        assert name in m2f.__all__
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = m2f.laod


def test_completion_offers_what_was_not_imported_yet() -> None:
    code = "import mask2former as m2f; assert {'load', *m2f.__all__} <= set(dir(m2f)), dir(m2f)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_everything_public_is_documented() -> None:
    for name in api.__all__:
        assert inspect.getdoc(getattr(api, name)), name
    for method in ("predict", "stream"):
        assert "batch_size" in inspect.getdoc(getattr(api.Segmenter, method))


def test_import_is_cheap_and_needs_no_compiled_operator() -> None:
    code = (
        "import sys, mask2former as m2f\n"
        "import torch\n"
        "loaded = [name for name in sys.modules if name.startswith(('mask2former.inference', 'mask2former.engine'))]\n"
        "assert not loaded, loaded\n"
        "m2f.load\n"
        "from mask2former.ops import _library\n"
        "assert _library._is_loaded is None\n"
        "assert 'transformers' not in sys.modules and 'huggingface_hub' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_optimize_stands_for_configuration_keys(tiny_config: Path) -> None:  # noqa: F811
    model = m2f.load(tiny_config, optimize=["bfloat16"])
    assert model.cfg.MODEL.INFERENCE.OPTIMIZE
    assert model.cfg.MODEL.INFERENCE.DTYPE == "bfloat16"
    assert model.model.backbone.stem.conv1.weight.dtype is torch.bfloat16
    with pytest.raises(ValueError, match="optimize is 'speed', expected True, False or some of bfloat16, compile, "):
        m2f.load(tiny_config, optimize="speed")


@META_ARCH_REGISTRY.register()
class MaskFormerOfAProject(MaskFormer):
    """May do what a copy of its parts would not."""


def test_a_model_that_another_thread_loads_does_not_lend_its_classes(
    tiny_config: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The data sets of all models that `mask2former train --data` has trained have the same names."""

    def write(*names: str) -> Path:
        entry = {"FORMAT": "id_png", "IMAGES": "i", "INSTANCES": "i", "CLASSES": "c", "THINGS": [names[0]]}
        data = {"TRAIN": ["own_train"], "TEST": [], "CUSTOM": {"own_train": {**entry, "CLASS_NAMES": names}}}
        content = yaml.safe_load(tiny_config.read_text())
        (tmp_path / f"{names[0]}.yaml").write_text(yaml.safe_dump({**content, "DATASETS": data}))
        return tmp_path / f"{names[0]}.yaml"

    first, second = write("cat", "grass", "sky"), write("cell", "dish", "glass")
    other = Thread(target=lambda: m2f.load(second))

    def build_while_another_is_loaded(cfg: CfgNode) -> Any:
        if not other.ident:
            other.start()
            other.join(2)  # in vain, for it waits
        return build(cfg)

    build = segmenter._build
    monkeypatch.setattr(segmenter, "_build", build_while_another_is_loaded)
    model = m2f.load(first)
    other.join()
    assert model.metadata.thing_classes == model.model.metadata.thing_classes == ["cat"]


@pytest.mark.parametrize(
    ("optimize", "opts", "expected"),
    [
        (None, [], True),
        (False, [], False),
        (None, ["MODEL.INFERENCE.OPTIMIZE", "False"], False),
        (None, ["MODEL.META_ARCHITECTURE", "MaskFormerOfAProject"], False),
        (True, ["MODEL.META_ARCHITECTURE", "MaskFormerOfAProject"], True),
    ],
)
def test_models_of_this_package_are_optimized(
    tiny_config: Path,  # noqa: F811
    optimize: bool | None,
    opts: list[str],
    expected: bool,
) -> None:
    assert _is_optimized(m2f.load(tiny_config, optimize=optimize, opts=opts)) == expected


@pytest.mark.parametrize(
    ("device", "cuda", "expected"), [("cuda", "13.0", True), ("cuda", None, False), ("mps", None, False)]
)
def test_only_on_known_devices(
    tiny_config: Path,  # noqa: F811
    device: str,
    cuda: str | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MaskFormer, "device", torch.device(device))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "Event", object)  # of which builds for the CPU make none
    assert _is_optimized(m2f.load(tiny_config)) == expected


def _is_optimized(segmenter: m2f.Segmenter) -> bool:
    return "run_network" in vars(segmenter.model)


def test_optimized_model_predicts_the_same(tiny_config: Path, photograph: np.ndarray) -> None:  # noqa: F811
    plain, fast = (m2f.load(tiny_config, optimize=optimize) for optimize in (False, True))
    expected = plain.predict(photograph, task="semantic").semantic.scores
    np.testing.assert_allclose(fast.predict(photograph, task="semantic").semantic.scores, expected, atol=1e-4)


def test_documented_names_exist(repository: Path) -> None:
    page = (repository / "docs" / "api.md").read_text()
    of_result = set(re.findall(r"result\.(\w+)", page))
    assert of_result >= {"panoptic", "instances", "semantic", "to_coco", "to_supervision", "draw", "save"}
    known = {*dir(api.Result), *api.Result.__dataclass_fields__}
    assert not of_result - known
    assert all(hasattr(api.Segmenter, name) for name in re.findall(r"model\.([a-z]\w+)\(", page))
    arguments = inspect.signature(api.Segmenter.predict).parameters
    assert all(f"`{name}`" in page for name in arguments if name not in ("self", "images"))
