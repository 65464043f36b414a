import os
from pathlib import Path

import pytest

from mask2former.durable_files import remove_leftovers, replace_file, saved_bytes, write_file
from tests.small_disk import disk_of


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replace_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_contents_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        calls.append("fsync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        calls.append("replace")
        replace(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("cannot tell which file a descriptor is of")
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with replace_file(tmp_path / "a.txt") as file:
        file.write(b"new")
    assert calls == ["fsync a.txt.part", "replace", f"fsync {tmp_path.name}"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with replace_file(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_leftovers_of_the_named_files_are_removed(tmp_path: Path) -> None:
    for name in ("model_1.pth", "model_2.pth.part", "last.part", "video.mp4.part"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "*.pth", "last")
    assert {file.name for file in tmp_path.iterdir()} == {"model_1.pth", "video.mp4.part"}


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with disk_of(1000), pytest.raises(OSError, match=r"File too large: '.*/a\.txt'"), replace_file(path) as file:
        file.write(bytes(1001))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [11, 100_000])  # one that Python writes when the file is closed, and one at once
def test_a_full_disk_leaves_no_half_of_a_file(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_file(path, b"0123456789")
    assert path.read_bytes() == b"0123456789"
    message = r"a\.txt: cannot be written \(File too large\); is there space, and may you write there\?"
    with disk_of(10), pytest.raises(OSError, match=message):
        write_file(path, bytes(size))
    assert not list(tmp_path.iterdir())


def test_a_file_that_may_not_be_written_stays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError, match=r"a\.txt: cannot be written \(Is a directory\)"):
        write_file(tmp_path / "a.txt", b"")
    assert (tmp_path / "a.txt").is_dir()


def test_what_would_be_written() -> None:
    assert saved_bytes(lambda file: file.write(b"whole")) == b"whole"
