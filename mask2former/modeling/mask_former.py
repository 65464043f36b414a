"""The meta-architecture: one model for semantic, instance and panoptic segmentation (Section 3)."""

import copy
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ..constructors import arguments_for
from .activation_checkpointing import checkpoint_activations
from .config_checks import check_model_config
from .criterion import SetCriterion
from .postprocessing import (
    MaskGeometry,
    QueryPrediction,
    instance_inference,
    instance_steps,
    lazy_semantic_inference,
    panoptic_inference,
    panoptic_steps,
    semantic_inference,
    split_disconnected,
)
from .postprocessing.one_wait import Steps, finish
from .targets import prepare_targets
from .tiling import TiledInference, default_overlap

__all__ = ["MaskFormer"]

_OFFICIAL_INFERENCE = ("semantic_inference", "panoptic_inference", "instance_inference")


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask classification: every segment, of any task, is a binary mask with a class."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion | None,
        num_queries: int,
        object_mask_threshold: float,
        overlap_threshold: float,
        metadata: Metadata,
        size_divisibility: int,
        sem_seg_postprocess_before_inference: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        semantic_on: bool,
        panoptic_on: bool,
        instance_on: bool,
        test_topk_per_image: int,
        ignore_void: bool = False,
        tile_size: int = 0,
        tile_overlap: int = 0,
        split_disconnected_things: bool = False,
        batch_by_size: bool = False,
    ) -> None:
        """
        Args:
            backbone: image to multi-scale features.
            sem_seg_head: features to predictions.
            criterion: training loss; its ``weight_dict`` says which terms count how much. None for inference alone.
            num_queries: Q.
            object_mask_threshold: panoptic, see :func:`~mask2former.modeling.postprocessing.panoptic_inference`.
            overlap_threshold: likewise.
            metadata: of the data set; says which classes are things.
            size_divisibility: images are padded to a multiple of this; negative takes the backbone's own.
            sem_seg_postprocess_before_inference: resize mask logits, not class scores, to the output size.
            pixel_mean: per channel, in the order of ``INPUT.FORMAT``.
            pixel_std: likewise.
            semantic_on: give ``sem_seg``.
            panoptic_on: give ``panoptic_seg``.
            instance_on: give ``instances``.
            test_topk_per_image: instances per image.
            ignore_void: leave void pixels and padding out of the mask losses.
            tile_size: images larger than this, in pixels of the network's input, are segmented in square tiles of this
                side; 0 never does. See :class:`~mask2former.modeling.tiling.TiledInference`.
            tile_overlap: least overlap of tiles in pixels.
            split_disconnected_things: make each connected region of a thing's mask an instance of its own.
            batch_by_size: in inference, give each image of a batch what it gets alone, whatever the others' sizes.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.num_queries = num_queries
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.metadata = metadata
        self.size_divisibility = size_divisibility if size_divisibility >= 0 else backbone.size_divisibility
        self.sem_seg_postprocess_before_inference = sem_seg_postprocess_before_inference or panoptic_on or instance_on
        # Whole numbers in a configuration are floating point here, as weights are.
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            per_channel = torch.tensor(values, dtype=torch.get_default_dtype()).view(-1, 1, 1)
            self.register_buffer(name, per_channel, persistent=False)
        self.semantic_on = semantic_on
        self.panoptic_on = panoptic_on
        self.instance_on = instance_on
        # The classes of a panoptic model include stuff, which has no instances.
        self.instances_are_things = panoptic_on
        self.instance_threshold = 0.0
        self.panoptic_scores = False
        self.lazy_class_scores = False
        self.test_topk_per_image = test_topk_per_image
        self.ignore_void = ignore_void
        self.batch_by_size = batch_by_size
        self.split_disconnected_things = split_disconnected_things
        self.tiled_inference = (
            TiledInference(tile_size, tile_overlap, self.size_divisibility) if tile_size > 0 else None
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the backbone, the head and the criterion from a configuration.

        Raises:
            ValueError: if a value is one that no model can be made of.
        """
        check_model_config(cfg)
        backbone = build_backbone(cfg)
        sem_seg_head = build_sem_seg_head(cfg, backbone.output_shape())
        if not hasattr(sem_seg_head, "pixel_decoder"):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NAME is {cfg.MODEL.SEM_SEG_HEAD.NAME!r}, which has no pixel decoder; expected "
                "'MaskFormerHead', or a head like it."
            )
        checkpoint_activations(
            {
                "backbone": backbone,
                "pixel_decoder": sem_seg_head.pixel_decoder,
                "transformer_decoder": sem_seg_head.predictor,
            },
            cfg.MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING,
        )
        test = cfg.MODEL.MASK_FORMER.TEST
        arguments = {
            "backbone": backbone,
            "sem_seg_head": sem_seg_head,
            "criterion": SetCriterion(cfg, sem_seg_head.num_classes),
            "num_queries": cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
            "object_mask_threshold": test.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": test.OVERLAP_THRESHOLD,
            "metadata": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if len(cfg.DATASETS.TRAIN) else Metadata(),
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "sem_seg_postprocess_before_inference": test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "semantic_on": test.SEMANTIC_ON,
            "panoptic_on": test.PANOPTIC_ON,
            "instance_on": test.INSTANCE_ON,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "ignore_void": cfg.MODEL.MASK_FORMER.IGNORE_VOID,
            "tile_size": test.TILE_SIZE,
            "tile_overlap": test.TILE_OVERLAP,
            "split_disconnected_things": test.SPLIT_DISCONNECTED_THINGS,
            "batch_by_size": test.BATCH_BY_SIZE,
        }
        return arguments_for(cls, MaskFormer, arguments)

    @property
    def device(self) -> torch.device:
        """Where the model is, and where images are moved to."""
        return self.pixel_mean.device

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.sem_seg_head.num_classes)  # type: ignore[arg-type]  # nn.Module knows tensors and modules only

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Segment images, or compute the training loss.

        Args:
            batched_inputs: for each image ``image``, (3, H, W) in 0..255, channels in the order of ``INPUT.FORMAT``.
                For inference optionally ``height`` and ``width`` of the output (default: the image's). For training
                ``instances`` with ``gt_classes`` (T,) int64 and ``gt_masks`` (T, H, W), a bool tensor or ``BitMasks``;
                optionally ``ignore_mask`` (H, W) bool, True at void pixels.

        Returns:
            In training, the weighted loss terms by name. Otherwise for each image, as switched on:

            - ``sem_seg``: (K, height, width) class scores;
            - ``panoptic_seg``: an id map (height, width) int32, 0 where there is no segment, and for each segment
              ``id``, ``isthing`` and ``category_id`` (contiguous);
            - ``instances``: ``Instances`` with ``pred_masks`` (N, height, width) bool, ``pred_boxes`` in pixels,
              ``scores`` and ``pred_classes``.
        """
        if not self.training:
            return self._segment(batched_inputs)
        if self.criterion is None:
            raise ValueError("this model has no criterion and cannot be trained; call model.eval() to segment images.")
        if not all("instances" in entry for entry in batched_inputs):
            raise ValueError(
                "the model is in training mode, but an image has no instances to train with; call model.eval() to "
                "segment images."
            )
        images = self._normalise_and_pad(batched_inputs)
        # Before the network: copies to a GPU wait for what it has been given to do.
        targets = self._targets(batched_inputs, images)
        losses = self.criterion(self.run_network(images.tensor), targets)
        weights = self.criterion.weight_dict
        return {name: value * weights[name] for name, value in losses.items() if name in weights}

    def predict_queries(self, batched_inputs: list[dict[str, Any]]) -> list[QueryPrediction]:
        """Classes and masks of the queries of each image; takes what :meth:`forward` takes, and never cuts tiles."""
        images = self._normalise_and_pad(batched_inputs)
        return self._with_geometry(self.run_network(images.tensor), batched_inputs, tuple(images.tensor.shape[-2:]))

    def postprocess(self, prediction: QueryPrediction) -> dict[str, Any]:
        """The results that are switched on, as :meth:`forward` gives them."""
        logits, masks, geometry = prediction.class_logits, prediction.mask_logits, prediction.geometry
        result: dict[str, Any] = {}
        if self.semantic_on:
            result["sem_seg"] = self._class_scores(logits, masks, geometry)
        if self.split_disconnected_things and (self.panoptic_on or self.instance_on):
            logits, masks = split_disconnected(logits, masks, self._instance_classes)
        steps: dict[str, Steps[Any]] = {}
        if self.panoptic_on and self.has_own("panoptic_inference"):
            result["panoptic_seg"] = self.panoptic_inference(logits, geometry.to_output(masks))
        elif self.panoptic_on:
            steps["panoptic_seg"] = panoptic_steps(logits, masks, geometry, **self._panoptic_rules)
        if self.instance_on and self.has_own("instance_inference"):
            result["instances"] = self.instance_inference(logits, geometry.to_output(masks))
        elif self.instance_on:
            steps["instances"] = instance_steps(logits, masks, geometry, **self._instance_rules)
        return result | dict(zip(steps, finish(*steps.values()), strict=True))

    # The official release's methods, which subclasses call in a forward of their own. Those that a subclass defines
    # take the place of what happens otherwise, which resizes no more masks than it has to.

    def prepare_targets(self, targets: list[Instances], images: ImageList) -> list[dict[str, Any]]:
        """What the criterion takes, of the annotations on each of a batch of images."""
        entries = [{"instances": instances} for instances in targets]
        return prepare_targets(entries, tuple(images.tensor.shape[-2:]), self.device)

    def semantic_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Tensor:
        """Class scores (K, H, W) of class logits (Q, K + 1) and mask logits (Q, H, W)."""
        return semantic_inference(mask_cls, mask_pred, _unresized(mask_pred))

    def panoptic_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        """``panoptic_seg`` of class logits (Q, K + 1) and mask logits (Q, height, width) at the output's size."""
        return panoptic_inference(mask_cls, mask_pred, _unresized(mask_pred), **self._panoptic_rules)

    def instance_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Instances:
        """``instances`` of class logits (Q, K + 1) and mask logits (Q, height, width) at the output's size."""
        return instance_inference(mask_cls, mask_pred, _unresized(mask_pred), **self._instance_rules)

    def has_own(self, name: str) -> bool:
        """Whether a subclass, or this object, has another method than this class."""
        return getattr(getattr(self, name), "__func__", None) is not getattr(MaskFormer, name)

    def _targets(self, batched_inputs: list[dict[str, Any]], images: ImageList) -> list[dict[str, Any]]:
        if self.has_own("prepare_targets"):
            return self.prepare_targets([entry["instances"].to(self.device) for entry in batched_inputs], images)
        padded_size = (images.tensor.shape[-2], images.tensor.shape[-1])
        return prepare_targets(batched_inputs, padded_size, self.device, ignore_void=self.ignore_void)

    def _class_scores(self, logits: Tensor, masks: Tensor, geometry: MaskGeometry) -> Tensor:
        resize_first = self.sem_seg_postprocess_before_inference
        if self.has_own("semantic_inference"):
            if resize_first:
                return self.semantic_inference(logits, geometry.to_output(masks))
            return geometry.padded_to_output(self.semantic_inference(logits, geometry.to_padded(masks)))
        infer = lazy_semantic_inference if self.lazy_class_scores else semantic_inference
        return infer(logits, masks, geometry, resize_before_inference=resize_first)

    def run_network(self, images: Tensor) -> dict[str, Any]:
        """Normalised, padded images (N, 3, H, W) to the head's predictions."""
        features = self.backbone(images)
        predictions: dict[str, Any] = self.sem_seg_head(features)
        return predictions

    def with_outputs(
        self,
        tasks: Collection[str],
        *,
        object_mask_threshold: float | None = None,
        instance_threshold: float = 0.0,
        panoptic_scores: bool = False,
        lazy_class_scores: bool = False,
    ) -> "MaskFormer":
        """This model with other results: the same modules and weights, and this one stays as it is.

        Args:
            tasks: of "panoptic", "instance" and "semantic", what to give.
            object_mask_threshold: as in ``__init__``; None keeps this model's.
            instance_threshold: give no instances of a class that is less probable, whose scores would be lower too.
            panoptic_scores: give panoptic segments a ``score`` in 0..1.
            lazy_class_scores: give ``sem_seg`` of images that are not cut into tiles as
                :class:`~mask2former.modeling.postprocessing.ClassScores`, where that takes less memory.

        Raises:
            ValueError: if panoptic results are asked for and the metadata does not say which classes are things.
        """
        if "panoptic" in tasks and not hasattr(self.metadata, "thing_dataset_id_to_contiguous_id"):
            raise ValueError(
                f"the data set {self.metadata.get('name', '(none)')} does not say which classes are things, so there "
                "is no panoptic result; ask for task 'semantic' or 'instance'."
            )
        model = copy.copy(self)
        model.panoptic_on, model.instance_on = "panoptic" in tasks, "instance" in tasks
        model.semantic_on = "semantic" in tasks
        model.instance_threshold = instance_threshold
        model.panoptic_scores = panoptic_scores
        model.lazy_class_scores = lazy_class_scores
        if object_mask_threshold is not None:
            model.object_mask_threshold = object_mask_threshold
        return model

    def with_tiles(self, tile_size: int, overlap: int | None = None) -> "MaskFormer":
        """This model with other tiles: the same modules and weights, and this one stays as it is.

        Args:
            tile_size: as in ``__init__``; 0 segments images of any size whole.
            overlap: least overlap of tiles in pixels; None takes
                :func:`~mask2former.modeling.tiling.default_overlap`.

        Raises:
            ValueError: if one is no multiple of ``size_divisibility``, or the overlap is out of range.
        """
        model = copy.copy(self)
        stride = max(self.size_divisibility, 1)
        overlap = default_overlap(tile_size, stride) if overlap is None else overlap
        model.tiled_inference = TiledInference(tile_size, overlap, stride) if tile_size > 0 else None
        return model

    def _segment(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        results: dict[int, dict[str, Any]] = {}
        for indices in self._groups(batched_inputs):
            entries = [batched_inputs[index] for index in indices]
            if self._needs_tiles(entries[0]):
                results[indices[0]] = self._segment_in_tiles(entries[0])
                continue
            predictions = self.predict_queries(entries)
            results |= {index: self.postprocess(p) for index, p in zip(indices, predictions, strict=True)}
        return [results[index] for index in range(len(batched_inputs))]

    def _groups(self, batched_inputs: list[dict[str, Any]]) -> list[list[int]]:
        """Which images go through the network together: each large one alone, the others all, or those of a size."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for index, entry in enumerate(batched_inputs):
            if self._needs_tiles(entry):
                groups[index].append(index)
            else:
                groups[self._padded_size(entry) if self.batch_by_size else None].append(index)
        return list(groups.values())

    def _needs_tiles(self, entry: dict[str, Any]) -> bool:
        return self.tiled_inference is not None and self.tiled_inference.applies_to(tuple(entry["image"].shape[-2:]))

    def _padded_size(self, entry: dict[str, Any]) -> tuple[int, int]:
        """(height, width) of an image if it is padded alone."""
        multiple = max(self.size_divisibility, 1)
        height, width = (-(-side // multiple) * multiple for side in entry["image"].shape[-2:])
        return height, width

    @staticmethod
    def _with_geometry(
        outputs: dict[str, Tensor], batched_inputs: list[dict[str, Any]], padded_size: tuple[int, int]
    ) -> list[QueryPrediction]:
        """What the network says about a batch, image by image."""
        predictions = []
        for logits, masks, entry in zip(outputs["pred_logits"], outputs["pred_masks"], batched_inputs, strict=True):
            height, width = entry["image"].shape[-2:]
            output_size = entry.get("height", height), entry.get("width", width)
            geometry = MaskGeometry(padded_size, image_size=(height, width), output_size=output_size)
            predictions.append(QueryPrediction(logits.float(), masks, geometry))
        return predictions

    def _normalise_and_pad(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        for entry in batched_inputs:
            if entry["image"].dim() != 3 or len(entry["image"]) != len(self.pixel_mean):
                raise ValueError(
                    f"image {entry.get('file_name', '')} has shape {tuple(entry['image'].shape)}, expected "
                    f"({len(self.pixel_mean)}, H, W); read it with INPUT.FORMAT and move channels first."
                )
        # In the weights' precision, which double precision, as NumPy makes it, would exceed.
        images = [
            ((entry["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std).to(
                self.pixel_std.dtype
            )
            for entry in batched_inputs
        ]
        return ImageList.from_tensors(images, self.size_divisibility)

    def _segment_in_tiles(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The result for one image of any size, from tiles."""
        assert self.tiled_inference is not None
        own = [name for name in _OFFICIAL_INFERENCE if self.has_own(name)]
        if own:
            raise ValueError(
                f"{type(self).__name__} has its own {', '.join(own)}, which take the masks of a whole image, but "
                "MODEL.MASK_FORMER.TEST.TILE_SIZE cuts images into tiles. Set it to 0 (leave tile= out)."
            )
        image = self._normalise_and_pad([entry]).tensor[0]
        height, width = entry["image"].shape[-2:]
        prediction = self.tiled_inference(
            self.run_network,
            image[:, :height, :width],
            (entry.get("height", height), entry.get("width", width)),
            thing_classes=self._instance_classes,
            split_disconnected_things=self.split_disconnected_things,
            with_segments=self.panoptic_on or self.instance_on,
            with_semantic=self.semantic_on,
        )
        result: dict[str, Any] = {}
        if prediction.sem_seg is not None:
            result["sem_seg"] = prediction.sem_seg
        if self.panoptic_on:
            result["panoptic_seg"] = prediction.panoptic(**self._panoptic_rules)
        if self.instance_on:
            result["instances"] = prediction.instances(**self._instance_rules)
        return result

    @property
    def _panoptic_rules(self) -> dict[str, Any]:
        """What :func:`panoptic_steps` takes besides a prediction."""
        return {
            "thing_classes": self._thing_classes,
            "object_mask_threshold": self.object_mask_threshold,
            "overlap_threshold": self.overlap_threshold,
            "with_scores": self.panoptic_scores,
        }

    @property
    def _instance_rules(self) -> dict[str, Any]:
        """What :func:`instance_steps` takes besides a prediction."""
        return {
            "topk": self.test_topk_per_image,
            "allowed_classes": self._instance_classes,
            "least_probability": self.instance_threshold,
        }

    @property
    def _thing_classes(self) -> set[int]:
        """Contiguous ids of the countable classes."""
        ids = getattr(self.metadata, "thing_dataset_id_to_contiguous_id", None)
        if ids is None:
            raise ValueError(
                "panoptic segmentation needs to know which classes are things, but the metadata of DATASETS.TRAIN[0] "
                f"({self.metadata.get('name', 'none is named')}) has no thing_dataset_id_to_contiguous_id; register "
                "the data set with it, or name the one that the model was trained on."
            )
        return set(ids.values())

    @property
    def _instance_classes(self) -> set[int]:
        """Contiguous ids of the classes that instances may have."""
        return self._thing_classes if self.instances_are_things else set(range(self.num_classes))


def _unresized(masks: Tensor) -> MaskGeometry:
    """Of masks (Q, H, W) that have the output's size."""
    size = (masks.shape[-2], masks.shape[-1])
    return MaskGeometry(size, image_size=size, output_size=size)
