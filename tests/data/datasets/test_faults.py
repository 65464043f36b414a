"""Each way in which annotation files can be wrong has one clear message, and all of them come at once."""

import base64
import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.data.datasets.entry import parse_entry
from mask2former.data.datasets.faults import DataError, Fault, list_faults
from mask2former.durable_files import saved_bytes
from tests.brick_data import make_pictures, write_data

Change = Callable[[dict[str, Any]], object]

EIGHT_BY_EIGHT = base64.b64encode(saved_bytes(partial(Image.new("L", (8, 8), 255).save, format="png"))).decode()


def write(folder: Path, form: str) -> dict[str, Any]:
    return write_data(folder / "own", form, make_pictures(3))


def faults_of(entry: dict[str, Any]) -> list[str]:
    """Without the folders of the files."""
    with pytest.raises(DataError) as error:
        parse_entry("own", entry).load()
    return [str(fault).replace(str(Path(fault.file).parent) + "/", "", 1) for fault in error.value.faults]


def test_the_first_twenty_are_shown_and_all_are_counted() -> None:
    faults = [Fault("a.json", f"is wrong in way {i}.", "annotation 7", "a.png") for i in range(25)]
    text = list_faults(faults)
    assert text.startswith("25 faults in the data; the first 20:\n  a.json: annotation 7: is wrong in way 0.\n")
    assert text.endswith("is wrong in way 19.")
    assert list_faults(faults[:2]).startswith("2 faults in the data:\n")
    assert str(DataError(faults)).endswith("--skip-bad of a command).")
    of_none = Fault("a.json", "is not JSON.")
    assert "skip" not in str(DataError([of_none]))  # nothing would be left
    assert "skip" in str(DataError([of_none, *faults]))


YOLO = [
    ("7 0 0 1 0 1 1", "has the class 7, expected 0 to 1 (brick, tile)."),
    ("-1 0 0 1 0 1 1", "begins with '-1', expected the number of a class."),
    ("brick 0 0 1 0 1 1", "begins with 'brick', expected the number of a class."),
    ("0 0.5 0.5 0.2 0.2", "has a box, expected a polygon: boxes alone cannot train masks."),
    ("0 0 0 1 0 1", "has 5 coordinates, expected x and y of three points or more."),
    ("0 0 0 1 0 1 1 1", "has 7 coordinates, expected x and y of three points or more."),
    ("0 0 0 30 0 1 1", "has the coordinate 30, expected 0 to 1, a share of the image's width or height."),
    ("0 0 0 nan 0 1 1", "has the coordinate nan, expected 0 to 1, a share of the image's width or height."),
    ("0 0 0 x 0 1 1", "has the coordinate 'x', expected a number."),
    ("0 0 0 0 0 0 0", "covers no pixel of its image of 64 x 48. Coordinates are pixels from the upper left corner."),
]


def test_yolo(data_root: Path) -> None:
    entry = write(data_root, "yolo_seg")
    path = data_root / "own/labels/p01.txt"
    path.write_text("\n".join(["", *(line for line, _ in YOLO), "1 0 0 1.005 0 1 1"]))
    assert faults_of(entry) == [f"p01.txt: line {i}: {message}" for i, (_, message) in enumerate(YOLO, 2)]
    records = {Path(r["file_name"]).name: r for r in parse_entry("own", entry | {"SKIP_BAD": True}).load()}
    assert [annotation["category_id"] for annotation in records["p01.png"]["annotations"]] == [1]
    path.write_bytes(b"\xff\xfe\x00")
    (data_root / "own/labels/p77.txt").write_text("")
    orphan, binary = faults_of(entry)
    assert orphan.startswith("p77.txt: has no image in ")
    assert binary == "p01.txt: is not UTF-8 text (invalid start byte at byte 0). Save it as UTF-8."
    path.write_text("0 0 0 1 0 1 1", "utf-16-le")
    _, wide = faults_of(entry)
    assert wide == "p01.txt: is not UTF-8 text (zero bytes, as UTF-16 has them). Save it as UTF-8."


