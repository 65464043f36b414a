"""The mappers: what they read, and that masks stay where the image shows them."""

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from panopticapi.utils import rgb2id

from mask2former.data import DATASET_MAPPERS, build_dataset_mapper, register_custom_datasets
from mask2former.data.augmentation import QuarterTurn
from mask2former.data.dataset_mappers import (
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from mask2former.data.dataset_mappers.base import _LabelledImage, build_transform_gen
from mask2former.data.label_map import LabelMap

Entry = dict[str, Any]
Scene = dict[str, np.ndarray]
CAR, PERSON, ROAD = 0, 1, 2


@pytest.fixture
def panoptic_dict(cfg: CfgNode, id_png_entry: Entry) -> Entry:
    cfg.DATASETS.CUSTOM.mapped_panoptic = CfgNode(id_png_entry)
    register_custom_datasets(cfg)
    return DatasetCatalog.get("mapped_panoptic")[0]


@pytest.fixture
def instance_dicts(cfg: CfgNode, coco_instance_entry: Entry) -> list[Entry]:
    cfg.DATASETS.CUSTOM.mapped_instance = CfgNode(coco_instance_entry)
    register_custom_datasets(cfg)
    return DatasetCatalog.get("mapped_instance")


def plain(
    cfg: CfgNode, name: str, augmentations: tuple[T.Augmentation | T.Transform, ...] = ()
) -> MaskFormerDatasetMapper:
    """A mapper that leaves images as they are, or does what it is told."""
    return DATASET_MAPPERS[name](cfg, is_train=True, augmentations=list(augmentations))


def by_class(example: Entry) -> dict[int, list[np.ndarray]]:
    masks: dict[int, list[np.ndarray]] = {}
    for class_id, mask in zip(example["instances"].gt_classes.tolist(), example["instances"].gt_masks, strict=True):
        masks.setdefault(class_id, []).append(mask.numpy())
    return masks


def same_masks(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return sorted(mask.tobytes() for mask in found) == sorted(np.asarray(mask).tobytes() for mask in expected)


def test_panoptic_targets(cfg: CfgNode, panoptic_dict: Entry, scene: Scene) -> None:
    example = plain(cfg, "mask_former_panoptic")(panoptic_dict)
    masks = by_class(example)
    assert same_masks(masks.pop(CAR), [scene["instances"] == 1, scene["instances"] == 300])
    assert same_masks(masks.pop(PERSON), [scene["instances"] == 2])
    assert same_masks(masks.pop(ROAD), [scene["classes"] == 0])
    assert not masks
    crowd = (scene["classes"] == 2) & (scene["instances"] == 0)
    void = (scene["classes"] == 255) | crowd
    np.testing.assert_array_equal(example["ignore_mask"], void)
    np.testing.assert_array_equal(example["image"].permute(1, 2, 0), scene["image"])
    # So are the pixels of a segment that is not listed.
    listed = [segment for segment in panoptic_dict["segments_info"] if segment["category_id"] != ROAD]
    example = plain(cfg, "mask_former_panoptic")(panoptic_dict | {"segments_info": listed})
    assert by_class(example).keys() == {CAR, PERSON}
    np.testing.assert_array_equal(example["ignore_mask"], void | (scene["classes"] == 0))


def test_instance_targets_of_a_panoptic_data_set(cfg: CfgNode, panoptic_dict: Entry, scene: Scene) -> None:
    example = plain(cfg, "mask_former_instance")(panoptic_dict)
    masks = by_class(example)
    assert same_masks(masks.pop(CAR), [scene["instances"] == 1, scene["instances"] == 300])
    assert same_masks(masks.pop(PERSON), [scene["instances"] == 2])
    assert not masks
    # Unlabelled pixels and stuff are background, only crowds are not judged.
    np.testing.assert_array_equal(example["ignore_mask"], (scene["classes"] == 2) & (scene["instances"] == 0))


def test_instance_targets_of_annotations(cfg: CfgNode, instance_dicts: list[Entry], scene: Scene) -> None:
    annotations = instance_dicts[0]["annotations"]
    assert [type(annotation["segmentation"]) for annotation in annotations[:3]] == [list, dict, dict]
    annotations.append({"category_id": CAR, "segmentation": scene["classes"] == 0})  # a bitmap, below the others
    annotations[-1]["segmentation"][:] |= scene["instances"] == 1
    height, width = scene["classes"].shape
    runs = [height, height, height * (width - 2)]  # the second column, not compressed
    annotations.append({"category_id": PERSON, "segmentation": {"size": [height, width], "counts": runs}})
    example = plain(cfg, "mask_former_instance")(instance_dicts[0])
    masks = by_class(example)
    overlapping = (scene["classes"] == 0) | (scene["instances"] == 1)
    assert same_masks(masks.pop(CAR), [scene["instances"] == 1, scene["instances"] == 300, overlapping])
    second_column = np.arange(width) == np.ones((height, 1))
    assert same_masks(masks.pop(PERSON), [scene["instances"] == 2, second_column])
    np.testing.assert_array_equal(example["ignore_mask"], (scene["classes"] == 2) & (scene["instances"] == 0))


def test_images_without_annotations(cfg: CfgNode, instance_dicts: list[Entry]) -> None:
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    for name in ("mask_former_instance", "coco_instance_lsj"):
        cfg.INPUT.DATASET_MAPPER_NAME = name
        instances = build_dataset_mapper(cfg)(instance_dicts[1])["instances"]
        assert instances.gt_classes.shape == (0,)
        assert instances.gt_masks.shape == (0, *instances.image_size)


def test_semantic_targets(cfg: CfgNode, panoptic_dict: Entry, scene: Scene) -> None:
    example = plain(cfg, "mask_former_semantic")(panoptic_dict)
    expected = np.select([scene["classes"] == value for value in (0, 1, 2)], [ROAD, CAR, PERSON], 255)
    np.testing.assert_array_equal(example["sem_seg"], expected)
    assert example["sem_seg"].dtype == torch.int64
    assert example["instances"].gt_classes.tolist() == [CAR, PERSON, ROAD]
    np.testing.assert_array_equal(example["instances"].gt_masks, np.stack([expected == k for k in (CAR, PERSON, ROAD)]))
    np.testing.assert_array_equal(example["ignore_mask"], expected == 255)


@pytest.mark.parametrize(
    ("name", "source"),
    [(name, "panoptic") for name in DATASET_MAPPERS]
    + [(name, "annotations") for name in DATASET_MAPPERS if "instance" in name],
)
def test_masks_stay_where_the_image_shows_them(
    cfg: CfgNode, name: str, source: str, request: Any, scene: Scene, write: Any
) -> None:
    """Every target has a colour of its own: in every augmented image, colours and masks must agree."""
    if source == "annotations":
        record = request.getfixturevalue("instance_dicts")[0]
    else:
        record = request.getfixturevalue("panoptic_dict")
    if "semantic" in name:
        write("own/images/a.png", np.stack([scene["classes"] * 40] * 3, axis=2))
    cfg.INPUT.DATASET_MAPPER_NAME = name
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.RANDOM_QUARTER_TURN = "both", True
    cfg.INPUT.MIN_SIZE_TRAIN = (30, 80)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [36, 36]
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.INPUT.SIZE_DIVISIBILITY = 64
    mapper = build_dataset_mapper(cfg)
    seen = 0
    for _ in range(25):
        example = mapper(record)
        assert example["image"].shape == (3, 64, 64)
        assert example["ignore_mask"].shape == (64, 64)
        assert example["instances"].image_size == (64, 64)
        image = example["image"].permute(1, 2, 0).numpy().astype(int)
        for mask in example["instances"].gt_masks.numpy():
            assert mask.any()
            assert not (mask & example["ignore_mask"].numpy()).any()
            inside = eroded(mask)
            colours = np.unique(image[inside], axis=0)
            if len(colours):
                assert (np.ptp(colours, axis=0) <= 1).all()
                seen += 1
        gray = eroded((image == 128).all(axis=2))
        assert example["ignore_mask"].numpy()[gray].all()  # padding
    assert seen > 20


def eroded(mask: np.ndarray, by: int = 2) -> np.ndarray:
    """Pixels whose neighbours are in the mask too: interpolation does not mix other colours into those."""
    padded = np.pad(mask, by)
    height, width = mask.shape
    shifted = [padded[i : i + height, j : j + width] for i in range(2 * by + 1) for j in range(2 * by + 1)]
    return np.logical_and.reduce(shifted)


@pytest.mark.parametrize("name", DATASET_MAPPERS)
def test_same_seed_same_example_from_a_pickled_mapper(cfg: CfgNode, name: str, panoptic_dict: Entry) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = name
    cfg.INPUT.COLOR_AUG_SSD = True
    mapper = build_dataset_mapper(cfg)
    before = copy.deepcopy(panoptic_dict)

    def examples(mapper: Callable[[Entry], Entry], seed: int) -> list[Entry]:
        random.seed(seed)
        np.random.seed(seed)
        return [mapper(panoptic_dict) for _ in range(3)]

    first, again = examples(mapper, 1), examples(pickle.loads(pickle.dumps(mapper)), 1)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["instances"].gt_masks, two["instances"].gt_masks)
    assert not torch.equal(first[0]["image"], examples(mapper, 2)[0]["image"])
    assert panoptic_dict == before


@pytest.mark.parametrize("name", DATASET_MAPPERS)
def test_what_the_model_gets(cfg: CfgNode, name: str, panoptic_dict: Entry) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = name
    example = build_dataset_mapper(cfg)(panoptic_dict | {"kind": "street"})
    keys = {"file_name", "image_id", "height", "width", "image", "instances", "ignore_mask", "kind"}
    assert example.keys() - {"sem_seg"} == keys
    assert (example["height"], example["width"]) == (40, 60)
    assert example["image"].dtype == torch.uint8
    assert example["image"].is_contiguous()
    assert example["instances"].gt_classes.dtype == torch.int64
    assert example["instances"].gt_masks.dtype == example["ignore_mask"].dtype == torch.bool

    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT = 20, "BGR"
    example = build_dataset_mapper(cfg, is_train=False)(panoptic_dict)
    assert example.keys() == {"file_name", "image_id", "height", "width", "image"}
    assert (example["image"].shape, example["height"], example["width"]) == ((3, 20, 30), 40, 60)


def test_gray_input(cfg: CfgNode, panoptic_dict: Entry) -> None:
    cfg.INPUT.FORMAT, cfg.INPUT.DATASET_MAPPER_NAME = "L", "coco_panoptic_lsj"
    assert build_dataset_mapper(cfg)(panoptic_dict)["image"].shape == (1, 64, 64)
    assert build_dataset_mapper(cfg, is_train=False)(panoptic_dict)["image"].shape[0] == 1


def test_crops_look_at_classes_not_segments() -> None:
    labels = LabelMap(np.array([[0, 1], [2, 3]]), np.array([4, 4, 7]))
    np.testing.assert_array_equal(_LabelledImage(np.zeros((2, 2, 3)), labels).sem_seg, [[0, 5], [5, 8]])


def test_padding_is_void_beside_an_rle(cfg: CfgNode, instance_dicts: list[Entry], scene: Scene) -> None:
    pad = T.PadTransform(0, 0, 4, 8, pad_value=128, seg_pad_value=0)
    example = plain(cfg, "coco_instance_lsj", (pad,))(instance_dicts[0])
    assert example["instances"].gt_masks.shape == (3, 48, 64)
    assert not example["instances"].gt_masks[:, 40:].any()
    assert example["ignore_mask"][40:].all()
    assert example["ignore_mask"][:, 60:].all()


def test_polygons_that_leave_the_crop(cfg: CfgNode, instance_dicts: list[Entry], scene: Scene) -> None:
    example = plain(cfg, "mask_former_instance", (T.CropTransform(10, 20, 15, 12),))(instance_dicts[0])
    cars = by_class(example)[CAR]
    assert same_masks(cars, [(scene["instances"] == number)[20:32, 10:25] for number in (1, 300)])
    assert PERSON not in by_class(example)


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1)])
def test_turns_of_a_single_row_or_column(cfg: CfgNode, size: tuple[int, int], write: Any) -> None:
    bitmap = np.arange(size[0] * size[1]).reshape(size) % 3 == 0
    path = write("own/images/line.png", np.stack([bitmap * np.uint8(200)] * 3, axis=2))
    record = {"file_name": path, "annotations": [{"category_id": CAR, "segmentation": bitmap}]}
    flips = (T.RandomFlip(1, horizontal=True), T.RandomFlip(1, horizontal=False, vertical=True))
    for turns, augmentations in [(2, flips), *((turns, (QuarterTurn(turns, *size),)) for turns in (1, 2, 3))]:
        example = plain(cfg, "mask_former_instance", augmentations)(record)
        np.testing.assert_array_equal(example["instances"].gt_masks[0], np.rot90(bitmap, turns))
        np.testing.assert_array_equal(example["image"][0] == 200, np.rot90(bitmap, turns))


