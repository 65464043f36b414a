"""What --data may be, and what is found beside it."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mask2former.data.datasets.entry import parse_entry
from mask2former.own_data.source import Given, find_entries
from tests.brick_data import FORMATS, NAMES, make_pictures, write_data


def write(folder: Path, form: str) -> dict[str, Any]:
    entry = write_data(folder, form, make_pictures(2))
    if form == "id_png":
        (folder / "classes.txt").write_text("\n".join(entry["CLASS_NAMES"]))
    if form == "color_png":
        (folder / "colors.csv").rename(folder / "class_dict.csv")
        entry["PALETTE"] = str(folder / "class_dict.csv")
    if form == "coco_panoptic":
        (folder / "panoptic.json").rename(folder / "pan.json")
        (folder / "panoptic").rename(folder / "pan")
        entry |= {"ANNOTATIONS": str(folder / "pan.json"), "SEGMENTS": str(folder / "pan")}
    if form == "labelme":
        entry["CLASS_NAMES"] = list(NAMES)
    return entry


def given_of(folder: Path, form: str) -> Path:
    """The file that stands for the data, or the folder."""
    files = {"coco_instance": "coco.json", "coco_panoptic": "pan.json", "yolo_seg": "data.yaml"}
    return folder / files.get(form, "")


@pytest.mark.parametrize("form", list(FORMATS))
def test_files(tmp_path: Path, form: str) -> None:
    expected = write(tmp_path / "own", form)
    if form == "labelme":
        expected["ANNOTATIONS"] = str(tmp_path / "own")
    entry, _ = find_entries(Given(given_of(tmp_path / "own", form)))
    assert entry == expected
    assert len(parse_entry("own", entry).load()) == 2


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("packed", [False, True])
def test_folders_and_zips(tmp_path: Path, form: str, packed: bool) -> None:
    write(tmp_path / "own", form)
    data = tmp_path / "own"
    if packed:
        data = Path(shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path, "own"))
        shutil.rmtree(tmp_path / "own")
    entry, _ = find_entries(Given(data))
    assert entry["FORMAT"] == form
    assert len(parse_entry("own", entry).load()) == 2


def test_the_layout_of_coco(tmp_path: Path) -> None:
    write_data(tmp_path / "own", "coco_instance", make_pictures(2))
    (tmp_path / "own/annotations").mkdir()
    (tmp_path / "own/coco.json").rename(tmp_path / "own/annotations/instances_val2017.json")
    (tmp_path / "own/images").rename(tmp_path / "own/val2017")
    entry, _ = find_entries(Given(tmp_path / "own/annotations/instances_val2017.json"))
    assert entry["IMAGES"] == str(tmp_path / "own/val2017")
    (tmp_path / "own/val2017").rename(tmp_path / "own/elsewhere")
    with pytest.raises(FileNotFoundError, match=r"names images such as p00\.png, which are not beside it.*--images"):
        find_entries(Given(tmp_path / "own/annotations/instances_val2017.json"))
    entry, _ = find_entries(Given(tmp_path / "own", images=tmp_path / "own/elsewhere"))
    assert entry["IMAGES"] == str(tmp_path / "own/elsewhere")


def test_names_of_images_as_windows_writes_them(tmp_path: Path) -> None:
    write_data(tmp_path / "own", "coco_instance", make_pictures(3))
    content = json.loads((tmp_path / "own/coco.json").read_text())
    for image in content["images"]:
        image["file_name"] = f".\\images\\{image['file_name']}"
    (tmp_path / "own/coco.json").write_text(json.dumps(content))
    entry, _ = find_entries(Given(tmp_path / "own/coco.json"))
    assert entry["IMAGES"] == str(tmp_path / "own")
    assert len(parse_entry("own", entry).load()) == 3


def test_classes_of_an_editor_that_marks_utf8(tmp_path: Path) -> None:
    write_data(tmp_path / "own", "id_png", make_pictures(2))
    (tmp_path / "classes.txt").write_text("background\r\nbrick\r\ntile\r\n", "utf-8-sig")
    entry, _ = find_entries(Given(tmp_path / "own", classes=tmp_path / "classes.txt"))
    assert entry["CLASS_NAMES"] == ["background", "brick", "tile"]
    (tmp_path / "classes.txt").write_bytes("straße".encode("latin1"))
    with pytest.raises(ValueError, match=r"classes\.txt: is not UTF-8 text"):
        find_entries(Given(tmp_path / "own", classes=tmp_path / "classes.txt"))


def test_the_layout_of_voc(tmp_path: Path) -> None:
    write_data(tmp_path / "own", "id_png", make_pictures(2))
    for name, voc in (("images", "JPEGImages"), ("classes", "SegmentationClass"), ("instances", "SegmentationObject")):
        (tmp_path / "own" / name).rename(tmp_path / "own" / voc)
    (tmp_path / "own/labelmap.txt").write_text("background\nbrick\ntile\n")
    entry, _ = find_entries(Given(tmp_path / "own"))
    assert entry["THINGS"] == ["brick", "tile"]
    entry, _ = find_entries(Given(tmp_path / "own", things=("brick",)))
    assert entry["THINGS"] == ["brick"]


def test_pngs_alone(tmp_path: Path) -> None:
    write_data(tmp_path / "own", "id_png", make_pictures(2))
    folder, images = tmp_path / "own/instances", tmp_path / "own/images"
    with pytest.raises(FileNotFoundError, match=r"no images in a folder called images; say where: --images"):
        find_entries(Given(folder))
    entry, _ = find_entries(Given(folder, images))
    assert entry == {"FORMAT": "id_png", "IMAGES": str(images), "INSTANCES": str(folder)}
    (tmp_path / "names.txt").write_text("background\nbrick\ntile\n")
    entry, _ = find_entries(Given(tmp_path / "own/classes", images, classes=tmp_path / "names.txt"))
    assert (entry["CLASSES"], entry["CLASS_NAMES"]) == (str(tmp_path / "own/classes"), ["background", "brick", "tile"])


@pytest.mark.parametrize("name", ["classes.txt", "labelmap.txt", "colors.txt", "class_dict.csv"])
def test_a_table_beside_the_pngs(tmp_path: Path, name: str) -> None:
    write_data(tmp_path / "own", "color_png", make_pictures(2))
    table = tmp_path / "own/classes" / name
    table.write_text("200 0 0 brick\n0 0 200 tile\n")  # begins like YOLO's labels
    entry, _ = find_entries(Given(tmp_path / "own/classes", tmp_path / "own/images"))
    assert (entry["FORMAT"], entry["PALETTE"]) == ("color_png", str(table))


def test_yolo_labels_alone(tmp_path: Path) -> None:
    write_data(tmp_path / "own", "yolo_seg", make_pictures(2))
    with pytest.raises(ValueError, match=r"has YOLO's labels; say what the classes are called: --classes"):
        find_entries(Given(tmp_path / "own/labels"))
    (tmp_path / "own/labels/classes.txt").write_text("brick\ntile\n")
    entry, _ = find_entries(Given(tmp_path / "own/labels"))
    assert entry["IMAGES"] == str(tmp_path / "own/images")
    shutil.copytree(tmp_path / "own/images", tmp_path / "copy")
    assert find_entries(Given(tmp_path / "own/labels", tmp_path / "copy"))[0]["IMAGES"] == str(tmp_path / "copy")
    for file in (tmp_path / "own/labels").glob("p*.txt"):
        file.write_text(file.read_text(), "utf-8-sig")  # as some editors mark it
    assert find_entries(Given(tmp_path / "own/labels"))[0] == entry


def yolo_yaml(folder: Path, **content: Any) -> Path:
    file = folder / "data.yaml"
    file.write_text(json.dumps({"names": {0: "brick", 1: "tile"}, "train": "images", **content}))
    return file


def test_yolo_yaml(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    write_data(folder, "yolo_seg", make_pictures(2))
    for part in ("images", "labels"):
        shutil.copytree(folder / part, folder / "val" / part)
    train, val = find_entries(Given(yolo_yaml(folder, path=str(folder), val="../val/images")))
    assert train["CLASS_NAMES"] == ["brick", "tile"]
    assert val is not None
    assert val["LABELS"] == str(folder / "val/labels")
    assert find_entries(Given(yolo_yaml(folder)))[1] is None
    yolo_yaml(folder).rename(folder / "data.yml")
    assert find_entries(Given(folder)) == find_entries(Given(folder / "data.yml")) == (train, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": None}, 'has "names" None, expected a list of class names'),
        ({"names": {1: "a"}}, 'has "names" .*, expected a list of class names'),
        (
            {"names": ["a", False]},
            'has "names" .*, expected a list of .*; quote no, yes, on and off',
        ),
        ({"train": ["a", "b"]}, r"but .*own/a is no folder"),
        ({"train": ["a", 3]}, 'has "train" .*, expected a folder of images, a .txt of their names, or a list'),
        ({"train": []}, r'has "train" \[\], expected a folder of images'),
        ({"train": ["labels", "labels"]}, 'has "train" .*, where there are no images'),
        ({"train": "nowhere.txt"}, r"but .*nowhere.txt is no file"),
        ({"train": "nowhere/images"}, r"but .*nowhere/images is no folder"),
    ],
)
def test_wrong_yolo_yaml(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    write_data(tmp_path / "own", "yolo_seg", make_pictures(1))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_entries(Given(yolo_yaml(tmp_path / "own", **content)))


def test_a_class_of_yolo_with_two_names(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("train: images\nnames:\n  0: brick\n  1: tile\n  1: roof\n")
    with pytest.raises(ValueError, match=r"data.yaml: line 5 has 1 again, with another value; keep one"):
        find_entries(Given(file))


@pytest.mark.parametrize("way_out", ["", 30 * "../"])
def test_a_zip_cannot_name_folders_outside(tmp_path: Path, way_out: str) -> None:
    write_data(tmp_path / "secret", "yolo_seg", make_pictures(1))
    secret = str(tmp_path / "secret/images")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        train = way_out + secret.removeprefix("/") if way_out else secret
        archive.writestr("data.yaml", json.dumps({"names": ["a"], "train": train}))
        archive.writestr("b.txt", "")
    with pytest.raises(ValueError, match=r"which is refused: it leads out of"):
        find_entries(Given(tmp_path / "a.zip"))


def test_yolo_with_several_folders(tmp_path: Path) -> None:
    for name in ("a", "b", "val"):
        write_data(tmp_path / "own" / name, "yolo_seg", make_pictures(3))
    whole = parse_entry("whole", find_entries(Given(yolo_yaml(tmp_path / "own/a")))[0]).load()
    file = yolo_yaml(tmp_path / "own", train=["a/images", "b/images"], val="val/images")
    train, val = find_entries(Given(file))
    records = parse_entry("several", train).load()
    assert [Path(record["file_name"]).relative_to(tmp_path / "own").as_posix() for record in records] == [
        f"{name}/images/p{i:02d}.png" for name in "ab" for i in range(3)
    ]
    annotations = [[(a["category_id"], a["segmentation"]) for a in record["annotations"]] for record in records]
    assert annotations == 2 * [
        [(a["category_id"], a["segmentation"]) for a in record["annotations"]] for record in whole
    ]
    assert sum(map(len, annotations)) > 4
    assert val is not None
    assert "LIST" not in val


def test_yolo_with_lists_of_images(tmp_path: Path) -> None:
    write_data(tmp_path / "own", "yolo_seg", make_pictures(4))
    for part in ("images", "labels"):
        (tmp_path / "own" / part / "more").mkdir()
        for file in sorted((tmp_path / "own" / part).glob("p0[12].*")):
            file.rename(file.parent / "more" / file.name)
    (tmp_path / "own/train.txt").write_text("./images/more/p01.png\n\nimages/p00.png\n")
    (tmp_path / "own/val.txt").write_text(f"{tmp_path}/own/images/more/p02.png\n")
    train, val = find_entries(Given(yolo_yaml(tmp_path / "own", train="train.txt", val=["val.txt"])))
    assert val is not None
    assert (train["IMAGES"], train["LABELS"]) == (str(tmp_path / "own/images"), str(tmp_path / "own/labels"))
    records = parse_entry("train", train).load() + parse_entry("val", val).load()
    assert [Path(record["file_name"]).name for record in records] == ["p01.png", "p00.png", "p02.png"]
    assert all(record["annotations"] for record in records)
    (tmp_path / "own/val.txt").write_text("images/p00.png\nimages/absent.png\n")
    with pytest.raises(ValueError, match=r"val\.txt: line 2: names .*absent\.png, which is not an image"):
        find_entries(Given(tmp_path / "own/data.yaml"))


def test_a_zip_s_list_cannot_name_images_outside(tmp_path: Path) -> None:
    write_data(tmp_path / "secret", "yolo_seg", make_pictures(1))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data.yaml", json.dumps({"names": ["a"], "train": "train.txt"}))
        archive.writestr("train.txt", str(tmp_path / "secret/images/p00.png"))
    with pytest.raises(ValueError, match=r"line 1: names .* which is refused: it leads out of"):
        find_entries(Given(tmp_path / "a.zip"))


@pytest.mark.parametrize("form", list(FORMATS))
def test_a_format_that_is_said(tmp_path: Path, form: str) -> None:
    write(tmp_path / "own", form)
    assert find_entries(Given(tmp_path / "own", format=form)) == find_entries(Given(tmp_path / "own"))


def test_a_format_decides(tmp_path: Path) -> None:
    write(tmp_path / "own", "yolo_seg")
    (tmp_path / "own/other.json").write_text('{"annotations": [], "images": [{"file_name": "p00.png"}]}')
    assert find_entries(Given(tmp_path / "own"))[0]["FORMAT"] == "yolo_seg"
    assert find_entries(Given(tmp_path / "own", format="coco_instance"))[0] == {
        "FORMAT": "coco_instance",
        "IMAGES": str(tmp_path / "own/images"),
        "ANNOTATIONS": str(tmp_path / "own/other.json"),
    }
    # A table of colours is not taken for names, and the other way round.
    write(tmp_path / "png", "color_png")
    entry, _ = find_entries(Given(tmp_path / "png", format="id_png"))
    assert entry["FORMAT"] == "id_png"
    for data, form, message in (
        ("own", "labelme", r"has no JSON file of Labelme"),
        ("own/other.json", "labelme", "is a file, but --format labelme is a folder"),
        ("own/data.yaml", "coco_instance", 'has no list "annotations"'),
        ("own", "voc", "--format is voc, expected one of coco_instance, coco_panoptic, id_png"),
    ):
        with pytest.raises(ValueError, match=message):
            find_entries(Given(tmp_path / data, format=form))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", "is of no known format, expected a COCO JSON, YOLO's data.yaml, a folder"),
        ("a.json", 'has no list "annotations", expected a COCO annotation file; of Labelme\'s files give the folder'),
        ("b.json", 'has no "images", expected a list of them'),
        ("empty", r"has no annotations, expected data\.yaml, JSON files, text files of polygons, PNGs"),
        (
            "notes",
            r"no masks in .*, as by --data \S+notes/masks --images \S+images\. .*, of classes\.",
        ),
        ("two", r"has 2 COCO files \(.*\.json, .*\.json\); give one as --data"),
    ],
)
def test_what_is_not_understood(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.json").write_text('{"shapes": []}')
    (tmp_path / "b.json").write_text('{"annotations": [], "images": []}')
    (tmp_path / "empty").mkdir()
    for name_of_folder in ("images", "masks"):
        (tmp_path / "notes" / name_of_folder).mkdir(parents=True)
        (tmp_path / "notes" / name_of_folder / "a.png").touch()
    (tmp_path / "notes/images/notes.txt").write_text("the stain was old")  # not YOLO's
    (tmp_path / "two").mkdir()
    for number in range(2):
        (tmp_path / f"two/{number}.json").write_text('{"annotations": []}')
    with pytest.raises(ValueError, match=message):
        find_entries(Given(tmp_path / name))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("coco_instance", {"classes": "names.txt"}),
        ("coco_instance", {"segments": "images"}),
        ("coco_panoptic", {"things": ("brick",)}),
        ("yolo_seg", {"classes": "names.txt"}),
        ("yolo_seg", {"images": "labels"}),
        ("labelme", {"things": ("brick",)}),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    folder = tmp_path / "own"
    write(folder, form)
    (folder / "names.txt").write_text("tile\nbrick\n")
    (option,) = options
    given = {key: folder / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(ValueError, match=rf"own.*: is read as {form}, where --{option} has no effect\. Leave it out"):
        find_entries(Given(given_of(folder, form), **given))


def test_a_file_of_classes_that_is_not_there(tmp_path: Path) -> None:
    for form in FORMATS:
        write(tmp_path / form, form)
        with pytest.raises(FileNotFoundError, match=r"no\.txt: no such file, but --classes names it"):
            find_entries(Given(given_of(tmp_path / form, form), classes=tmp_path / "no.txt"))


def test_a_yaml_of_many_aliases_has_a_short_error(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "data.yaml").write_text("\n".join([*levels, "names: *a11", "train: images"]))
    with pytest.raises(ValueError, match='has "names"') as error:
        find_entries(Given(tmp_path / "data.yaml"))
    assert len(str(error.value)) < 10_000