def test_two_images_with_the_labels_of_one(data_root: Path) -> None:
    entry = write(data_root, "yolo_seg")
    images = data_root / "own/images"
    for name in ("p00.bmp", "unlabelled.bmp", "unlabelled.png"):
        Image.new("RGB", (64, 48)).save(images / name)
    assert faults_of(entry) == [f"p00.png: has the labels of {images}/p00.bmp too. Remove or rename one of them."]
    assert len(parse_entry("own", entry | {"SKIP_BAD": True}).load()) == 5


def test_yolo_with_the_wrong_folder(data_root: Path) -> None:
    entry = write(data_root, "yolo_seg")
    for path in (data_root / "own/labels").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    (message,) = faults_of(entry)
    assert "labels: none of its 3 text files is named like an image of" in message


def first_shape(content: dict[str, Any]) -> dict[str, Any]:
    shape = content["shapes"][0]
    shape.update(shape_type="polygon", points=[[1, 1], [9, 1], [9, 9]])
    return shape


LABELME: list[tuple[Change, str]] = [
    (lambda c: c.update(shapes=None), 'has no list "shapes", expected a file of Labelme.'),
    (lambda c: c.update(imagePath=3), 'has "imagePath" 3, expected the path of its image.'),
    (lambda c: c.update(imagePath="../../../secret.png"), "if they are in another, name that (IMAGES, or --images)"),
    (lambda c: c.update(imagePath="/etc/passwd"), "which is refused: it leads out of the folder of images"),
    (lambda c: c.update(imagePath="..\\..\\x.png"), "which is refused: it leads out of the folder of images"),
    (lambda c: c.update(imagePath="../images/q.png"), "own/images/q.png is not an image (.bmp, "),
    (lambda c: c.update(imageHeight=47), 'has "imageHeight" 47, but the image has 48 pixels'),
    (lambda c: c["shapes"].__setitem__(0, "a"), "shape 1: is 'a', expected an object."),
    (lambda c: first_shape(c).update(label="x"), "shape 1: has the label 'x', expected one of brick, tile."),
    (lambda c: first_shape(c).update(label=["x"]), "shape 1: has the label ['x'], expected one of brick, tile."),
    (lambda c: first_shape(c).update(group_id={}), 'shape 1: has "group_id" {}, expected a number or null.'),
    (lambda c: first_shape(c).update(shape_type="line"), "shape 1: is a 'line', which has no area, expected one of"),
    (lambda c: first_shape(c).update(points=[[1, 2], [3]]), 'shape 1: has wrong "points", expected a list of [x, y]'),
    (lambda c: first_shape(c).update(points=[[1, 2]]), "shape 1: is a polygon of 1 points, expected 3 or more."),
    (lambda c: first_shape(c).update(shape_type="circle"), "shape 1: is a circle of 3 points, expected 2."),
    (
        lambda c: first_shape(c).update(shape_type="mask", points=[[1, 1], [2, 2]], mask="!"),
        'shape 1: has a "mask" that is not a PNG in base64 (',
    ),
    (
        lambda c: first_shape(c).update(shape_type="mask", points=[[60, 40], [67, 47]], mask=EIGHT_BY_EIGHT),
        "shape 1: has a mask at (60, 40) (x, y) that its image of 64 x 48 does not hold.",
    ),
    (
        lambda c: first_shape(c).update(shape_type="mask", points=[[-1, 0], [6, 7]], mask=EIGHT_BY_EIGHT),
        "shape 1: has a mask at (-1, 0) (x, y) that",
    ),
]


@pytest.mark.parametrize(("change", "message"), LABELME)
def test_labelme(data_root: Path, change: Change, message: str) -> None:
    entry = write(data_root, "labelme") | {"CLASS_NAMES": ["brick", "tile"]}
    path = data_root / "own/labelme/p01.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    first, *_ = faults_of(entry)
    assert first.startswith("p01.json: ")
    assert message in first


def test_labelme_without_a_label(data_root: Path) -> None:
    entry = write(data_root, "labelme")
    path = data_root / "own/labelme/p01.json"
    content = json.loads(path.read_text())
    content["shapes"][0]["label"] = ""
    path.write_text(json.dumps(content))
    assert faults_of(entry) == ["p01.json: shape 1: has the label '', expected one of brick, tile."]


