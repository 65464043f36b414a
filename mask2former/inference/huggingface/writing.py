"""A model of ours as a folder that ``Mask2FormerForUniversalSegmentation.from_pretrained`` loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from mask2former.config import find_value
from mask2former.data.dataset_mappers import dataset_mapper_class
from mask2former.durable_files import write_file
from mask2former.inference.huggingface.keys import (
    FIXED,
    FIXED_RESNET,
    FIXED_SWIN,
    HEAD_KEYS,
    MASK_FORMER_KEYS,
    RESNET_DEPTHS,
    SWIN_KEYS,
)
from mask2former.modeling.checkpoint_compat import to_huggingface
from mask2former.visualization import class_name
from mask2former.weights import write_weights

__all__ = ["write_folder"]

_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def write_folder(cfg: CfgNode, weights: Mapping[str, Tensor], folder: Path) -> int:
    """Write ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``.

    Args:
        cfg: of the model.
        weights: of the whole model, with our names.
        folder: made where it does not exist.

    Returns:
        The number of tensors.

    Raises:
        ModuleNotFoundError: without the package ``safetensors``.
        ValueError: something of the model has no counterpart there.
    """
    config, preprocessing = _model_config(cfg), _preprocessing(cfg)
    theirs = to_huggingface(weights)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessing)):
        write_file(folder / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    write_weights(theirs, folder / "model.safetensors")
    return len(theirs)


def _model_config(cfg: CfgNode) -> dict[str, Any]:
    _check(cfg, FIXED)
    head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    _check(cfg, {"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": mask_former.NHEADS})
    names = _class_names(cfg)
    return {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "backbone_config": _backbone_config(cfg),
        **{theirs: head[ours] for theirs, ours in HEAD_KEYS.items()},
        **{theirs: mask_former[ours] for theirs, ours in MASK_FORMER_KEYS.items()},
        "activation_function": "relu",
        "ignore_value": 255,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _backbone_config(cfg: CfgNode) -> dict[str, Any]:
    if FIXED_SWIN["MODEL.BACKBONE.NAME"] == cfg.MODEL.BACKBONE.NAME:
        _check(cfg, FIXED_SWIN)
        swin = cfg.MODEL.SWIN
        return {
            "model_type": "swin",
            **{key: swin[key.upper()] for key in SWIN_KEYS},
            "image_size": swin.PRETRAIN_IMG_SIZE,
            "hidden_dropout_prob": swin.DROP_RATE,
            "attention_probs_dropout_prob": swin.ATTN_DROP_RATE,
            "out_features": _STAGES,
        }
    _check(cfg, FIXED_RESNET)
    resnet = cfg.MODEL.RESNETS
    depths = {depth: list(blocks) for blocks, depth in RESNET_DEPTHS.items()}
    if resnet.DEPTH not in depths or resnet.RES2_OUT_CHANNELS != 4 * resnet.WIDTH_PER_GROUP:
        raise ValueError(
            f"Hugging Face's ResNet has a depth of {list(depths)} and bottlenecks of a quarter of the channels; this "
            f"one has a depth of {resnet.DEPTH} and {resnet.WIDTH_PER_GROUP} of {resnet.RES2_OUT_CHANNELS} channels."
        )
    return {
        "model_type": "resnet",
        "layer_type": "bottleneck",
        "embedding_size": resnet.STEM_OUT_CHANNELS,
        "hidden_sizes": [resnet.RES2_OUT_CHANNELS * 2**i for i in range(4)],
        "depths": depths[resnet.DEPTH],
        "out_features": _STAGES,
    }


def _preprocessing(cfg: CfgNode) -> dict[str, Any]:
    smallest, largest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": smallest > 0,
        "size": {"shortest_edge": smallest or 800, "longest_edge": largest},
        "size_divisor": max(cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY, 32),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        # Theirs are for pictures in 0..1, ours for 0..255.
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": 255,
    }


def _class_names(cfg: CfgNode) -> list[str]:
    """Names of the model's classes, or their numbers where the data set is not known."""
    data = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN][:1]
    metadata = MetadataCatalog.get(data[0]) if data else None
    things = dataset_mapper_class(cfg).class_names_key == "thing_classes"
    return [class_name(metadata, i, things) for i in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]


def _check(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    """Refuse settings that would not be understood there."""
    for key, expected in values.items():
        found = find_value(cfg, key)
        if found != expected:
            raise ValueError(f"{key} is {found!r}; Hugging Face's Mask2Former can only be {expected!r}.")
