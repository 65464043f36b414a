"""A model whose answers are known, so that results can be checked to the pixel; and fixtures around it."""

import copy
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

DATASET = "test_colours"
# Class, whether it is a thing, score, and the channel (of RGB) in which it is bright.
COLOURS = [(0, True, 0.9, 0), (1, True, 0.6, 2), (2, False, 0.95, 1)]


@META_ARCH_REGISTRY.register()
class ColourModel(nn.Module):
    """Finds what is red (an apple), blue (a berry) and green (grass)."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        # Something to load.
        self.backbone, self.sem_seg_head = nn.Linear(1, 1), nn.ModuleDict({"predictor": nn.Linear(1, 1)})
        self.threshold = cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD
        self.tasks: Collection[str] = ()
        self.order = cfg.INPUT.FORMAT
        self.input_sizes: list[tuple[int, ...]] = []

    def with_outputs(
        self,
        tasks: Collection[str],
        *,
        object_mask_threshold: float | None,
        panoptic_scores: bool,
        instance_threshold: float = 0.0,
        lazy_class_scores: bool = False,
    ) -> "ColourModel":
        assert panoptic_scores
        model = copy.copy(self)
        model.tasks = tasks
        model.threshold = self.threshold if object_mask_threshold is None else object_mask_threshold
        return model

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        return [self._segment(inputs) for inputs in batched_inputs]

    def _segment(self, inputs: dict[str, Any]) -> dict[str, Any]:
        image = inputs["image"].float()
        self.input_sizes.append(tuple(image.shape))
        image = F.interpolate(image[None], (inputs["height"], inputs["width"]), mode="nearest")[0]
        image = image.flip(0) if self.order == "BGR" else image
        masks = torch.stack([image[channel] > 128 for *_, channel in COLOURS])
        result: dict[str, Any] = {}
        if "semantic" in self.tasks:
            result["sem_seg"] = masks.float()
        if "instance" in self.tasks:
            result["instances"] = self._instances(masks)
        if "panoptic" in self.tasks:
            result["panoptic_seg"] = self._panoptic(masks)
        return result

    def _instances(self, masks: Tensor) -> Instances:
        instances = Instances(tuple(masks.shape[1:]))
        instances.pred_masks = masks[:2]
        instances.pred_boxes = Boxes(torch.zeros(2, 4))
        instances.scores = torch.tensor([score for _, _, score, _ in COLOURS[:2]])
        instances.pred_classes = torch.tensor([0, 1])
        return instances

    def _panoptic(self, masks: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        ids, infos = torch.zeros(masks.shape[1:], dtype=torch.int32), []
        for (class_id, isthing, score, _), mask in zip(COLOURS, masks, strict=True):
            if mask.any() and score > self.threshold:
                ids[mask] = len(infos) + 1
                infos.append({"id": len(infos) + 1, "category_id": class_id, "isthing": isthing, "score": score})
        return ids, infos


@pytest.fixture(scope="session")
def _colours() -> None:
    MetadataCatalog.get(DATASET).set(thing_classes=["apple", "berry"], stuff_classes=["apple", "berry", "grass"])


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    names = ("backbone", "sem_seg_head.predictor")
    torch.save(
        {"model": {f"{name}.{key}": value for name in names for key, value in nn.Linear(1, 1).state_dict().items()}},
        path,
    )
    return path


@pytest.fixture
def config_file(tmp_path: Path, weights: Path, _colours: None) -> Path:
    path = tmp_path / "config.yaml"
    config = {
        "MODEL": {
            "META_ARCHITECTURE": "ColourModel",
            "DEVICE": "cpu",
            "WEIGHTS": str(weights),
            "MASK_FORMER": {"TEST": {"PANOPTIC_ON": True, "INSTANCE_ON": True, "SEMANTIC_ON": True}},
        },
        "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TEST": 0},
        "DATASETS": {"TEST": [DATASET]},
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def picture() -> np.ndarray:
    """(48, 64, 3) BGR: grass with an apple of 20 x 20 pixels at (4, 6) and a berry of 10 x 8 at (40, 30)."""
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    image[...] = (0, 200, 0)
    image[6:26, 4:24] = (0, 0, 200)
    image[30:38, 40:50] = (200, 0, 0)
    return image


@pytest.fixture
def save(tmp_path: Path, picture: np.ndarray) -> Callable[..., Path]:
    """Write the picture, or another one, below the temporary folder."""

    def write(name: str, image: np.ndarray = picture) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image)
        return path

    return write