def test_labelme_groups_and_circles(data_root: Path) -> None:
    entry = write(data_root, "labelme") | {"CLASS_NAMES": ["brick", "tile"]}
    path = data_root / "own/labelme/p01.json"
    content = json.loads(path.read_text())
    painted = next(shape for shape in content["shapes"] + [None] if shape is None or shape["shape_type"] == "mask")
    circle = {"label": "tile", "shape_type": "circle", "points": [[50, 24], [50, 34]], "group_id": 1}
    square = {"label": "tile", "shape_type": "rectangle", "points": [[2, 2], [8, 8]], "group_id": 1}
    content["shapes"] = [circle, square, {**square, "group_id": None}]
    path.write_text(json.dumps(content))
    records = {Path(r["file_name"]).name: r for r in parse_entry("own", entry).load()}
    group, alone = records["p01.png"]["annotations"]
    assert (len(group["segmentation"]), alone["segmentation"]) == (2, [[2, 2, 8, 2, 8, 8, 2, 8]])
    assert (group["bbox"], alone["bbox"]) == ([2, 2, 58, 32], [2, 2, 6, 6])
    content["shapes"] = [square, {**(painted or square), "label": "tile", "group_id": 1}]
    path.write_text(json.dumps(content))
    records = {Path(r["file_name"]).name: r for r in parse_entry("own", entry).load()}
    assert len(records["p01.png"]["annotations"]) == 1


def test_labelme_keeps_none_of_the_pictures_inside_its_files(data_root: Path) -> None:
    entry = write_data(data_root / "own", "labelme", make_pictures(8))
    picture = "A" * 3_000_000
    for path in (data_root / "own/labelme").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "imageData": picture}))
    source = parse_entry("own", entry).source
    (data_root / "converted").mkdir()
    tracemalloc.start()
    try:
        source.convert(data_root / "converted", None)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(picture)  # of the file that is being read
    finally:
        tracemalloc.stop()


def test_labelme_files_and_images_must_match(data_root: Path) -> None:
    entry = write(data_root, "labelme")
    folder = data_root / "own/labelme"
    (folder / "p00.json").write_text('{"shapes": [')
    (folder / "copy.json").write_text((folder / "p01.json").read_text())
    (folder / "p02.json").unlink()
    assert [text[:60] for text in faults_of(entry)] == [
        "p00.json: is not JSON (Expecting value: line 1 column 13 (ch",
        f"p01.json: is of the image p01.png, as {folder}"[:60],
        "p02.png: is not annotated. Save it in Labelme, without shapes"[:60],
    ]


def box(**change: Any) -> Change:
    return lambda c: c["annotations"][0].update(change)


