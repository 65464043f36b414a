"""What pictures can be named by."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mask2former.image_io import read_image
from mask2former.inference.many.shards import FileShard, TarShard, digest_shards, find_shards


def names(source: Path, part_size: int = 100, images: Path | None = None) -> list[list[tuple[int | str, str]]]:
    shards = find_shards(source, images, part_size)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    return [[(picture.image_id, picture.name) for picture in shard.pictures()] for shard in shards]


def pack(path: Path, pictures: Path) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        archive.add(pictures, "a")
        for name in ("a/notes.json", "a/._09.png"):  # the second is of macOS, and no picture
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


def test_a_folder(pictures: Path) -> None:
    (pictures / ".hidden.png").touch()
    (pictures / "notes.md").touch()
    first, second, third = names(pictures, part_size=5)
    assert first == [(i, f"{i - 1:02d}.png") for i in range(1, 6)]
    assert third == [(11, "more/10.png"), (12, "more/11.png")]
    assert len(second) == 5


def test_a_list(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("pictures/03.png\n\n  pictures/more/10.png\nabsent.png\n")
    assert names(tmp_path / "some.txt") == [[(1, "pictures/03.png"), (2, "pictures/more/10.png"), (3, "absent.png")]]
    (tmp_path / "elsewhere").mkdir()
    list_file = tmp_path / "elsewhere/some.txt"
    list_file.write_text("03.png")
    (shard,) = find_shards(list_file, pictures, 10)
    assert isinstance(shard, FileShard)
    assert shard.files[0].path == pictures / "03.png"


def test_a_coco_json(pictures: Path, tmp_path: Path) -> None:
    entries = [{"id": 7, "file_name": "02.png"}, {"id": 3, "file_name": "more/11.png"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": entries}))
    assert names(tmp_path / "a.json", 1, pictures) == [[(7, "02.png")], [(3, "more/11.png")]]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_archives(pictures: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "packed").mkdir()
    pack(tmp_path / f"packed/b.{suffix}", pictures / "more")
    pack(tmp_path / f"packed/a.{suffix}", pictures / "more")
    assert names(tmp_path / "packed") == [
        [(f"{stem}.{suffix}/a/{name}.png",) * 2 for name in ("09", "10", "11")] for stem in "ab"
    ]
    assert len(names(tmp_path / f"packed/a.{suffix}")) == 1
    (tmp_path / "list.txt").write_text(f"packed/b.{suffix}\n")
    (shard,) = find_shards(tmp_path / "list.txt", None, 1)
    (picture, *_) = shard.pictures()
    np.testing.assert_array_equal(picture.read(), read_image(pictures / "more/09.png"))


def test_an_archive_that_is_cut_short(pictures: Path, tmp_path: Path) -> None:
    content = pack(tmp_path / "a.tar", pictures).read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: len(content) // 2])
    found = TarShard(0, tmp_path / "a.tar").pictures()
    assert next(found).name.startswith("a.tar/a/")
    with pytest.raises(ValueError, match=r"a\.tar: is damaged after a/.*png \(.*\); what follows is lost"):
        list(found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"has no pictures"),
        ("a.txt", "a.png\nb.tar", "lists archives and pictures"),
        ("a.txt", "b.tar", "lists .*b.tar, which is not there"),
        ("a.csv", "", r"expected a folder, a list of files \(\.txt\), a COCO JSON, or an archive"),
        ("a.json", "[]", 'has no list "images"'),
        ("a.json", '{"images": [{"id": 1, "file_name": "../a.png"}]}', "image 1: names the file .*, which is refused"),
        ("a.json", '{"images": [{"file_name": "a.png"}]}', "image number 1 in the list is .*an id of its own"),
        ("a.json", '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}', "an id of its own"),
    ],
)
def test_what_is_wrong(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_shards(tmp_path / name, None, 10)


def test_folders_that_are_not_clear(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_shards(tmp_path / "absent", None, 10)
    with pytest.raises(ValueError, match="--part-size is 0, expected at least 1"):
        find_shards(pictures, None, 0)
    pack(pictures / "a.tar", pictures / "more")
    with pytest.raises(ValueError, match=r"has pictures .* and archives"):
        find_shards(pictures, None, 10)


def test_the_digest_tells_what_is_in_which_part(pictures: Path) -> None:
    digest = digest_shards(find_shards(pictures, None, 5))
    assert digest == digest_shards(find_shards(pictures, None, 5))
    assert digest != digest_shards(find_shards(pictures, None, 6))
    (pictures / "00.png").rename(pictures / "000.png")
    assert digest != digest_shards(find_shards(pictures, None, 5))


def test_the_digest_tells_archives_by_name_and_size(pictures: Path, tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar", pictures / "more")
    digest = digest_shards(find_shards(archive, None, 5))
    assert digest != digest_shards(find_shards(archive.rename(tmp_path / "b.tar"), None, 5))
    assert digest != digest_shards(find_shards(pack(archive, pictures), None, 5))
    assert digest == digest_shards(find_shards(pack(archive, pictures / "more"), None, 5))
