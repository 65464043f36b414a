"""Miniature trees of the official data sets, in the formats of their downloads: two images a split, of 48 x 64."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from PIL import Image

from mask2former.data.datasets.tables import read_table

HEIGHT, WIDTH = 48, 64


def boxes(seed: int) -> list[tuple[slice, slice]]:
    """Three boxes that do not touch, the second and third side by side, at places that depend on the seed."""
    shift = seed % 4
    return [
        (slice(4 + shift, 18), slice(6, 26 + shift)),
        (slice(20, 44 - shift), slice(34, 46)),
        (slice(22 + shift, 40), slice(46, 60 - shift)),
    ]


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def save_photograph(path: Path, seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    """A picture in which the boxes can be seen."""
    pixels = np.random.default_rng(seed).integers(60, 100, (*size, 3)).astype(np.uint8)
    for value, box in zip((150, 190, 230), boxes(seed), strict=True):
        pixels[box] += np.uint8(value - 60)
    save(path, pixels)


def write_ade20k(root: Path) -> None:
    """ADEChallengeData2016: walls, floor, two people side by side, and a bed that the semantic maps call a wall."""
    folder = root / "ADEChallengeData2016"
    for split, name in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            stem = f"ADE_{name}_{number:08d}"
            classes = np.ones((HEIGHT, WIDTH), dtype=np.uint8)  # wall
            classes[30:] = 4  # floor
            classes[:3] = 0
            instances = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
            bed, *people = boxes(number)
            instances[bed] = (1, 1, 0)
            for i, person in enumerate(people):
                classes[person] = 13
                instances[person] = (4, 2 + 5 * i, 0)
            classes[45:, :5] = 16  # a table without an instance
            save_photograph(folder / "images" / split / f"{stem}.jpg", number)
            save(folder / "annotations" / split / f"{stem}.png", classes)
            save(folder / "annotations_instance" / split / f"{stem}.png", instances)


def write_ade20k_full(root: Path) -> None:
    """ADE20K_2021_17_01: with the files beside the images that are none of ours; the second training image is large."""
    wall, door, lamp = (read_table("ade20k_full")[i]["id"] for i in (0, 20, 32))
    for split, name in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            size = (600, 530) if (name, number) == ("train", 2) else (HEIGHT, WIDTH)
            stem = root / "ADE20K_2021_17_01/images/ADE" / split / "urban/street" / f"ADE_{name}_{number:08d}"
            objects = np.full(size, wall)
            objects[:3] = 1  # none of the 847
            for value, box in zip((door, lamp, 0), boxes(number), strict=True):
                objects[box] = value
            coded = np.stack([objects // 256 * 10, objects % 256, np.full(size, 7)], axis=2).astype(np.uint8)
            save_photograph(stem.with_suffix(".jpg"), number, size)
            save(Path(f"{stem}_seg.png"), coded)
            save(Path(f"{stem}_parts_1.png"), coded)
            save(stem / "instance_000_ADE.png", coded[..., 0])


def write_coco(root: Path) -> None:
    """coco: panoptic annotations and instances of two people and a car on grass, a crowd among them."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        images, panoptic, instances = [], [], []
        for number in (9, 25):
            name = f"{number:012d}"
            ids = np.full((HEIGHT, WIDTH), 200)
            ids[:3] = 0
            segments = [{"id": 200, "category_id": 193, "iscrowd": 0}]  # grass
            for i, (category, box) in enumerate(zip((1, 3, 1), boxes(number), strict=True)):
                ids[box] = 70000 + i
                crowd = int(number == 25 and i == 2)
                segments.append({"id": 70000 + i, "category_id": category, "iscrowd": crowd})
                rows, columns = box
                left, top, right, bottom = columns.start, rows.start, columns.stop, rows.stop
                instances.append(
                    {
                        "id": len(instances) + 1,
                        "image_id": number,
                        "category_id": category,
                        "iscrowd": crowd,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "segmentation": _run_lengths(ids == 70000 + i)
                        if crowd
                        else [[left, top, right, top, right, bottom, left, bottom]],
                    }
                )
            for segment in segments:
                rows, columns = np.nonzero(ids == segment["id"])
                left, top = int(columns.min()), int(rows.min())
                segment["bbox"] = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
                segment["area"] = len(rows)
            save_photograph(folder / split / f"{name}.jpg", number)
            save(
                folder / f"panoptic_{split}" / f"{name}.png",
                np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8),
            )
            images.append({"id": number, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH})
            panoptic.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
        categories = _coco_categories()
        things = [category for category in categories if category["isthing"]]
        for kind, annotations, classes in (("panoptic", panoptic, categories), ("instances", instances, things)):
            content = {"info": {}, "images": images, "annotations": annotations, "categories": classes}
            (folder / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))


def write_lvis(root: Path) -> None:
    """lvis: the instances of ``write_coco`` as if of LVIS' categories, two of which an image is said not to have."""
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    (root / "lvis").mkdir()
    for split in ("train", "val"):
        content = json.loads((root / "coco/annotations" / f"instances_{split}2017.json").read_text())
        content["categories"] = [
            {
                **{key: category[key] for key in ("id", "name", "frequency", "synset")},
                "image_count": 1,
                "instance_count": 1,
            }
            for category in LVIS_CATEGORIES
        ]
        content["annotations"] = [annotation for annotation in content["annotations"] if not annotation["iscrowd"]]
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image.pop('file_name')}"
            image |= {"neg_category_ids": [7, 8], "not_exhaustive_category_ids": []}
        (root / "lvis" / f"lvis_v1_{split}.json").write_text(json.dumps(content))


