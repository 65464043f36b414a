"""Sample predictions beside the annotations, in TensorBoard."""

import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.engine import HookBase
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.data.augmentation import build_test_augmentations
from mask2former.data.dataset_mappers import dataset_mapper_class
from mask2former.engine.sharding import unsharded
from mask2former.visualization import draw_ground_truth, draw_predictions

__all__ = ["PredictionImages"]


class PredictionImages(HookBase):
    """Draws some images of the first test set every ``VIS_PERIOD`` iterations: left the prediction, right the truth.

    The main process draws; the others are needed where they have parts of the model's parameters.

    Args:
        cfg: ``VIS_PERIOD``, ``TEST.VIS_IMAGES`` (how many, spread over the data set), and what reading the data needs.
        model: is put into eval mode and back.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self._period = cfg.VIS_PERIOD
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._image_format = cfg.INPUT.FORMAT
        self._metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        self._samples = _annotated_samples(cfg)

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period:
            return
        model = unsharded(self._model, lambda: self.trainer.build_model(self.trainer.cfg))
        with inference_context(model), torch.no_grad():
            for sample in self._samples if comm.is_main_process() else []:
                self.trainer.storage.put_image(f"predictions/{_name(sample)}", self._draw(model, sample))

    def _draw(self, model: nn.Module, sample: dict[str, Any]) -> np.ndarray:
        """Both drawings side by side: (3, H, W) uint8 RGB."""
        height, width = sample["image"].shape[-2:]
        # The result at the size of the input, which is what the annotation was resized to.
        predictions = model([{"image": sample["image"], "height": height, "width": width}])[0]
        image = sample["image"].numpy().transpose(1, 2, 0)
        image = np.ascontiguousarray(image[..., ::-1] if self._image_format == "BGR" else image)
        predicted = draw_predictions(image, predictions, self._metadata)
        truth = draw_ground_truth(sample, self._metadata, image_format=self._image_format)
        return np.concatenate([predicted, truth], axis=1).transpose(2, 0, 1)


def _annotated_samples(cfg: CfgNode) -> list[dict[str, Any]]:
    """Images of the first test set, resized as for testing, but with their annotation."""
    records = get_detection_dataset_dicts(cfg.DATASETS.TEST[0], filter_empty=False)
    chosen = np.linspace(0, len(records) - 1, min(cfg.TEST.VIS_IMAGES, len(records)), dtype=int)
    mapper = dataset_mapper_class(cfg)(
        cfg, is_train=True, augmentations=build_test_augmentations(cfg), size_divisibility=-1
    )
    return [mapper(records[i]) for i in chosen.tolist()]


def _name(sample: dict[str, Any]) -> str:
    return os.path.splitext(os.path.basename(sample["file_name"]))[0]