@pytest.mark.parametrize(("dtype", "ignored"), [(np.uint8, 7), (np.uint8, 254), (np.uint16, 65535), (np.uint16, -2)])
def test_any_label_may_be_ignored(cfg: CfgNode, dtype: type, ignored: int, write: Any) -> None:
    classes = np.array([[0, 7, 254], [255, 300 % (np.iinfo(dtype).max + 1), np.iinfo(dtype).max - 1]], dtype=dtype)
    if ignored == 65535:
        classes[0, 0] = ignored
    mapper = plain(cfg, "mask_former_semantic")
    mapper.ignore_label, mapper.num_classes = ignored, None
    path = write("own/images/b.png", np.zeros((2, 3, 3), np.uint8))
    example = mapper({"file_name": path, "sem_seg_file_name": write("own/classes/b.png", classes)})
    np.testing.assert_array_equal(example["sem_seg"], classes)
    np.testing.assert_array_equal(example["ignore_mask"], classes == ignored)
    assert example["instances"].gt_classes.tolist() == sorted(set(classes.ravel().tolist()) - {ignored})


def test_errors_name_the_image(cfg: CfgNode, panoptic_dict: Entry, instance_dicts: list[Entry], write: Any) -> None:
    def fails(name: str, record: Entry, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            plain(cfg, name)(record)

    fails("mask_former_panoptic", instance_dicts[0], r"a\.png: has no panoptic annotation")
    fails("mask_former_semantic", instance_dicts[0], r"a\.png: has no semantic annotation")
    fails("mask_former_panoptic", panoptic_dict | {"height": 41}, r"a\.png: the image is 40 x 60 .* say 41 x 60")
    small = write("small.png", np.zeros((5, 6, 3), dtype=np.uint8))
    for name, key in (("mask_former_panoptic", "pan_seg_file_name"), ("mask_former_semantic", "sem_seg_file_name")):
        fails(name, panoptic_dict | {key: str(small)}, r"small\.png: the mask is 5 x 6 .* its image is\s40 x 60")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    fails("mask_former_panoptic", panoptic_dict, r"a\.png: is annotated with class id 2, expected 0 to 1")

    for segmentation, message in {
        "nothing": "a segmentation is str, expected a list of polygons",
        (1.0, 1.0, 2.0, 2.0, np.nan, 1.0): "a polygon has the coordinate nan, expected pixels of the image",
        (1.0, 1.0, 2.0, 2.0, 1e19, 1.0): r"a polygon has the coordinate 1e\+19, expected pixels of the image",
        (1.0, 1.0, 2.0, 2.0): "a polygon has 4 coordinates, expected x and y of three points",
        (("size", (9, 9)), ("counts", (81,))): r"an RLE is \(9, 9\) \(height, width\), its image is \(40, 60\)",
        None: "a segmentation is NoneType",
    }.items():
        value: Any = segmentation
        if isinstance(segmentation, tuple):
            value = [list(segmentation)] if isinstance(segmentation[0], float) else dict(segmentation)
        record = instance_dicts[0] | {"annotations": [{"category_id": 0, "segmentation": value}]}
        fails("mask_former_instance", record, rf"a\.png: annotation 0 of the image: {message}")
    deep = write("deep.png", np.full((40, 60), 65535, dtype=np.uint16))
    fails(
        "mask_former_semantic", panoptic_dict | {"sem_seg_file_name": deep}, r"deep\.png: has class id 65535, expected"
    )
    bitmap = instance_dicts[0] | {"annotations": [{"category_id": 0, "segmentation": np.zeros((3, 4))}]}
    fails("mask_former_instance", bitmap, r"a mask is \(3, 4\) \(height, width\), its image is \(40, 60\)")


def test_configuration_errors(cfg: CfgNode, panoptic_dict: Entry) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_lsj"
    with pytest.raises(ValueError, match='DATASET_MAPPER_NAME is "coco_lsj", expected one of mask_former_semantic, '):
        build_dataset_mapper(cfg)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    MetadataCatalog.get("mapped_deep").set(ignore_label=65535)
    cfg.DATASETS.TRAIN = ("mapped_panoptic", "mapped_deep")
    with pytest.raises(ValueError, match=r"have different ignore labels \[255, 65535\]"):
        build_dataset_mapper(cfg)
    cfg.DATASETS.TRAIN = ("mapped_deep",)
    assert build_dataset_mapper(cfg).ignore_label == 65535


class _OfficialPanoptic(COCOPanopticNewBaselineDatasetMapper):
    """As programs of the official release derive a mapper: by its arguments and attributes."""

    @configurable
    def __init__(self, is_train: bool = True, *, tfm_gens: list[Any], image_format: str, brightness: float) -> None:
        super().__init__(is_train, tfm_gens=tfm_gens, image_format=image_format)
        self.brightness = brightness

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Entry:
        arguments = super().from_config(cfg, is_train)
        assert arguments.keys() == {"is_train", "tfm_gens", "image_format"}
        arguments["tfm_gens"] = [*build_transform_gen(cfg, is_train), T.RandomBrightness(0.9, 1.1)]
        return {**arguments, "brightness": 0.1}

    def __call__(self, dataset_dict: Entry) -> Entry:
        image = detection_utils.read_image(dataset_dict["file_name"], self.img_format)
        image, transforms = T.apply_transform_gens(self.tfm_gens, image)
        segments = detection_utils.read_image(dataset_dict["pan_seg_file_name"], "RGB")
        ids = rgb2id(transforms.apply_segmentation(segments))
        return {"image": image, "masks": [ids == segment["id"] for segment in dataset_dict["segments_info"]]}


def test_a_mapper_that_was_derived_from_the_official_one(cfg: CfgNode, panoptic_dict: Entry, scene: Scene) -> None:
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SIZE_TEST = 48, 0
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
    example = _OfficialPanoptic(cfg, True)(panoptic_dict)
    assert example["image"].shape == (48, 48, 3)
    assert all(mask.shape == (48, 48) and mask.any() for mask in example["masks"])
    assert np.sum(example["masks"], axis=0).max() == 1


class _OfficialSemantic(MaskFormerSemanticDatasetMapper):
    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: list[Any],
        image_format: str,
        ignore_label: int,
        size_divisibility: int,
    ) -> None:
        super().__init__(
            is_train,
            augmentations=[*augmentations, T.NoOpTransform()],
            image_format=image_format,
            ignore_label=ignore_label,
            size_divisibility=size_divisibility,
        )