def write_coco_stuff(root: Path) -> None:
    """coco/coco_stuff_10k of version 1.1: a person and a bench on grass."""
    folder = root / "coco/coco_stuff_10k"
    (folder / "imageLists").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for split, numbers in (("train", (77, 81)), ("test", (9, 25))):
        names = [f"COCO_train2014_{number:012d}" for number in numbers]
        (folder / "imageLists" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for number, name in zip(numbers, names, strict=True):
            save_photograph(folder / "images" / f"{name}.jpg", number)
            scipy.io.savemat(folder / "annotations" / f"{name}.mat", {"S": coco_stuff_ids(number), "names": ["x"]})


def coco_stuff_ids(number: int) -> np.ndarray:
    """COCO's ids of the pixels of an image: 124 grass, 1 person, 15 bench, 182 wood, 0 none."""
    ids = np.full((HEIGHT, WIDTH), 124, dtype=np.uint8)
    ids[:3] = 0
    for category, box in zip((1, 15, 182), boxes(number), strict=True):
        ids[box] = category
    return ids


def write_cityscapes(root: Path) -> None:
    """cityscapes: road, sky, two cars side by side, a person and a group of people; drawn by cityscapesscripts."""
    folder = root / "cityscapes"
    for split, city in (("train", "aachen"), ("val", "lindau"), ("test", "berlin")):
        for number in (0, 1):
            name = f"{city}_{number:06d}_000019"
            truth = folder / "gtFine" / split / city / f"{name}_gtFine"
            truth.parent.mkdir(parents=True, exist_ok=True)
            shapes = [("road", (0, 24, 63, 47)), ("sky", (0, 0, 63, 23)), ("static", (0, 40, 5, 47))]
            shapes += [("car", (8 + number, 20, 24, 36)), ("car", (25, 22, 40, 38)), ("person", (44, 10, 50, 40))]
            shapes += [("persongroup", (53, 12, 62, 30))]
            polygons = {
                "imgHeight": HEIGHT,
                "imgWidth": WIDTH,
                "objects": [
                    {"label": label, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]]}
                    for label, (left, top, right, bottom) in shapes
                ],
            }
            Path(f"{truth}_polygons.json").write_text(json.dumps(polygons))
            annotation = Annotation()
            annotation.fromJsonFile(f"{truth}_polygons.json")
            # Not json2instanceImg, which saves in a way that Pillow 13 refuses.
            ids = np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)
            save(Path(f"{truth}_instanceIds.png"), ids)
            json2labelImg(f"{truth}_polygons.json", f"{truth}_labelIds.png", "ids")
            pixels = np.random.default_rng(number).integers(60, 100, (HEIGHT, WIDTH, 3)).astype(np.uint8)
            save(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", pixels)


def write_mapillary_vistas(root: Path, version: str, nested: bool = False) -> None:
    """mapillary_vistas: road, a car, a bird, unlabelled sky and, in 2.0, a group of people, whom nobody evaluates.

    Args:
        root: Of all data sets.
        version: "v1.2" or "v2.0".
        nested: Put the annotations of 1.2 where the download of 2.0 has them.
    """
    table = read_table(f"mapillary_vistas_{version}")
    value = {label["name"]: i for i, label in enumerate(table)}
    person = "human--person--person-group" if version == "v2.0" else "human--person"
    year = {"v1.2": 2018, "v2.0": 2020}[version]
    for split in ("training", "validation"):
        folder = root / "mapillary_vistas" / split
        annotations = folder / version if nested or version == "v2.0" else folder
        images, panoptic = [], []
        for number in (1, 2):
            name = f"{'aBc-_xYz' * 2}{split[0]}{number:05d}"
            classes = np.full((HEIGHT, WIDTH), value["construction--flat--road"], dtype=np.uint8)
            classes[:3] = len(table) - 1
            ids = np.where(classes == len(table) - 1, 0, 1)
            segments = [_segment(1, value["construction--flat--road"] + 1)]
            shown = ("object--vehicle--car", "animal--bird", person)
            for i, (label, box) in enumerate(zip(shown, boxes(number), strict=True), 2):
                classes[box], ids[box] = value[label], i
                segments.append(_segment(i, value[label] + 1))
            for segment in segments:
                segment["area"] = int((ids == segment["id"]).sum())
            labels = Image.fromarray(classes, mode="P")
            labels.putpalette([channel for label in table for channel in label["color"]])
            (annotations / "labels").mkdir(parents=True, exist_ok=True)
            labels.save(annotations / "labels" / f"{name}.png")
            save(annotations / "instances" / f"{name}.png", (classes.astype(np.uint16) * 256 + ids).astype(np.uint16))
            coded = np.stack([ids % 256, ids // 256, ids // 65536], axis=2).astype(np.uint8)
            save(annotations / "panoptic" / f"{name}.png", coded)
            save_photograph(folder / "images" / f"{name}.jpg", number)
            images.append({"id": name, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH})
            panoptic.append({"image_id": name, "file_name": f"{name}.png", "segments_info": segments})
        categories = [
            {
                "id": i,
                "name": label["readable"],
                "supercategory": label["name"],
                "color": label["color"],
                "isthing": int(label["instances"]),
            }
            for i, label in enumerate(table, 1)
            if label["evaluate"]
        ]
        content = {"images": images, "annotations": panoptic, "categories": categories}
        (annotations / "panoptic" / f"panoptic_{year}.json").write_text(json.dumps(content))


def _segment(number: int, category: int) -> dict[str, Any]:
    return {"id": number, "category_id": category, "iscrowd": 0, "bbox": [0, 0, 1, 1]}


def _coco_categories() -> list[dict[str, Any]]:
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    return [{key: category[key] for key in ("id", "name", "isthing")} for category in COCO_CATEGORIES]


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0, append=flat.size).tolist()}
