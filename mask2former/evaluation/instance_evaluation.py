"""Mask AP where only some of the model's classes are things."""

from typing import Any

from detectron2.data import Metadata
from detectron2.evaluation import COCOEvaluator

__all__ = ["InstanceSegEvaluator"]


class InstanceSegEvaluator(COCOEvaluator):
    """COCO's AP for models whose thing classes are not the contiguous ids 0, 1, 2, ... (ADE20K, Mapillary Vistas).

    The metadata's ``thing_dataset_id_to_contiguous_id`` says which contiguous ids are things and what the annotations
    call them.
    """

    _metadata: Metadata

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        self._use_dataset_ids(predictions)
        # With the ids translated, and the translation out of its sight, COCOEvaluator does the rest.
        metadata = self._metadata
        things = sorted(metadata.thing_dataset_id_to_contiguous_id.values())
        names = metadata.thing_classes
        if len(names) > len(things):  # Mapillary Vistas lists its other classes there too
            names = [names[contiguous] for contiguous in things]
        self._metadata = Metadata(thing_classes=names)
        try:
            super()._eval_predictions(predictions, img_ids)
        finally:
            self._metadata = metadata

    def _use_dataset_ids(self, predictions: list[dict[str, Any]]) -> None:
        """Replace the contiguous ids of predictions by those of the annotations, in place."""
        category_ids = {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        for instance in (instance for prediction in predictions for instance in prediction["instances"]):
            if instance["category_id"] not in category_ids:
                raise ValueError(
                    f"The model predicted an instance of class {instance['category_id']}, but only "
                    f"{sorted(category_ids)} are things in the metadata's thing_dataset_id_to_contiguous_id."
                )
            instance["category_id"] = category_ids[instance["category_id"]]