def test_official_arguments_of_the_other_mappers(cfg: CfgNode, panoptic_dict: Entry) -> None:
    cfg.INPUT.SIZE_DIVISIBILITY = 64
    mapper = _OfficialSemantic(cfg, True)
    assert (mapper.img_format, mapper.ignore_label, mapper.size_divisibility) == (cfg.INPUT.FORMAT, 255, 64)
    # They do not pad: the official __call__ does so itself, a semantic map with the ignore label.
    names = [type(augmentation).__name__ for augmentation in mapper.tfm_gens]
    assert names == ["FastResize", "RandomFlip", "NoOpTransform"]
    assert [side % 64 for side in mapper(panoptic_dict)["image"].shape[1:]] == [0, 0]
    assert _OfficialSemantic(cfg, False).size_divisibility == -1


def test_a_derived_mapper_that_takes_a_configuration(cfg: CfgNode, panoptic_dict: Entry) -> None:
    class FromConfiguration(MaskFormerSemanticDatasetMapper):
        def __init__(self, cfg: CfgNode, is_train: bool = True) -> None:
            super().__init__(cfg, is_train)
            self.calls = 0

        def __call__(self, dataset_dict: Entry) -> Entry:
            self.calls += 1
            return super().__call__(dataset_dict)

    mapper = FromConfiguration(cfg)
    assert "instances" in mapper(panoptic_dict)
    assert mapper.calls == 1


@pytest.mark.parametrize("kind", [list, T.AugmentationList])
def test_augmentations_may_be_assigned(cfg: CfgNode, panoptic_dict: Entry, kind: Any) -> None:
    mapper = _OfficialSemantic(cfg, True)
    mapper.augmentations = kind([T.Resize((32, 48))])
    assert mapper(panoptic_dict)["image"].shape == (3, 32, 48)
    assert [type(augmentation) for augmentation in mapper.tfm_gens] == [T.Resize]


def test_augmentations_are_needed() -> None:
    with pytest.raises(TypeError, match="MaskFormerDatasetMapper needs augmentations"):
        MaskFormerDatasetMapper(image_format="RGB")
