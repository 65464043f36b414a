"""Times the dataset mappers of large-scale jittering against mappers that use Detectron2 in the plain way.

    python tools/benchmarks/mapper.py
    python tools/benchmarks/mapper.py --images FOLDER --panoptic FILE.json SEGMENTS_FOLDER
    python tools/benchmarks/mapper.py --images FOLDER --instances FILE.json

The files are COCO's; without any, pictures of ellipses are drawn. The plain mappers do what the paper's release
describes: the image and its annotations go through Detectron2's transforms, a panoptic PNG as a colour picture,
annotations one by one, and every target gets a mask and a box. Both read the same images with the same random numbers
in turn; figures are the images' mean of their medians. What decoding the files takes, which is the same for both, is
told besides.
"""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import argparse
import copy
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import write_json
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances, PolygonMasks
from drawn_coco import draw_panoptic_data
from panopticapi.utils import rgb2id

from mask2former.data import build_dataset_mapper, register_custom_datasets
from mask2former.engine import load_config

Record = dict[str, Any]
Mapper = Callable[[Record], Record]

CONFIG = "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
NAME = "benchmark"
DRAWN = 12  # images, if none are given


def main() -> None:
    """Draws data if none are given, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of the photographs")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--panoptic", nargs=2, type=Path, metavar=("JSON", "SEGMENTS"), help="as of COCO")
    task.add_argument("--instances", type=Path, metavar="JSON", help="as of COCO")
    parser.add_argument("--size", type=int, default=1024, help="of the crops (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="through all images (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=50, help="most images (default: %(default)s)")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, where other programs run too"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if (arguments.images is None) != (arguments.panoptic is None and arguments.instances is None):
        parser.error("--images goes together with --panoptic or --instances")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images is None:
            arguments.images, *arguments.panoptic = draw_panoptic_data(DRAWN, Path(folder))
        milliseconds = time_mappers(arguments)
    write_json(arguments.json, {"milliseconds": milliseconds})


def time_mappers(arguments: argparse.Namespace) -> dict[str, float]:
    """Prints a table, and returns its milliseconds an image."""
    cfg = make_config(arguments)
    records = DatasetCatalog.get(NAME)[: arguments.limit]
    plain = plain_panoptic_mapper if arguments.panoptic else plain_instance_mapper
    contenders: dict[str, Mapper] = {
        "ours": build_dataset_mapper(cfg),
        "plain": plain(plain_recipe(cfg), cfg.INPUT.FORMAT),
        "decoding alone": lambda record: read_files(record, cfg.INPUT.FORMAT),
    }
    milliseconds = compare(contenders, records, arguments.rounds, arguments.clock)
    print(f"{len(records)} images, {arguments.rounds} rounds, crops of {arguments.size} pixels")
    for name, value in milliseconds.items():
        print(f"{name:16}{value:8.1f} ms an image   {milliseconds['plain'] / value:5.2f} times as fast as plain")
    return milliseconds


def make_config(arguments: argparse.Namespace) -> CfgNode:
    """The configuration of the paper's recipe, on the given files, which are registered."""
    cfg = load_config(str(Path(__file__).resolve().parents[2] / CONFIG))
    cfg.defrost()
    entry = {"FORMAT": "coco_instance", "IMAGES": str(arguments.images), "ANNOTATIONS": str(arguments.instances)}
    if arguments.panoptic:
        annotations, segments = map(str, arguments.panoptic)
        entry.update(FORMAT="coco_panoptic", ANNOTATIONS=annotations, SEGMENTS=segments)
    cfg.DATASETS.CUSTOM = CfgNode({NAME: entry})
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj" if arguments.panoptic else "coco_instance_lsj"
    cfg.INPUT.IMAGE_SIZE = arguments.size
    register_custom_datasets(cfg)
    return cfg


def compare(contenders: dict[str, Mapper], records: list[Record], rounds: int, clock: str) -> dict[str, float]:
    """Means over the images of the median milliseconds that each takes."""
    read = time.perf_counter if clock == "wall" else time.process_time
    seconds: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for number, record in enumerate(records):
        for times in seconds.values():
            times.append([])
        for seed in range(rounds):
            for name, mapper in contenders.items():
                random.seed(number * rounds + seed)
                np.random.seed(number * rounds + seed)
                begin = read()
                mapper(record)
                seconds[name][-1].append(read() - begin)
    return {
        name: 1000 * statistics.mean(statistics.median(of_image) for of_image in times)
        for name, times in seconds.items()
    }


def read_files(record: Record, image_format: str) -> Record:
    """Only read what a mapper reads."""
    detection_utils.read_image(record["file_name"], image_format)
    if "pan_seg_file_name" in record:
        detection_utils.read_image(record["pan_seg_file_name"], "RGB")
    return record


def plain_recipe(cfg: CfgNode) -> list[T.Augmentation]:
    """Large-scale jittering of Detectron2's parts."""
    size = cfg.INPUT.IMAGE_SIZE
    resize = T.ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, size, size)
    return [T.RandomFlip(), resize, T.FixedSizeCrop((size, size))]


def plain_panoptic_mapper(augmentations: list[T.Augmentation], image_format: str) -> Mapper:
    """Move the PNG as a picture, then cut out a mask and a box of every segment."""

    def map_record(record: Record) -> Record:
        record = copy.deepcopy(record)
        image = detection_utils.read_image(record["file_name"], image_format)
        detection_utils.check_image_size(record, image)
        image, transforms = T.apply_transform_gens(augmentations, image)
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        segments = record.pop("segments_info")
        picture = detection_utils.read_image(record.pop("pan_seg_file_name"), "RGB")
        ids = rgb2id(transforms.apply_segmentation(picture))
        kept = [segment for segment in segments if not segment["iscrowd"]]
        instances = Instances(image.shape[:2])
        instances.gt_classes = torch.tensor([segment["category_id"] for segment in kept], dtype=torch.int64)
        masks = [torch.from_numpy(np.ascontiguousarray(ids == segment["id"])) for segment in kept]
        bit_masks = BitMasks(torch.stack(masks) if masks else torch.zeros((0, *ids.shape)))
        instances.gt_masks = bit_masks.tensor
        instances.gt_boxes = bit_masks.get_bounding_boxes()
        record["instances"] = instances
        return record

    return map_record


def plain_instance_mapper(augmentations: list[T.Augmentation], image_format: str) -> Mapper:
    """Move annotations one by one, then draw a mask of each."""

    def map_record(record: Record) -> Record:
        record = copy.deepcopy(record)
        image = detection_utils.read_image(record["file_name"], image_format)
        detection_utils.check_image_size(record, image)
        # What is padded is marked by a mask of the image.
        padding = np.ones(image.shape[:2], dtype=np.uint8)
        image, transforms = T.apply_transform_gens(augmentations, image)
        record["padding_mask"] = torch.from_numpy(~transforms.apply_segmentation(padding).astype(bool))
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        size = image.shape[:2]
        annotations = [
            detection_utils.transform_instance_annotations(annotation, transforms, size)
            for annotation in record.pop("annotations")
            if not annotation.get("iscrowd", 0)
        ]
        instances = detection_utils.annotations_to_instances(annotations, size)
        if instances.has("gt_masks"):
            assert isinstance(instances.gt_masks, PolygonMasks)
            bit_masks = BitMasks.from_polygon_masks(instances.gt_masks, *size)
            instances.gt_boxes = bit_masks.get_bounding_boxes()
            instances.gt_masks = bit_masks.tensor
        record["instances"] = detection_utils.filter_empty_instances(instances, by_mask=False)
        return record

    return map_record


if __name__ == "__main__":
    main()
