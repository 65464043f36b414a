"""What all dataset mappers share: one image and its annotations in, one training example out."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Instances

from mask2former.image_io import read_image

from ...constructors import arguments_for
from ..augmentation import PadToMultiple, build_crop_recipe, build_lsj_recipe, build_test_augmentations
from ..label_map import LabelMap, move_labels, unflipped

__all__ = ["LargeScaleJittering", "MaskFormerDatasetMapper", "build_transform_gen"]

# Annotations in a dataset dict: read here, not passed on to the model.
_ANNOTATION_KEYS = ("annotations", "segments_info", "pan_seg_file_name", "sem_seg_file_name")


class MaskFormerDatasetMapper:
    """Read one image with its annotations, augment both, and make the model's input of them.

    A subclass says what the annotations are (:meth:`read_labels`), how they become targets if masks may overlap
    (:meth:`read_targets`), and which recipe augments them (:meth:`build_augmentations`). A mapper can be pickled, and
    all that is random in it comes from NumPy's and Python's global generators, which Detectron2 seeds in every worker.

    A subclass that was written for the official release works with its arguments and attributes: ``tfm_gens``,
    ``img_format``, ``size_divisibility``. It may also assign ``augmentations``.

    Args:
        is_train: Read annotations and augment; otherwise only read and resize.
        augmentations: Applied in order. Those that pad must pad segmentations with 0.
        tfm_gens: The same, by the name that it has in the official ``coco_*_lsj`` mappers; one of both is needed.
        image_format: Order of the channels, as in ``INPUT.FORMAT``.
        ignore_label: Value of unlabelled pixels in semantic maps.
        num_classes: Class ids must be below it; None does not check.
        size_divisibility: Pad in the end to a multiple of this; -1 does not.
    """

    # Which of the metadata's class lists the model's classes are.
    class_names_key = "stuff_classes"
    # What ``from_config`` calls the augmentations.
    augmentations_argument = "augmentations"
    # Whether the recipe goes with the padding of ``INPUT.SIZE_DIVISIBILITY``.
    pads_to_multiple = True

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform] | None = None,
        tfm_gens: Sequence[T.Augmentation | T.Transform] | None = None,
        image_format: str,
        ignore_label: int = 255,
        num_classes: int | None = None,
        size_divisibility: int = -1,
    ) -> None:
        chosen = tfm_gens if augmentations is None else augmentations
        if chosen is None:
            raise TypeError(f"{type(self).__name__} needs augmentations, a list of them.")
        self.is_train = is_train
        self.tfm_gens = list(chosen)
        self.img_format = image_format
        self.ignore_label = ignore_label
        self.num_classes = num_classes
        self.size_divisibility = size_divisibility

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        ignore_labels = {MetadataCatalog.get(name).get("ignore_label", 255) for name in cfg.DATASETS.TRAIN}
        if len(ignore_labels) > 1:
            raise ValueError(
                f"The data sets {list(cfg.DATASETS.TRAIN)} have different ignore labels {sorted(ignore_labels)}, "
                "expected one. Convert their semantic maps to the same value."
            )
        arguments = {
            "is_train": is_train,
            cls.augmentations_argument: cls.build_augmentations(cfg) if is_train else build_test_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "ignore_label": ignore_labels.pop() if ignore_labels else 255,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY if is_train and cls.pads_to_multiple else -1,
        }
        return arguments_for(cls, MaskFormerDatasetMapper, arguments, unneeded=("ignore_label", "num_classes"))

    @property
    def augmentations(self) -> T.AugmentationList:
        """All of them, the padding included."""
        padding = [PadToMultiple(self.size_divisibility)] if self.size_divisibility > 0 else []
        return T.AugmentationList([*self.tfm_gens, *padding])

    @augmentations.setter
    def augmentations(self, augmentations: Sequence[T.Augmentation | T.Transform] | T.AugmentationList) -> None:
        self.tfm_gens = list(getattr(augmentations, "augs", augmentations))

    @classmethod
    def build_augmentations(cls, cfg: CfgNode) -> list[T.Augmentation]:
        """The training recipe."""
        return build_crop_recipe(cfg)

    def read_labels(self, dataset_dict: dict[str, Any], size: tuple[int, int]) -> LabelMap:
        """Read the annotations as a map of the original image.

        Args:
            dataset_dict: One image, in Detectron2's format.
            size: Height and width of the image, which the annotations must have.
        """
        raise NotImplementedError

    def read_targets(
        self, dataset_dict: dict[str, Any], labels: LabelMap, size: tuple[int, int], transforms: T.TransformList
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Make the targets; those that are not in the map are read here and moved by ``transforms``.

        Args:
            dataset_dict: One image, in Detectron2's format.
            labels: What :meth:`read_labels` read, augmented.
            size: Height and width of the original image.
            transforms: What was done to the image.

        Returns:
            Classes (T,) int64 and masks (T, H, W) bool, none of them empty.
        """
        return labels.targets()

    def more_outputs(self, labels: LabelMap) -> dict[str, np.ndarray]:
        """Further arrays for the example, made of the augmented map."""
        return {}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Make one example.

        Args:
            dataset_dict: One image, in Detectron2's format; left as it is.

        Returns:
            The dict without its annotations, plus "image" (C, H, W) uint8 and "height" and "width" of the original.
            In training also "instances" with ``gt_classes`` (T,) int64 and ``gt_masks`` (T, H, W) bool, which are
            :class:`SegmentMasks` where they cannot overlap, and "ignore_mask" (H, W) bool: void pixels, crowds and
            padding.
        """
        image = read_image(dataset_dict["file_name"], self.img_format)
        size = image.shape[0], image.shape[1]
        _check_size(dataset_dict, size)
        example = {key: value for key, value in dataset_dict.items() if key not in _ANNOTATION_KEYS}
        example["height"], example["width"] = size
        if self.is_train:
            example.update(self._augmented(dataset_dict, image))
        else:
            aug_input = T.AugInput(image)
            self.augmentations(aug_input)
            example["image"] = _channels_first(aug_input.image)
        return example

    def _augmented(self, dataset_dict: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
        size = image.shape[0], image.shape[1]
        labels = self.read_labels(dataset_dict, size)
        labelled = _LabelledImage(image, labels)
        transforms = self.augmentations(labelled)
        classes, masks = self.read_targets(dataset_dict, labels, size, transforms)
        self._check_classes(dataset_dict, classes)
        instances = Instances(labels.labels.shape, gt_classes=torch.from_numpy(classes), gt_masks=masks)
        more = {key: _to_tensor(array) for key, array in self.more_outputs(labels).items()}
        return {
            "image": _channels_first(labelled.image),
            "instances": instances,
            "ignore_mask": _to_tensor(labels.labels == 0),
            **more,
        }

    def _check_classes(self, dataset_dict: dict[str, Any], classes: np.ndarray) -> None:
        if self.num_classes is not None and classes.max(initial=-1) >= self.num_classes:
            raise ValueError(
                f"{dataset_dict['file_name']}: is annotated with class id {classes.max()}, expected 0 to "
                f"{self.num_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES is {self.num_classes}). Set that key to the "
                f"number of classes of the data, or the value of unlabelled pixels (now {self.ignore_label}) right."
            )


class LargeScaleJittering(MaskFormerDatasetMapper):
    """What the ``coco_*_lsj`` mappers do differently, each with its own targets."""

    augmentations_argument = "tfm_gens"
    pads_to_multiple = False

    @classmethod
    def build_augmentations(cls, cfg: CfgNode) -> list[T.Augmentation]:
        return build_lsj_recipe(cfg)


def build_transform_gen(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The recipe of the ``coco_*_lsj`` mappers, by the official release's name."""
    return build_lsj_recipe(cfg) if is_train else build_test_augmentations(cfg)


