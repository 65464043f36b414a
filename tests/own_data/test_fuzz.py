"""Whatever a zip, a YAML or a folder holds, finding out what it is ends in entries or in one clear error."""

import json
import random
import shutil
import stat
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mask2former.data.datasets.entry import parse_entry
from mask2former.data.datasets.faults import DataError
from mask2former.own_data.source import Given, find_entries
from tests.brick_data import FORMATS, make_pictures, write_data
from tests.mutations import JUNK, ROUNDS, at_every_path, mutate, mutate_bytes


def outcome(data: Path) -> str:
    """Whether data can be found and, but for what is bad, read; any error that is not the project's own is raised."""
    try:
        for entry in find_entries(Given(data)):
            if entry is not None:
                parse_entry("own", entry | {"SKIP_BAD": True}).load()
    except Exception as error:
        if type(error) not in (DataError, ValueError, FileNotFoundError) or not str(error):
            raise
        return "refused"
    return "read"


def write(folder: Path, form: str) -> None:
    entry = write_data(folder, form, make_pictures(2))
    if form == "id_png":
        (folder / "classes.txt").write_text("\n".join(entry["CLASS_NAMES"]))
    if form == "color_png":
        (folder / "colors.csv").rename(folder / "class_dict.csv")


@pytest.mark.parametrize("form", list(FORMATS))
def test_folders(form: str, tmp_path: Path) -> None:
    write(tmp_path / "whole", form)
    rng = random.Random(form)
    outcomes: Counter[str] = Counter()
    for _ in range(ROUNDS):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / "own")
        mutate(rng.choice(sorted(path for path in folder.rglob("*.*"))), rng)
        outcomes[outcome(folder)] += 1
        shutil.rmtree(folder)
    assert outcomes["read"] > 10


def test_zips(tmp_path: Path) -> None:
    write(tmp_path / "whole", "yolo_seg")
    whole = Path(shutil.make_archive(str(tmp_path / "whole"), "zip", tmp_path / "whole")).read_bytes()
    rng = random.Random(0)
    outcomes: Counter[str] = Counter()
    for i in range(2 * ROUNDS):
        path = tmp_path / f"{i}.zip"
        path.write_bytes(mutate_bytes(whole, rng))
        outcomes[outcome(path)] += 1
        path.unlink()
    assert outcomes["refused"] > ROUNDS


NAMES = [
    "../x",
    "a/../../x",
    "/tmp/x",
    "\\x",
    "..\\x",
    "C:\\x",
    "C:x",
    "",
    ".",
    "..",
    "a\0b",
    "a" * 5000,
    "./x",
    "//x/y",
    "é",
]


@pytest.mark.parametrize("link", [False, True])
def test_names_in_zips(link: bool, tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        path = tmp_path / f"deep/er/{i}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            member = zipfile.ZipInfo("placeholder")
            member.filename = name  # as it is: the constructor would shorten some
            member.external_attr = ((stat.S_IFLNK if link else stat.S_IFREG) | 0o777) << 16
            archive.writestr(member, "/etc")
        before = {file for file in tmp_path.rglob("*") if "cache" not in file.parts}
        assert outcome(path) == "refused", name
        assert {file for file in tmp_path.rglob("*") if "cache" not in file.parts} == before, name
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_symlink()]


@pytest.mark.parametrize("several", [False, True])
def test_yolo_yaml(several: bool, tmp_path: Path) -> None:
    write(tmp_path, "yolo_seg")
    (tmp_path / "list.txt").write_text("images/p00.png\n")
    content = {"path": ".", "train": ["images", "list.txt"] if several else "images", "val": "images", "nc": 2}
    content["names"] = {0: "brick", 1: "tile"} if several else ["brick", "tile"]
    for where, changed in at_every_path(content, [junk for junk in JUNK if junk != 10**400]):
        (tmp_path / "data.yaml").write_text(json.dumps(changed))
        try:
            outcome(tmp_path / "data.yaml")
        except Exception as error:
            raise AssertionError(where) from error
    rng = random.Random(0)
    good = yaml.safe_dump(content).encode()
    for _ in range(2 * ROUNDS):
        (tmp_path / "data.yaml").write_bytes(mutate_bytes(good, rng))
        outcome(tmp_path / "data.yaml")
        (tmp_path / "list.txt").write_bytes(mutate_bytes(b"images/p00.png\nimages/p01.png\n", rng))
        (tmp_path / "data.yaml").write_text("names: [a, b]\ntrain: list.txt\n")
        outcome(tmp_path / "data.yaml")
