"""Configurations of Hugging Face's ``Mask2FormerForUniversalSegmentation`` in our keys."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from mask2former.config import add_maskformer2_config
from mask2former.inference.huggingface.keys import (
    DEFAULTS,
    FIXED,
    FIXED_RESNET,
    FIXED_SWIN,
    HEAD_KEYS,
    MASK_FORMER_KEYS,
    RESNET_DEPTHS,
    SWIN_KEYS,
)
from mask2former.weights import Repository, find_weights

__all__ = ["download_repository", "read_folder"]

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# What models are published for, the task they are for, and whether their classes are the stuff list (all) or things.
_KNOWN_DATA = (
    ("coco_2017_train_panoptic", "stuff_classes", "PANOPTIC_ON"),
    ("coco_2017_train", "thing_classes", "INSTANCE_ON"),
    ("cityscapes_fine_panoptic_train", "stuff_classes", "PANOPTIC_ON"),
    ("ade20k_sem_seg_train", "stuff_classes", "SEMANTIC_ON"),
)

logger = logging.getLogger(__name__)


def download_repository(repository: Repository) -> Path:
    """Download a model's files into the cache of ``huggingface_hub``, and return their folder.

    Raises:
        ModuleNotFoundError: without the package ``huggingface_hub``.
        OSError: it is not there, or not reachable.
        ValueError: a file was altered on the way.
    """
    config = repository.fetch(["config.json"])
    if config is None:
        raise FileNotFoundError(f"{repository.id} at Hugging Face has no config.json.")
    repository.weights()
    repository.fetch(["preprocessor_config.json"])
    return config.parent


def read_folder(folder: Path) -> CfgNode:
    """Translate ``config.json`` and ``preprocessor_config.json`` of a folder that ``save_pretrained`` wrote.

    All three tasks can be asked for. Classes are named as ``id2label`` says; which are things is known only where they
    are COCO's or Cityscapes'; otherwise all are taken for things, as by ``transformers``.

    Returns:
        The configuration, not frozen, with ``MODEL.WEIGHTS``.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the model is not a Mask2Former with a Swin or ResNet, or has a setting that ours does not have.
    """
    written = json.loads((folder / "config.json").read_text("utf-8"))
    theirs = DEFAULTS | {key: value for key, value in written.items() if value is not None}
    if theirs.get("model_type") != "mask2former":
        raise ValueError(f"{folder}: config.json is of a {theirs.get('model_type')!r} model, expected 'mask2former'.")
    if theirs.get("activation_function", "relu") != "relu":
        raise ValueError(f"{folder}: activation_function is {theirs['activation_function']!r}, expected 'relu'.")
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    _set_model(cfg, theirs)
    _set_backbone(cfg, theirs["backbone_config"], folder)
    file = folder / "preprocessor_config.json"
    _set_preprocessing(cfg, json.loads(file.read_text("utf-8")) if file.is_file() else {})
    _set_classes(cfg, theirs, str(folder))
    cfg.MODEL.WEIGHTS = find_weights(folder)
    return cfg


def _set_model(cfg: CfgNode, theirs: Mapping[str, Any]) -> None:
    _set(cfg, FIXED)
    head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    for section, keys in ((head, HEAD_KEYS), (mask_former, MASK_FORMER_KEYS)):
        for their_key, our_key in keys.items():
            section[our_key] = type(section[our_key])(theirs[their_key])  # JSON has 2 for 2.0
    mask_former.DECODER_DROPOUT = mask_former.DROPOUT or None  # theirs is of both decoders
    test = mask_former.TEST
    # What transformers and the official release post-process with.
    test.OBJECT_MASK_THRESHOLD = test.OVERLAP_THRESHOLD = 0.8


def _set_backbone(cfg: CfgNode, theirs: Mapping[str, Any], folder: Path) -> None:
    kind = theirs.get("model_type")
    if kind == "swin":
        _set(cfg, FIXED_SWIN)
        for key in SWIN_KEYS:
            if key in theirs:
                cfg.MODEL.SWIN[key.upper()] = theirs[key]
        return
    depths = tuple(theirs.get("depths", (3, 4, 6, 3)))
    if kind != "resnet" or theirs.get("layer_type", "bottleneck") != "bottleneck" or depths not in RESNET_DEPTHS:
        raise ValueError(
            f"{folder}: the backbone is {kind!r} with depths {list(depths)}; expected 'swin', or a 'resnet' of "
            f"bottlenecks with depths {' or '.join(map(str, map(list, RESNET_DEPTHS)))}."
        )
    _set(cfg, FIXED_RESNET)
    resnet = cfg.MODEL.RESNETS
    resnet.DEPTH = RESNET_DEPTHS[depths]
    resnet.STEM_OUT_CHANNELS = theirs.get("embedding_size", 64)
    resnet.RES2_OUT_CHANNELS = theirs.get("hidden_sizes", [256])[0]
    resnet.WIDTH_PER_GROUP = resnet.RES2_OUT_CHANNELS // 4


def _set(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    cfg.merge_from_list([part for pair in values.items() for part in pair])


def _set_preprocessing(cfg: CfgNode, theirs: Mapping[str, Any]) -> None:
    mean, std = (theirs.get(key) or _IMAGENET[key] for key in ("image_mean", "image_std"))
    # Theirs are for pictures in 0..1, ours for 0..255.
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [255.0 * x for x in mean], [255.0 * x for x in std]
    size = theirs.get("size") or {}
    size = {"shortest_edge": size} if isinstance(size, int) else size
    cfg.INPUT.MIN_SIZE_TEST = int(size.get("shortest_edge", 800)) if theirs.get("do_resize", True) else 0
    cfg.INPUT.MAX_SIZE_TEST = int(size.get("longest_edge", theirs.get("max_size", 1333)))


def _set_classes(cfg: CfgNode, theirs: Mapping[str, Any], name: str) -> None:
    labels = {int(key): value for key, value in (theirs.get("id2label") or {}).items()}
    count = theirs.get("num_labels", len(labels) or 2)  # their default writes neither
    names = [str(labels.get(i, i)) for i in range(max(count, len(labels)))]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(names)
    data, task = _known_data(names)
    if data is None:
        data, task = f"huggingface:{name}", "PANOPTIC_ON"
        logger.warning(f"{name}: these are the classes of no data set known here, so all are taken for things.")
        MetadataCatalog.pop(data, None)
        ids = {i: i for i in range(len(names))}
        MetadataCatalog.get(data).set(
            thing_classes=names,
            stuff_classes=names,
            thing_dataset_id_to_contiguous_id=ids,
            stuff_dataset_id_to_contiguous_id=ids,
        )
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (data,)
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON = test.INSTANCE_ON = test.PANOPTIC_ON = False
    test[task] = True


def _known_data(names: Sequence[str]) -> tuple[str | None, str]:
    """The data set that has these classes, and the first task of models for it."""
    wanted = [name.casefold() for name in names]
    for data, key, task in _KNOWN_DATA:
        if wanted == [str(name).casefold() for name in MetadataCatalog.get(data).get(key, [])]:
            return data, task
    return None, ""
