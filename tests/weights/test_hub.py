"""Files of Hugging Face repositories, with a stand-in for its server."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from mask2former.weights.hub import Repository, parse_repository

hub = pytest.importorskip("huggingface_hub")

Serve = Callable[..., list[tuple[str, str, str | None]]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serves local files by name; returns what is asked for."""

    def start(**files: Path) -> list[tuple[str, str, str | None]]:
        asked: list[tuple[str, str, str | None]] = []

        def fetch(repository: str, name: str, revision: str | None = None) -> str:
            asked.append((repository, name, revision))
            if name.replace(".", "_") not in files:
                raise hub.errors.EntryNotFoundError(name)
            return str(files[name.replace(".", "_")])

        monkeypatch.setattr(hub, "hf_hub_download", fetch)
        return asked

    return start


def test_safetensors_go_first(serve: Serve, tmp_path: Path) -> None:
    files = {"model_safetensors": tmp_path / "a", "pytorch_model_bin": tmp_path / "b"}
    asked = serve(**files)
    assert Repository("a/b", "v1").weights() == tmp_path / "a"
    assert asked == [("a/b", "model.safetensors", "v1")]
    del files["model_safetensors"]
    asked = serve(**files)
    assert Repository("a/b").weights() == tmp_path / "b"
    assert asked == [("a/b", "model.safetensors", None), ("a/b", "pytorch_model.bin", None)]


def test_a_named_file(serve: Serve, tmp_path: Path) -> None:
    serve(best_pth=tmp_path / "best.pth")
    assert Repository("a/b", file="best.pth").weights() == tmp_path / "best.pth"
    with pytest.raises(
        FileNotFoundError, match=r"a/b at Hugging Face has no other\.pth\. Name the file as hf://a/b/<fi"
    ):
        Repository("a/b", file="other.pth").weights()


def test_repository_without_weights(serve: Serve) -> None:
    serve()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors or pytorch_model\.bin\. .*max_shard_size"):
        Repository("a/b").weights()


def test_a_large_file_is_checked_against_its_name_in_the_cache(serve: Serve, tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.parent.mkdir()
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    serve(model_safetensors=link)
    blob.write_bytes(b"weights")
    assert Repository("a/b").weights() == link
    blob.write_bytes(b"altered")
    with pytest.raises(ValueError, match=r"model\.safetensors of a/b at Hugging Face has SHA-256 .* removed"):
        Repository("a/b").weights()
    assert not blob.exists()


class TestOffline:
    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def fail(repository: str, name: str, revision: str | None = None) -> str:
            if name == "pytorch_model.bin":
                return str(tmp_path / "cached.bin")
            raise hub.errors.LocalEntryNotFoundError("no connection\nmore lines")

        monkeypatch.setattr(hub, "hf_hub_download", fail)

    def test_it_is_not_taken_for_an_absent_file(self) -> None:
        with pytest.raises(OSError, match=r"a/b cannot be downloaded from Hugging Face \(no connection\)\. Check"):
            Repository("a/b").weights()

    def test_absence_is_remembered(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: hub._CACHED_NO_EXIST)
        assert Repository("a/b").weights() == tmp_path / "cached.bin"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("a/b", Repository("a/b")),
        ("hf://a/b@v/c/d.pth", Repository("a/b", "v", "c/d.pth")),
        ("hf://a/b.pth", Repository("a/b.pth")),
        ("a/b/c.pth", None),
        ("output/model_best.pth", None),
        ("output/model.pt2", None),
        ("a/b@v", None),
        ("https://a/b", None),
        ("hf://a", None),
    ],
)
def test_addresses(address: str, expected: Repository | None) -> None:
    assert parse_repository(address) == expected
