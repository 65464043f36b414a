"""Names, classes and metadata of the official data sets, without any data."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, COCO_CATEGORIES

from mask2former.data.datasets.coco_panoptic import (
    get_metadata,
    load_coco_panoptic,
    register_coco_panoptic_annos_sem_seg,
)
from mask2former.data.datasets.mapillary_vistas import mapillary_vistas_categories, unused_categories
from mask2former.data.datasets.tables import read_categories, read_table

# Name, all classes, things, ignore label, evaluator.
OFFICIAL = [
    ("ade20k_sem_seg_{}", "train val", 150, None, 255, "sem_seg"),
    ("ade20k_panoptic_{}", "train val", 150, 100, 255, "ade20k_panoptic_seg"),
    ("ade20k_instance_{}", "train val", None, 100, None, "coco"),
    ("ade20k_full_sem_seg_{}", "train val", 847, None, 65535, "sem_seg"),
    ("coco_2017_{}_panoptic_with_sem_seg", "train val", 133, 80, 255, "coco_panoptic_seg"),
    ("coco_2017_{}_stuff_10k_sem_seg", "train test", 171, None, 255, "sem_seg"),
    ("mapillary_vistas_sem_seg_{}", "train val", 65, None, 65, "sem_seg"),
    ("mapillary_vistas_panoptic_{}", "train val", 65, 37, 65, "mapillary_vistas_panoptic_seg"),
    ("mapillary_vistas_v2_sem_seg_{}", "train val", 123, None, 123, "sem_seg"),
    ("mapillary_vistas_v2_panoptic_{}", "train val", 116, 70, 123, "mapillary_vistas_panoptic_seg"),
    ("cityscapes_fine_sem_seg_{}", "train val", 19, None, 255, "cityscapes_sem_seg"),
    ("cityscapes_fine_instance_seg_{}", "train val", None, None, None, "cityscapes_instance"),
    ("cityscapes_fine_panoptic_{}", "train val", 19, 8, 255, "cityscapes_panoptic_seg"),
    ("lvis_v1_{}", "train val", None, None, None, "lvis"),
]


@pytest.mark.parametrize(
    ("name", "classes", "things", "ignore", "evaluator"),
    [(name.format(split), *rest) for name, splits, *rest in OFFICIAL for split in splits.split()],
)
def test_metadata(name, classes, things, ignore, evaluator):
    assert name in DatasetCatalog
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == evaluator
    if classes is not None:
        assert len(metadata.stuff_classes) == classes
        assert len(set(metadata.stuff_classes)) == classes or "ade20k" in name  # two names of ADE20K stand twice
        assert metadata.ignore_label == ignore
    if things is not None:
        contiguous = list(metadata.thing_dataset_id_to_contiguous_id.values())
        assert len(contiguous) == len(set(contiguous)) == things
        assert contiguous == sorted(contiguous)
    if things is not None and classes is not None:
        every = metadata.stuff_dataset_id_to_contiguous_id
        assert metadata.thing_dataset_id_to_contiguous_id.items() <= every.items() or "cityscapes" in name
        assert len(metadata.thing_classes) in (things, classes)
        assert metadata.label_divisor == 1000


@pytest.mark.parametrize(("name", "splits"), [(name, splits) for name, splits, *_ in OFFICIAL])
def test_splits_have_the_same_classes(name, splits):
    first, second = (MetadataCatalog.get(name.format(split)) for split in splits.split())
    for key in ("stuff_classes", "thing_classes", "thing_dataset_id_to_contiguous_id", "stuff_colors"):
        assert first.get(key) == second.get(key)


def test_ade20k():
    table = read_table("ade20k")
    assert [entry["name"] for entry in table] == list(ADE20K_SEM_SEG_CATEGORIES)
    assert [entry["id"] for entry in table] == list(range(150))
    metadata = MetadataCatalog.get("ade20k_panoptic_val")
    assert metadata.stuff_dataset_id_to_contiguous_id == {i: i for i in range(150)}
    assert list(metadata.thing_dataset_id_to_contiguous_id) == [entry["id"] for entry in read_table("ade20k_instance")]
    assert MetadataCatalog.get("ade20k_sem_seg_val").stuff_colors == metadata.stuff_colors
    assert metadata.thing_classes[:4] == ["bed", "window ", "cabinet", "person"]
    instance = MetadataCatalog.get("ade20k_instance_val")
    assert instance.thing_classes[:4] == ["bed", "windowpane", "cabinet", "person"]
    assert list(instance.thing_dataset_id_to_contiguous_id.items())[:3] == [(7, 0), (8, 1), (10, 2)]
    assert metadata.panoptic_root.endswith("/ADEChallengeData2016/ade20k_panoptic_val")
    assert metadata.json_file.endswith("/ADEChallengeData2016/ade20k_instance_val.json")
    assert metadata.sem_seg_root.endswith("/ADEChallengeData2016/annotations_detectron2/validation")


def test_ade20k_full():
    table = read_table("ade20k_full")
    assert len({entry["id"] for entry in table}) == len(table) == 847
    assert (table[0]["name"], table[846]["name"]) == ("wall", "adding machine, totalizer, totaliser")
    # The numbers of objects are two bytes of a colour, of which the higher is a tenth of red.
    assert 0 < min(entry["id"] for entry in table) <= max(entry["id"] for entry in table) < 26 * 256


def test_coco_stuff():
    table = read_table("coco_stuff")
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    assert [(entry["id"], entry["name"]) for entry in table[:80]] == [(c["id"], c["name"]) for c in things]
    assert [entry["id"] for entry in table[80:]] == list(range(92, 183))


def test_mapillary_vistas():
    """The numbers of the data set's authors: 37 of 66 are things; 70 of 124 are, 46 stuff, and 8 void or crowd."""
    tables = {version: read_table(f"mapillary_vistas_{version}") for version in ("v1.2", "v2.0")}
    assert {version: len(table) for version, table in tables.items()} == {"v1.2": 66, "v2.0": 124}
    for version, things, stuff in (("v1.2", 37, 28), ("v2.0", 70, 46)):
        categories = mapillary_vistas_categories(version)
        assert [sum(category.isthing for category in categories), len(categories)] == [things, things + stuff]
        assert {category.id for category in categories} | unused_categories(version) == {
            i for i, _ in enumerate(tables[version], 1)
        }
        assert tables[version][-1]["name"] == "void--unlabeled"
        names = [label["name"] for label in tables[version]]
        assert len(set(names)) == len(names)
    assert unused_categories("v1.2") == {66}
    assert len(unused_categories("v2.0")) == 8
    # Classes that both versions have look the same and are instances in both, but for trains.
    older = {label["name"]: label for label in tables["v1.2"]}
    shared = [(older[label["name"]], label) for label in tables["v2.0"] if label["name"] in older]
    assert len(shared) > 50
    assert [a["name"] for a, b in shared if a["color"] != b["color"]] == []
    assert [a["name"] for a, b in shared if a["instances"] != b["instances"]] == ["object--vehicle--on-rails"]


