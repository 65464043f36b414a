from pathlib import Path

import pytest

from mask2former.data.datasets.formats.palette import looks_like_palette, read_palette


@pytest.mark.parametrize(
    "text",
    [
        "128 64 128 main road\n0 0 142 car\n",
        "name,r,g,b\nmain road,128,64,128\ncar,0,0,142\n",
        "# label:color_rgb:parts:actions\nmain road:128,64,128::\ncar:0,0,142::\n",
        "main road 128 64 128\n\ncar\t0\t0\t142",
    ],
)
def test_spellings(tmp_path: Path, text: str) -> None:
    table = tmp_path / "table.txt"
    table.write_text(text)
    palette = read_palette(table)
    assert palette.names == ("main road", "car")
    assert palette.colors == ((128, 64, 128), (0, 0, 142))
    assert looks_like_palette(table)


def test_names_of_columns_that_are_not_known(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("id_name,red_value,green,blue\nmain road,128,64,128\n")
    assert looks_like_palette(table)
    with pytest.raises(ValueError, match=r"line 1: is 'id_name,red_value,green,blue', expected a class and its colour"):
        read_palette(table)


def test_a_list_of_names_is_no_palette(tmp_path: Path) -> None:
    table = tmp_path / "names.txt"
    table.write_text("road\ncar 2\n")
    assert not looks_like_palette(table)
    table.write_text("")
    assert not looks_like_palette(table)
