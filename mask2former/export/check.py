"""How far an exported file is from the model that it was made of, on pictures."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from ..modeling.mask_former import MaskFormer
from ..modeling.postprocessing import MaskGeometry, instance_inference, panoptic_inference, semantic_inference
from .graph import thing_classes_of
from .runtime import ExportedModel

__all__ = ["compare_with_model"]


def compare_with_model(exported: ExportedModel, model: MaskFormer, batches: Sequence[Tensor]) -> dict[str, float]:
    """Compare with the eager model, which uses its own pre- and post-processing and its fast operators.

    Args:
        exported: what was written.
        model: what it was made of, in evaluation mode.
        batches: each (N, C, H, W) uint8, of any sizes.

    Returns:
        The largest error over all batches, in 0..1, by what is compared:

        - ``class logits``, ``mask logits``, ``class scores``: the largest difference, relative to the largest value;
        - ``segments``: the share of a picture's pixels that belong to another segment or class;
        - ``instances``: of the instances of the eager model, how much the score differs, or one minus the
          intersection over union of the masks, of the most similar exported one of the same class; at most the
          instance's own score, so that a missing one counts as much as it is sure.
    """
    compare = _COMPARISONS[exported.info.postprocessing]
    worst: dict[str, float] = {}
    for batch in batches:
        batch = batch.to(model.device)
        found = exported(batch.to(getattr(torch, exported.info.input_type)))
        with torch.no_grad():
            errors = compare(model, batch, found)
        for name, error in errors.items():
            worst[name] = _largest([error, worst.get(name, 0.0)])
    return worst


def _predictions(model: MaskFormer, batch: Tensor) -> list[tuple[Tensor, Tensor, MaskGeometry]]:
    """For each image what the functions of post-processing take first."""
    found = model.predict_queries([{"image": image} for image in batch])
    return [(prediction.class_logits, prediction.mask_logits.float(), prediction.geometry) for prediction in found]


def _compare_raw(model: MaskFormer, batch: Tensor, found: dict[str, Tensor]) -> dict[str, float]:
    logits, masks, _ = zip(*_predictions(model, batch), strict=True)
    return {
        "class logits": _relative(found["pred_logits"], torch.stack(logits)),
        "mask logits": _relative(found["pred_masks"], torch.stack(masks)),
    }


def _compare_semantic(model: MaskFormer, batch: Tensor, found: dict[str, Tensor]) -> dict[str, float]:
    expected = torch.stack([semantic_inference(*prediction) for prediction in _predictions(model, batch)])
    return {"class scores": _relative(found["sem_seg"], expected)}


def _compare_panoptic(model: MaskFormer, batch: Tensor, found: dict[str, Tensor]) -> dict[str, float]:
    worst = 0.0
    for index, prediction in enumerate(_predictions(model, batch)):
        ids, segments = panoptic_inference(
            *prediction,
            thing_classes=thing_classes_of(model) or [],
            object_mask_threshold=model.object_mask_threshold,
            overlap_threshold=model.overlap_threshold,
        )
        class_of_id = {segment["id"]: segment["category_id"] for segment in segments}
        pairs = zip(found["segment_ids"][index].tolist(), found["segment_classes"][index].tolist(), strict=True)
        found_class_of_id = {segment_id: class_id for segment_id, class_id in pairs if segment_id}
        wrong = found["panoptic_seg"][index] != ids
        for segment_id, class_id in class_of_id.items():
            if found_class_of_id.get(segment_id) != class_id:
                wrong |= ids == segment_id
        worst = max(worst, float(wrong.float().mean()))
    return {"segments": worst}


def _compare_instances(model: MaskFormer, batch: Tensor, found: dict[str, Tensor]) -> dict[str, float]:
    worst = 0.0
    for index, prediction in enumerate(_predictions(model, batch)):
        expected = instance_inference(
            *prediction,
            topk=model.test_topk_per_image,
            allowed_classes=thing_classes_of(model) if model.panoptic_on else None,
        )
        one = {name: output[index] for name, output in found.items()}
        worst = _largest([worst, *(_instance_error(expected, row, one) for row in range(len(expected)))])
    return {"instances": worst}


def _instance_error(expected: Instances, row: int, found: dict[str, Tensor]) -> float:
    score, mask = expected.scores[row], expected.pred_masks[row]
    same_class = (found["classes"] == expected.pred_classes[row]) & (found["scores"] > 0)
    masks = found["masks"][same_class]
    union = (masks | mask).flatten(1).sum(1)
    overlap = (masks & mask).flatten(1).sum(1) / union.clamp(min=1)
    apart = torch.where(union > 0, 1 - overlap, 0)  # two empty masks are equal
    errors = torch.maximum(apart, (found["scores"][same_class] - score).abs())
    return float(torch.cat([errors, score[None]]).min())


def _largest(errors: Sequence[float]) -> float:
    """A NaN wins, which Python's ``max`` does not promise."""
    return float(np.max(errors))


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("nan")
    return float((found - expected).abs().max() / expected.abs().max())


_COMPARISONS: dict[str, Callable[[MaskFormer, Tensor, dict[str, Tensor]], dict[str, float]]] = {
    "none": _compare_raw,
    "semantic": _compare_semantic,
    "panoptic": _compare_panoptic,
    "instance": _compare_instances,
}