COCO: list[tuple[Change, str]] = [
    (
        lambda c: c["images"][0].update(file_name="../images/p00.png"),
        "image 1: names the file '../images/p00.png', which",
    ),
    (
        lambda c: c["images"][0].update(file_name="/etc/passwd"),
        "image 1: names the file '/etc/passwd', which is refused",
    ),
    (lambda c: c["images"][0].update(file_name="C:\\x.png"), "image 1: names the file 'C:\\\\x.png', which is refused"),
    (lambda c: c["images"][0].update(file_name=None), "image 1: names the file None, expected a path below"),
    (lambda c: c["images"][0].update(height="48"), "image 1: has \"height\" '48', expected a number of pixels."),
    (lambda c: c["images"][0].update(height=64, width=48), "image 1: says that p00.png is 64 x 48 (height x width)"),
    (lambda c: c["images"][1].update(id="b"), "image b: has the id 'b', expected numbers or texts, and not both."),
    (lambda c: c["images"].append(7), 'image number 4 in the list: is 7, expected an object with an "id".'),
    (lambda c: c["images"][1].update(file_name="p00.png"), 'image 2: p00.png occurs more than once in "images".'),
    (lambda c: c["categories"].append({"id": 1}), "category 1: is {'id': 1}, expected an object with a whole number"),
    (lambda c: c["categories"][0].update(color=[1, 2]), 'category 10: has "color" [1, 2], expected three numbers'),
    (lambda c: c["images"][1].update(id=1), 'image 1: id 1 occurs more than once in "images": p00.png has it too.'),
    (box(iscrowd="0"), "annotation 1: has \"iscrowd\" '0', expected 0 or 1."),
    (lambda c: c["categories"][0].update(isthing="0"), "category 10: has \"isthing\" '0', expected 0 or 1."),
    (lambda c: c["categories"].clear(), 'has no "categories", expected one or more classes.'),
    (box(image_id=[1]), 'annotation 1: has image_id [1], which is not in "images".'),
    (box(segmentation=None), "annotation 1: its segmentation is None, expected a list of polygons or an RLE."),
    (
        box(segmentation=[[1, 2, 3, 4]]),
        "annotation 1: a polygon has 4 coordinates, expected [x, y, x, y, ...] of three",
    ),
    (box(segmentation=[[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]]), "annotation 1: covers no pixel of its image of 64 x 48."),
    (box(segmentation=[[0, 0, 1e7, 0, 9, 9]]), "annotation 1: a polygon has x = 1e+07, far outside of its image"),
    (box(segmentation=[[0, 0, "9", 0, 9, 9]]), "annotation 1: a polygon has the coordinate '9', expected numbers."),
    (
        box(segmentation={"size": [48, 64], "counts": [48 * 64 + 1]}),
        "annotation 1: an RLE has runs of 3073 pixels in all",
    ),
    (box(segmentation={"size": [64, 48], "counts": [9]}), "annotation 1: an RLE is for [64, 48] (height, width), its"),
    (
        box(segmentation={"size": [48, 64], "counts": "0"}),
        "annotation 1: an RLE has runs of 0 pixels in all, its image",
    ),
    (box(segmentation={"size": [48, 64], "counts": "é"}), "annotation 1: an RLE has wrong counts, expected a list of"),
    (box(segmentation={"size": [48, 64], "counts": [-1, 9]}), "annotation 1: an RLE has wrong counts, expected a list"),
]


def write_changed_coco(data_root: Path, change: Change) -> dict[str, Any]:
    entry = write(data_root, "coco_instance")
    path = data_root / "own/coco.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return entry


@pytest.mark.parametrize(("change", "message"), COCO)
def test_coco(data_root: Path, change: Change, message: str) -> None:
    entry = write_changed_coco(data_root, change)
    with pytest.raises(DataError) as error:
        parse_entry("own", entry).load()
    assert message in str(error.value.faults[0])
    assert str(data_root / "own/coco.json") in str(error.value)


def test_images_of_one_id_are_left_out_with_their_annotations(data_root: Path) -> None:
    """Else one of them would stay, as a picture of nothing, or with the objects of both."""
    entry = write_changed_coco(data_root, lambda content: content["images"][1].update(id=1))
    (record,) = parse_entry("own", entry | {"SKIP_BAD": True}).load()
    assert Path(record["file_name"]).name == "p02.png"
    assert record["annotations"]


def test_a_wrong_entry_of_an_image_that_is_not_listed_does_not_matter(data_root: Path) -> None:
    entry = write_changed_coco(data_root, lambda content: content["images"][1].update(height=0))
    (data_root / "list.txt").write_text("p02.png")
    (record,) = parse_entry("own", entry | {"LIST": "list.txt"}).load()
    assert Path(record["file_name"]).name == "p02.png"


def test_keys_that_json_has_twice(data_root: Path) -> None:
    entry = write(data_root, "coco_instance")
    path = data_root / "own/coco.json"
    text = path.read_text()
    path.write_text(text.replace('"category_id": 10', '"category_id": 10, "category_id": 10', 1))
    assert len(parse_entry("own", entry).load()) == 3
    path.write_text(f'{text[:-1]}, "categories": []}}')
    with pytest.raises(DataError, match=r"is not JSON \(the key 'categories' has two values, .* and \[\]\)"):
        parse_entry("own", entry).load()