class _LabelledImage(T.AugInput):
    """An image and its label map, which move together."""

    def __init__(self, image: np.ndarray, labels: LabelMap) -> None:
        self.image = image
        self.labels = labels

    @property
    def sem_seg(self) -> np.ndarray:
        """What augmentations that look at the classes see: (H, W), 0 for void and k + 1 for class k."""
        return self.labels.class_map()

    def transform(self, tfm: T.Transform) -> None:
        self.image = unflipped(tfm.apply_image(self.image))
        self.labels.labels = move_labels(tfm, self.labels.labels)


def _check_size(dataset_dict: dict[str, Any], size: tuple[int, int]) -> None:
    expected = dataset_dict.get("height", size[0]), dataset_dict.get("width", size[1])
    if size != expected:
        raise ValueError(
            f"{dataset_dict['file_name']}: the image is {size[0]} x {size[1]} (height x width), "
            f"its annotations say {expected[0]} x {expected[1]}. Check that both belong together."
        )


def _channels_first(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) to (C, H, W), by OpenCV: NumPy and PyTorch take ten times as long."""
    height, width, channels = image.shape
    if image.strides[1:] != (channels, 1):  # which OpenCV cannot read
        image = np.ascontiguousarray(image)
    result = np.empty((channels, height, width), dtype=image.dtype)
    cv2.split(image, list(result))
    return torch.from_numpy(result)


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    # Flips leave negative strides, and Pillow read-only memory; torch takes neither.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
