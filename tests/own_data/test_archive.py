"""Zips of somebody else's making."""

import shutil
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mask2former.data.datasets.faults import DataError
from mask2former.own_data.archive import unpack
from tests.small_disk import disk_of


def pack(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_good(tmp_path: Path) -> None:
    archive = pack(
        tmp_path / "a.zip", **{"own/a.txt": b"1", "own/b/c.txt": b"2", "own/b/": b"", "__MACOSX/own/._a.txt": b""}
    )
    folder = unpack(archive)
    assert folder.name == "own"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {"a.txt", "b", "b/c.txt"}
    (folder / "mark").touch()
    assert (unpack(archive) / "mark").exists()  # not unpacked again


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"])
def test_paths_that_lead_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"which is refused: it leads out of"):
        unpack(pack(tmp_path / "a.zip", **{"b.txt": b"", name: b"x"}))
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.parametrize("name", ["bilder/straße.jpg", "bilder\\straße.jpg"])
def test_names_in_utf8_that_nothing_says_are(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Info-ZIP (``zip`` on Linux) and macOS write them."""
    monkeypatch.setattr(zipfile.ZipInfo, "_encodeFilenameFlags", lambda info: (info.filename.encode(), 0))
    archive = pack(tmp_path / "a.zip", **{name: b"1", "b.txt": b""})
    assert (unpack(archive) / "bilder" / "straße.jpg").read_bytes() == b"1"


def test_links(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="link: is a link, which is refused"):
        unpack(tmp_path / "a.zip")


def test_bombs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"zeros\.png: unpacks from \d+ to 50000000 bytes, which is refused"):
        unpack(pack(tmp_path / "a.zip", **{"zeros.png": bytes(50_000_000)}))


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "a.zip", **{"a.txt": b"1" * 5000})
    with disk_of(1000), pytest.raises(DataError, match=r"a\.zip: cannot be unpacked \(.*File too large"):
        unpack(archive)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(DataError, match=r"a\.zip: needs 0\.0 GB, but 0\.0 GB are free for"):
        unpack(archive)


def test_damage(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", **{"a.txt": bytes(range(256)) * 100})
    content = bytearray(archive.read_bytes())
    content[60] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip: cannot be unpacked"):
        unpack(archive)
    archive.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"cannot be unpacked \(File is not a zip file\)"):
        unpack(archive)