PANOPTIC: list[tuple[Change, str]] = [
    (lambda c: c["annotations"][0].update(file_name="../x.png"), "annotation 1: names the file '../x.png', which is"),
    (lambda c: c["annotations"][0].update(segments_info=3), 'annotation of image 1: has "segments_info" 3, expected'),
    (lambda c: c["annotations"][0]["segments_info"].pop(0), 'p00.png: has pixels of segment 1, which "segments_info"'),
    (
        lambda c: c["annotations"][0]["segments_info"].append({"id": 5, "category_id": 10}),
        "annotation of image 1: segment 5 has no pixel in p00.png.",
    ),
    (
        lambda c: c["annotations"][0]["segments_info"].append(c["annotations"][0]["segments_info"][0]),
        "annotation of image 1: segment 1 occurs more than once.",
    ),
    (
        lambda c: c["annotations"][0]["segments_info"][0].update(id="a"),
        "annotation of image 1: has the segment {'category_id'",
    ),
    (
        lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd="0"),
        "annotation of image 1: has \"iscrowd\" '0', expected 0 or 1.",
    ),
    (lambda c: c["annotations"].append("a"), "annotation 4: is 'a', expected an object."),
]


@pytest.mark.parametrize(("change", "message"), PANOPTIC)
def test_coco_panoptic(data_root: Path, change: Change, message: str) -> None:
    entry = write(data_root, "coco_panoptic")
    path = data_root / "own/panoptic.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="own") as error:
        parse_entry("own", entry).load()
    assert any(message in str(fault) for fault in error.value.faults)


def test_panoptic_pngs(data_root: Path) -> None:
    entry = write(data_root, "coco_panoptic")
    png = data_root / "own/panoptic/p01.png"
    Image.new("RGB", (9, 8)).save(png)
    (message,) = faults_of(entry)
    assert message.startswith("p01.png: the mask is 8 x 9 (height x width), its image is 48 x 64.")
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[0, :12, 0] = [1, 2, 200, *range(3, 12)]
    Image.fromarray(pixels).save(png)
    (message,) = faults_of(entry)
    assert message == (
        'p01.png: has pixels of segment 3 and 8 more, which "segments_info" of panoptic.json does not list.'
    )
    pixels[1, 0, 1] = 1
    Image.fromarray(pixels).save(png)
    (message,) = faults_of(entry)
    assert "segment 3 and 9 more, " in message
    assert message.endswith("list. So many come of JPEG or of smooth resizing: export the PNGs anew.")


def test_colors(data_root: Path) -> None:
    entry = write(data_root, "color_png")
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[3, 5:7] = 77, 88, 99
    Image.fromarray(pixels).save(data_root / "own/classes/p02.png")
    (message,) = faults_of(entry)
    assert message == (
        "p02.png: has 1 colours that the table of classes does not have, (77, 88, 99) the most frequent with 2 pixels, "
        "the first in row 3, column 5. Add them, as 'void' if they are unlabelled."
    )
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(data_root / "own/classes/p02.png")
    assert "the mask is 9 x 9 (height x width), its image is 48 x 64" in faults_of(entry)[0]
    Image.fromarray(pixels * 0 + 9).save(data_root / "own/classes/p02.png")
    record = parse_entry("own", entry).load()[2]
    assert record["segments_info"] == []  # void


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("road", "line 5: is 'road', expected a class and its colour, such as '128 64 128 road'."),
        ("0 0 256 road", "line 5: has the colour (0, 0, 256), expected values from 0 to 255."),
        ("0 0 0 road", "line 5: 'road' has the colour (0, 0, 0) of 'background'."),
        ("brick 0 0 7", "line 5: 'brick' occurs more than once."),
    ],
)
def test_tables_of_colors(data_root: Path, line: str, message: str) -> None:
    entry = write(data_root, "color_png")
    table = data_root / "own/colors.csv"
    table.write_text("\n".join([*table.read_text().splitlines()[:4], line, "9 9 9 void"]))
    with pytest.raises(DataError) as error:
        parse_entry("own", entry)
    assert str(error.value) == f"{table}: {message}"
    table.write_text("9 9 9 void\n")
    with pytest.raises(DataError, match=r"has no class, expected lines such as '128 64 128 road'\."):
        parse_entry("own", entry)
