from pathlib import Path

import pytest

from tools.evaluate_by_group import group_images, markdown_table, read_kinds

RECORDS = [{"file_name": f"folder/{name}.png", "image_id": i} for i, name in enumerate("abc")]


def test_images_are_sorted_by_kind():
    kinds = [{"file": "a.png", "kind": "x"}, {"file": "c.png", "kind": "x"}, {"file": "elsewhere/b.png", "kind": "y"}]

    assert group_images(RECORDS, kinds) == {"all": [0, 1, 2], "x": [0, 2], "y": [1]}


def test_an_image_without_a_kind_is_an_error():
    with pytest.raises(ValueError, match=r"no entry for b.png; it has 1, such as a.png"):
        group_images(RECORDS, [{"file": "a.png", "kind": "x"}])


@pytest.mark.parametrize("content", ["{", '{"a.png": "x"}', '[{"file": "a.png"}]', "[1]", "1"])
def test_a_file_that_is_no_list_of_kinds_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "kinds.json").write_text(content)
    with pytest.raises(ValueError, match=r'kinds.json is no JSON list of {"file": name of an image, "kind"'):
        read_kinds(tmp_path / "kinds.json")


def test_the_table_has_a_row_a_group_and_a_column_a_metric():
    metrics = {"all": {"AP": 12.345, "mIoU": 50.0}, "x": {"AP": float("nan"), "mIoU": 1.25}}
    lines = markdown_table({"all": [1, 2, 3], "x": [2]}, metrics).splitlines()

    assert lines[0] == "| images | number | mask AP | mIoU |"
    assert lines[2:] == ["| all | 3 | 12.3 | 50.0 |", "| x | 1 | nan | 1.2 |"]
