"""Own data of all forms: registered, converted, and evaluated against itself."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances

from mask2former.data import register_custom_datasets
from mask2former.data.dataset_mappers import MaskFormerDatasetMapper, dataset_mapper_class
from mask2former.data.datasets.faults import DataError
from mask2former.evaluation import build_evaluator

Entry = dict[str, Any]
Scene = dict[str, np.ndarray]


def load(cfg: CfgNode, entry: Entry, name: str = "own") -> list[Entry]:
    cfg.DATASETS.CUSTOM[name] = CfgNode(copy.deepcopy(entry))
    register_custom_datasets(cfg)
    return DatasetCatalog.get(name)


def plain(cfg: CfgNode) -> MaskFormerDatasetMapper:
    """A training mapper that leaves images as they are."""
    return dataset_mapper_class(cfg)(cfg, is_train=True, augmentations=[])


@pytest.fixture(params=["id_png", "coco_panoptic", "coco_instance"])
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.getfixturevalue(f"{request.param}_entry")


def test_classes(cfg: CfgNode, entry: Entry) -> None:
    load(cfg, entry)
    metadata = MetadataCatalog.get("own")
    assert metadata.thing_classes == ["car", "person"]
    assert sorted(metadata.thing_dataset_id_to_contiguous_id.values()) == [0, 1]
    if entry["FORMAT"] != "coco_instance":
        assert metadata.stuff_classes == ["car", "person", "road"]
        ids = metadata.stuff_dataset_id_to_contiguous_id
        assert sorted(ids.values()) == [0, 1, 2]
        assert metadata.thing_dataset_id_to_contiguous_id.items() <= ids.items()


def test_ground_truth_evaluates_to_100(cfg: CfgNode, entry: Entry, tmp_path: Path) -> None:
    """What the mappers read, given to the evaluators as predictions, must be what those read."""
    load(cfg, entry)
    things_only = entry["FORMAT"] == "coco_instance"
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_instance" if things_only else "mask_former_panoptic"
    test = cfg.MODEL.MASK_FORMER.TEST
    test.INSTANCE_ON, test.PANOPTIC_ON, test.SEMANTIC_ON = True, not things_only, not things_only
    evaluator = build_evaluator(cfg, "own", str(tmp_path / "out"))
    evaluator.reset()
    mapper = plain(cfg)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    semantic_mapper = plain(cfg)
    for record in DatasetCatalog.get("own"):
        output = prediction(mapper(record))
        if not things_only:
            sem_seg = semantic_mapper(record)["sem_seg"]
            output["sem_seg"] = torch.stack([sem_seg == class_id for class_id in range(3)]).float()
        evaluator.process([record], [output])
    results = evaluator.evaluate()
    assert results["segm"]["AP"] == pytest.approx(100)
    if not things_only:
        assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
        assert results["panoptic_seg"]["PQ_st"] == pytest.approx(100)
        assert results["sem_seg"]["mIoU"] == pytest.approx(100)


def prediction(example: Entry) -> Entry:
    classes, masks = example["instances"].gt_classes, example["instances"].gt_masks
    ids = torch.zeros(masks.shape[1:], dtype=torch.int32)
    segments = []
    for number, (class_id, mask) in enumerate(zip(classes.tolist(), masks, strict=True), 1):
        ids[mask] = number
        segments.append({"id": number, "category_id": class_id, "isthing": class_id < 2})
    things = classes < 2
    instances = Instances(masks.shape[1:], pred_classes=classes[things], pred_masks=masks[things])
    instances.scores = torch.ones(len(instances))
    instances.pred_boxes = BitMasks(masks[things]).get_bounding_boxes()
    return {"panoptic_seg": (ids, segments), "instances": instances}


def test_panoptic_forms_agree(cfg: CfgNode, id_png_entry: Entry, coco_panoptic_entry: Entry) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    mapper = plain(cfg)
    maps = [mapper(load(cfg, entry)[0])["sem_seg"] for entry in (id_png_entry, coco_panoptic_entry)]
    assert torch.equal(*maps)


def test_instances_alone(cfg: CfgNode, id_png_entry: Entry, scene: Scene) -> None:
    alone = {key: id_png_entry[key] for key in ("FORMAT", "IMAGES", "INSTANCES")}
    dicts = load(cfg, alone)
    assert [len(record["segments_info"]) for record in dicts] == [4, 1]
    assert MetadataCatalog.get("own").stuff_classes == ["object", "background"]
    load(cfg, alone | {"CLASS_NAMES": ["cell"], "BACKGROUND": "glass"})
    assert MetadataCatalog.get("own").stuff_classes == ["cell", "glass"]
    dicts = load(cfg, alone | {"BACKGROUND": "void"})
    assert MetadataCatalog.get("own").stuff_classes == ["object"]
    assert [len(record["segments_info"]) for record in dicts] == [3, 0]
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_panoptic"
    mapper = plain(cfg)
    np.testing.assert_array_equal(mapper(dicts[0])["ignore_mask"], scene["instances"] == 0)
    assert mapper(dicts[1])["ignore_mask"].all()


def test_classes_alone(cfg: CfgNode, id_png_entry: Entry, data_root: Path) -> None:
    (data_root / "names.txt").write_text("road\n\n car \nperson\n")
    alone = {key: id_png_entry[key] for key in ("FORMAT", "IMAGES", "CLASSES")} | {"CLASS_NAMES": "names.txt"}
    dicts = load(cfg, alone)
    metadata = MetadataCatalog.get("own")
    assert (metadata.thing_classes, metadata.stuff_classes) == ([], ["road", "car", "person"])
    assert [segment["category_id"] for segment in dicts[0]["segments_info"]] == [0, 1, 2]
    dicts = load(cfg, alone | {"CLASS_NAMES": ["void", "car", "person"]})
    assert metadata.name == "own"
    assert MetadataCatalog.get("own").stuff_classes == ["car", "person"]
    assert [segment["category_id"] for segment in dicts[0]["segments_info"]] == [0, 1]
    assert dicts[1]["segments_info"] == []


def test_many_classes_need_16_bits(cfg: CfgNode, id_png_entry: Entry, write: Any) -> None:
    names = [f"class {value}" for value in range(300)]
    classes = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) % 300
    classes[0, :3] = 65535
    write("own/classes/a.png", classes)
    entry = {key: id_png_entry[key] for key in ("FORMAT", "IMAGES", "CLASSES")} | {"CLASS_NAMES": names}
    dicts = load(cfg, entry)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 300
    cfg.DATASETS.TRAIN = ("own",)
    mapper = plain(cfg)
    example = mapper(dicts[0])
    np.testing.assert_array_equal(example["sem_seg"], classes)
    assert len(example["instances"]) == 300


def test_lists_choose_images(cfg: CfgNode, id_png_entry: Entry, data_root: Path) -> None:
    (data_root / "list.txt").write_text("deep/b\n")
    assert [record["file_name"] for record in load(cfg, id_png_entry | {"LIST": "list.txt"})] == [
        str(data_root / "own/images/deep/b.png")
    ]
    (data_root / "list.txt").write_text("deep/b.png\na.png\n")
    assert len(load(cfg, id_png_entry | {"LIST": "list.txt"})) == 2
    (data_root / "list.txt").write_text("c.png\n")
    with pytest.raises(FileNotFoundError, match=r"list\.txt: names c\.png, but .*images has no such image"):
        load(cfg, id_png_entry | {"LIST": "list.txt"})
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt: no such file, but an entry of DATASETS"):
        load(cfg, id_png_entry | {"LIST": "nowhere.txt"})


def test_registering_again(cfg: CfgNode, entry: Entry) -> None:
    load(cfg, entry)
    before = MetadataCatalog.get("own")
    register_custom_datasets(cfg)
    assert MetadataCatalog.get("own") is before
    changed = entry | {"IMAGES": "moved"}
    cfg.DATASETS.CUSTOM.own = CfgNode(changed)
    register_custom_datasets(cfg)
    assert MetadataCatalog.get("own").image_root.endswith("moved")


def test_data_may_come_later(cfg: CfgNode, entry: Entry, data_root: Path) -> None:
    away = data_root.with_name("away")
    data_root.rename(away)
    cfg.DATASETS.CUSTOM.own = CfgNode(entry)
    register_custom_datasets(cfg)  # a demo needs names of classes, not the data
    if entry["FORMAT"] == "id_png":
        assert MetadataCatalog.get("own").stuff_classes == ["car", "person", "road"]
    with pytest.raises(
        FileNotFoundError, match=r"no such (folder|file)\. Relative paths start at \$DETECTRON2_DATASETS"
    ):
        DatasetCatalog.get("own")
    away.rename(data_root)
    assert DatasetCatalog.get("own")
    assert MetadataCatalog.get("own").thing_classes == ["car", "person"]
    assert Path(MetadataCatalog.get("own").json_file).is_file()


def test_conversion_happens_once_and_leaves_the_source_alone(
    cfg: CfgNode, id_png_entry: Entry, data_root: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in data_root.rglob("*")}
    load(cfg, id_png_entry)
    assert {path: path.stat().st_mtime_ns for path in data_root.rglob("*")} == before
    made = Path(MetadataCatalog.get("own").panoptic_json)
    first = made.stat().st_mtime_ns
    load(cfg, id_png_entry)
    assert made.stat().st_mtime_ns == first
    shutil.copy(data_root / "own/instances/deep/b.png", data_root / "own/instances/a.png")  # of another size now
    with pytest.raises(ValueError, match=r"instances/a\.png: the mask is 24 x 32 .*its image is\s+40 x 60"):
        DatasetCatalog.get("own")


WRONG_KEYS: list[tuple[str, Entry, str]] = [
    (
        "id_png",
        {"FORMAT": "coco"},
        "own.FORMAT: is 'coco', expected one of coco_instance, coco_panoptic, id_png, color_png",
    ),
    (
        "id_png",
        {"MASKS": "x"},
        "own: has the key MASKS, which id_png does not know. Expected IMAGES and perhaps .*CLASSES",
    ),
    ("id_png", {"IMAGES": None}, "own: lacks the key IMAGES, which id_png needs"),
    ("id_png", {"INSTANCES": None, "CLASSES": None}, "own: has neither INSTANCES nor CLASSES"),
    ("id_png", {"CLASS_NAMES": None}, "own: lacks CLASS_NAMES, which CLASSES need"),
    ("id_png", {"CLASS_NAMES": ["a", "a"]}, "own.CLASS_NAMES: has 'a' more than once"),
    ("id_png", {"CLASS_NAMES": 3}, "own.CLASS_NAMES: is 3, expected a list of names, or a text file of them"),
    ("id_png", {"CLASS_NAMES": []}, "own.CLASS_NAMES: is empty, expected the names of the classes"),
    ("id_png", {"CLASS_NAMES": "none.txt"}, "none.txt: no such file, but an entry of DATASETS.CUSTOM names it"),
    ("id_png", {"THINGS": None}, "own: has no THINGS but INSTANCES, expected both or neither"),
    ("id_png", {"INSTANCES": None}, "own: has THINGS but no INSTANCES, expected both or neither"),
    ("id_png", {"THINGS": ["bus"]}, r"own.THINGS: 'bus' is not one of CLASS_NAMES \(road, car, person\)"),
    ("id_png", {"THINGS": "car"}, "own.THINGS: is 'car', expected a list of names"),
    ("id_png", {"THINGS": 1}, "own.THINGS: is 1, expected a list of names"),
    ("id_png", {"BACKGROUND": "sky"}, "own.BACKGROUND: CLASSES say it themselves"),
    ("id_png", {"IGNORE_VALUE": "none"}, "own.IGNORE_VALUE: is 'none', expected a pixel value"),
    ("id_png", {"IGNORE_VALUE": 1}, "own.IGNORE_VALUE: is 1, which CLASS_NAMES call 'car'"),
    ("id_png", {"CLASSES": None}, "own.THINGS: says something about CLASSES, which is not given"),
    ("id_png", {"CLASSES": None, "THINGS": None}, "own.CLASS_NAMES: has 3 names, expected one"),
    (
        "coco_instance",
        {"SEGMENTS": "x"},
        "own: has the key SEGMENTS, .* Expected ANNOTATIONS, IMAGES and perhaps LIST, SKIP_BAD",
    ),
    ("coco_panoptic", {"SEGMENTS": None}, "own: lacks the key SEGMENTS, which coco_panoptic needs"),
]


@pytest.mark.parametrize(("form", "change", "message"), WRONG_KEYS)
def test_wrong_entries(cfg: CfgNode, form: str, change: Entry, message: str, request: pytest.FixtureRequest) -> None:
    entry = request.getfixturevalue(f"{form}_entry") | change
    entry = {key: value for key, value in entry.items() if value is not None}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(cfg, entry)


def test_wrong_names(cfg: CfgNode, id_png_entry: Entry) -> None:
    with pytest.raises(ValueError, match=r"CUSTOM\.coco_2017_val: a data set of this name exists already"):
        load(cfg, id_png_entry, "coco_2017_val")
    del cfg.DATASETS.CUSTOM["coco_2017_val"]
    cfg.DATASETS.CUSTOM.own = "nuclei/train"
    with pytest.raises(ValueError, match=r"CUSTOM\.own: is 'nuclei/train', expected keys such as FORMAT and IMAGES"):
        register_custom_datasets(cfg)


def test_wrong_id_pngs(cfg: CfgNode, id_png_entry: Entry, data_root: Path, write: Any) -> None:
    def fails(message: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(cfg, id_png_entry)

    own = data_root / "own"
    write("own/classes/deep/b.png", np.full((24, 32), 7, dtype=np.uint8))
    fails(r"classes/deep/b\.png: has class value 7, expected one of \[0, 1, 2, 255\]")
    (own / "classes/deep/b.png").unlink()
    fails(r"images/deep/b\.png: has no mask .*classes/deep/b\.png\. Add it")
    write("own/images/deep/b.jpg", np.zeros((24, 32, 3), dtype=np.uint8))
    fails(r"images/deep/b\.png: has the same name as .*images/deep/b\.jpg")
    shutil.rmtree(own / "images/deep")
    shutil.rmtree(own / "images")
    (own / "images").mkdir()
    fails(r"images: has no images \(\.bmp, ")


def test_masks_without_an_image(cfg: CfgNode, id_png_entry: Entry, data_root: Path, write: Any) -> None:
    for folder in ("instances", "classes"):
        write(f"own/{folder}/z.png", np.zeros((24, 32), dtype=np.uint8))
    for _ in range(2):  # also when all has been read before
        with pytest.raises(DataError) as error:
            load(cfg, id_png_entry)
        assert [str(fault) for fault in error.value.faults] == [
            f"{data_root}/own/{folder}/z.png: has no image in {data_root}/own/images. Add it, or remove the file."
            for folder in ("instances", "classes")
        ]
    assert len(load(cfg, id_png_entry | {"SKIP_BAD": True})) == 2
    (data_root / "list.txt").write_text("a.png\n")
    assert len(load(cfg, id_png_entry | {"LIST": "list.txt"})) == 1


def test_folders_may_repeat_names(cfg: CfgNode, id_png_entry: Entry, data_root: Path) -> None:
    for part in ("images", "instances", "classes"):
        shutil.copytree(data_root / "own" / part / "deep", data_root / "own" / part / "deeper")
    dicts = load(cfg, id_png_entry)
    assert [Path(record["file_name"]).name for record in dicts] == ["a.png", "b.png", "b.png"]
    assert len({record["pan_seg_file_name"] for record in dicts}) == 3


def test_hidden_files_do_not_count(cfg: CfgNode, id_png_entry: Entry, write: Any) -> None:
    write("own/images/.a.png", np.zeros((2, 2), dtype=np.uint8))
    write("own/images/.thumbnails/a.png", np.zeros((2, 2), dtype=np.uint8))
    assert len(load(cfg, id_png_entry)) == 2


def test_wrong_coco_files(cfg: CfgNode, coco_instance_entry: Entry, data_root: Path) -> None:
    path = data_root / "coco/instances.json"
    content = json.loads(path.read_text())

    def fails(message: str, **change: Any) -> None:
        path.write_text(json.dumps(content | change))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(cfg, coco_instance_entry)

    first, *others = content["annotations"]
    fails(r'instances\.json: has no list "images", expected a COCO', images={})
    fails('annotation 1: has category_id 99, which is not in "categories"', annotations=[first | {"category_id": 99}])
    fails('annotation 1: has image_id 99, which is not in "images"', annotations=[first | {"image_id": 99}])
    fails("annotation 1: has no segmentation", annotations=[first | {"segmentation": []}])
    fails('annotation 2: id occurs more than once in "annotations"', annotations=[first | {"id": 2}, *others])
    fails('id 7 occurs more than once in "images"', images=[content["images"][0]] * 2)
    fails('id 8 occurs more than once in "categories"', categories=[{"id": 8, "name": "a"}, *content["categories"]])
    missing = {"id": 11, "file_name": "c.png", "height": 2, "width": 2}
    fails(r"instances\.json: image 11: .*images/c\.png: no such file", images=[*content["images"], missing])
    path.write_text("{")
    with pytest.raises(ValueError, match=r"instances\.json: is not JSON"):
        load(cfg, coco_instance_entry)


def test_wrong_coco_panoptic_files(cfg: CfgNode, coco_panoptic_entry: Entry, data_root: Path) -> None:
    path = data_root / "pan/panoptic.json"
    content = json.loads(path.read_text())
    annotation = content["annotations"][0]
    path.write_text(json.dumps(content | {"annotations": [annotation | {"image_id": 99}]}))
    with pytest.raises(ValueError, match=r'panoptic\.json: annotation 1: image_id 99 is annotated but not in "images"'):
        load(cfg, coco_panoptic_entry)
    unannotated = {"id": 8, "file_name": "b.png", "height": 40, "width": 60}
    shutil.copy(data_root / "pan/images/a.png", data_root / "pan/images/b.png")
    path.write_text(json.dumps(content | {"images": [*content["images"], unannotated]}))
    with pytest.raises(ValueError, match=r"image 8: b\.png is not annotated. Give it an annotation"):
        load(cfg, coco_panoptic_entry)
    path.write_text(json.dumps(content | {"annotations": [annotation] * 2}))
    with pytest.raises(ValueError, match='id 7 occurs more than once in "annotations"'):
        load(cfg, coco_panoptic_entry)
    segment = annotation["segments_info"][0] | {"category_id": 99}
    path.write_text(json.dumps(content | {"annotations": [annotation | {"segments_info": [segment]}]}))
    with pytest.raises(ValueError, match=r"segment 70000 has category_id 99, which is not in"):
        load(cfg, coco_panoptic_entry)
    path.write_text(json.dumps(content))
    (data_root / "pan/segments/a.png").unlink()
    with pytest.raises(ValueError, match=r"segments/a\.png: no such file"):
        load(cfg, coco_panoptic_entry)