def test_categories_of_a_table_without_isthing_are_things():
    assert all(category.isthing for category in read_categories("ade20k_instance"))


def test_unused_categories_are_void(tmp_path: Path):
    file = tmp_path / "panoptic.json"
    file.write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 2}], "annotations": [{"image_id": 1, '
        '"file_name": "a.png", "segments_info": [{"id": 1, "category_id": 5}, {"id": 2, "category_id": 6}]}]}'
    )
    metadata = {"thing_dataset_id_to_contiguous_id": {}, "stuff_dataset_id_to_contiguous_id": {5: 0}}
    [record] = load_coco_panoptic(file, "images", "panoptic", None, metadata, unused_categories={6})
    assert [segment["id"] for segment in record["segments_info"]] == [1]
    assert "sem_seg_file_name" not in record
    with pytest.raises(ValueError, match='segment 2 has category_id 6, which is not in "categories"'):
        load_coco_panoptic(file, "images", "panoptic", None, metadata)


def test_a_panoptic_data_set_is_registered_as_in_the_official_release(tmp_path: Path):
    (tmp_path / "panoptic.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 2}], "annotations": [{"image_id": 1, '
        '"file_name": "a.png", "segments_info": [{"id": 7, "category_id": 200}]}]}'
    )
    names = ("registered_panoptic", "registered_panoptic_with_sem_seg")
    folders = (tmp_path / "images", tmp_path / "segments")
    try:
        register_coco_panoptic_annos_sem_seg(
            names[0], get_metadata(), *folders, tmp_path / "panoptic.json", tmp_path / "classes", "instances.json"
        )
        [record] = DatasetCatalog.get(names[1])
        without, metadata = (MetadataCatalog.get(name) for name in names)
    finally:
        DatasetCatalog.remove(names[1])
        for name in names:
            MetadataCatalog.remove(name)
    assert record["file_name"] == str(tmp_path / "images" / "a.jpg")
    assert record["pan_seg_file_name"] == str(tmp_path / "segments" / "a.png")
    assert record["sem_seg_file_name"] == str(tmp_path / "classes" / "a.png")
    assert record["segments_info"] == [{"id": 7, "category_id": 132, "isthing": False}]  # rug-merged, the last
    assert len(without.thing_classes) == len(metadata.thing_classes) == 80
    official = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg").as_dict()
    assert metadata.as_dict().keys() == official.keys()
    assert metadata.json_file == "instances.json"


def test_an_annotation_of_no_image_is_an_error(tmp_path: Path):
    file = tmp_path / "panoptic.json"
    file.write_text('{"images": [], "annotations": [{"image_id": 3, "file_name": "a.png", "segments_info": []}]}')
    with pytest.raises(ValueError, match=r'panoptic\.json: image_id 3 is annotated but not in "images"'):
        load_coco_panoptic(file, "images", "panoptic", None, {})
