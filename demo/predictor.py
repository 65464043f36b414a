"""From a picture to the model's result and its drawing."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image
from video import prefetch, read_frames

from mask2former.engine.checkpointer import CompleteCheckpointer
from mask2former.visualization import Task, draw_predictions

__all__ = ["Predictor", "VisualizationDemo", "choose_task"]

_TASK_KEYS: dict[Task, str] = {"panoptic": "PANOPTIC_ON", "instance": "INSTANCE_ON", "semantic": "SEMANTIC_ON"}
_INSTANCE_THRESHOLD = 0.5


class VisualizationDemo:
    """A model that draws what it sees. Pictures come and go as in OpenCV: (H, W, 3) uint8, BGR."""

    def __init__(self, cfg: CfgNode, *, task: Task | None = None, threshold: float | None = None) -> None:
        """
        Args:
            cfg: of the model; ``MODEL.WEIGHTS`` must name a checkpoint of the whole model.
            task: what to predict; None takes the first of panoptic, instance, semantic that the configuration turns on.
            threshold: least confidence, of instances (None: 0.5) and of panoptic segments (None:
                ``OBJECT_MASK_THRESHOLD`` of the configuration). Semantic results have none.
        """
        self.task = task or choose_task(cfg)
        self.threshold = _INSTANCE_THRESHOLD if threshold is None else threshold
        if self.task == "semantic" and threshold is not None:
            logging.getLogger(__name__).warning("a confidence threshold has no effect on semantic segmentation")
        self.predictor = Predictor(_with_task(cfg, self.task, threshold))
        self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0] if len(cfg.DATASETS.TEST) else "__unused")

    def run_on_image(self, image: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        """Segment and draw one picture.

        Args:
            image: (H, W, 3) uint8, BGR.

        Returns:
            The model's result, of which instances are those at or above the threshold; and the drawing, (H, W, 3) BGR.
        """
        return self._finish(image, self.predictor.prepare(image))

    def run_on_video(self, video: cv2.VideoCapture | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Draw every frame of a video. The next frames are read and resized while the model works on this one.

        Args:
            video: an open capture, or frames (H, W, 3) uint8 BGR.

        Yields:
            Drawn frames (H, W, 3) uint8, BGR.
        """
        frames = video if isinstance(video, Iterable) else read_frames(video)
        for frame, inputs in prefetch((frame, self.predictor.prepare(frame)) for frame in frames):
            yield self._finish(frame, inputs)[1]

    def _finish(self, image: np.ndarray, inputs: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        predictions = self.predictor.predict(inputs)
        if "instances" in predictions:
            instances = predictions["instances"]
            predictions["instances"] = instances[instances.scores >= self.threshold]
        rgb = np.ascontiguousarray(image[:, :, ::-1])
        drawing = draw_predictions(rgb, predictions, self.metadata, threshold=self.threshold, task=self.task)
        return predictions, np.ascontiguousarray(drawing[:, :, ::-1])


class Predictor:
    """A trained model and the preparation that its pictures need, as in evaluation."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: with ``MODEL.WEIGHTS``; pictures are resized as ``INPUT.MIN_SIZE_TEST`` (0: not at all) and
                ``MAX_SIZE_TEST`` say, and given to the model in the channel order ``INPUT.FORMAT``.
        """
        if cfg.INPUT.FORMAT not in ("RGB", "BGR", "L"):
            raise ValueError(f'INPUT.FORMAT is "{cfg.INPUT.FORMAT}", expected "RGB", "BGR" or "L"')
        self.model = build_model(cfg).eval()
        CompleteCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self._resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self._format = cfg.INPUT.FORMAT

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """The model's input for a picture (H, W, 3) uint8 BGR."""
        height, width = image.shape[:2]
        ordered = self._reorder(image)
        resized = self._resize.get_transform(ordered).apply_image(ordered)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))  # (3, H', W')
        return {"image": tensor, "height": height, "width": width}

    def _reorder(self, image: np.ndarray) -> np.ndarray:
        if self._format == "BGR":
            return image
        rgb = np.ascontiguousarray(image[:, :, ::-1])
        return rgb if self._format == "RGB" else np.asarray(Image.fromarray(rgb).convert("L"))[:, :, None]

    @torch.inference_mode()
    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The model's result for one prepared picture, at the picture's own size."""
        return self.model([inputs])[0]

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """The model's result for a picture (H, W, 3) uint8 BGR, at its size."""
        return self.predict(self.prepare(image))


def choose_task(cfg: CfgNode) -> Task:
    """The first task that a configuration turns on."""
    test = cfg.MODEL.MASK_FORMER.TEST
    for task, key in _TASK_KEYS.items():
        if test[key]:
            return task
    raise ValueError("the configuration turns no task on; give --task panoptic, instance or semantic")


def _with_task(cfg: CfgNode, task: Task, threshold: float | None) -> CfgNode:
    """A copy of the configuration that asks the model for one task only."""
    cfg = cfg.clone()
    cfg.defrost()
    test = cfg.MODEL.MASK_FORMER.TEST
    # A panoptic model leaves stuff out of its instances only while it knows that it is one.
    keep_panoptic = task == "instance" and test.PANOPTIC_ON
    for name, key in _TASK_KEYS.items():
        test[key] = name == task or (name == "panoptic" and keep_panoptic)
    if threshold is not None:
        test.OBJECT_MASK_THRESHOLD = threshold
    cfg.freeze()
    return cfg
