"""Box and mask AP of instances."""

import itertools
import json
import logging
from pathlib import Path
from typing import Any

from detectron2.data import Metadata
from detectron2.evaluation import COCOEvaluator

from mask2former.durable_files import write_file
from mask2former.evaluation.average_precision import CocoComparison, number_annotations
from mask2former.evaluation.backend import use_hotcoco
from mask2former.evaluation.run_lengths import encode_mask

__all__ = ["InstanceSegEvaluator"]

logger = logging.getLogger(__name__)


class InstanceSegEvaluator(COCOEvaluator):
    """COCO's AP, also of models whose thing classes are not the contiguous ids 0, 1, 2, ... (ADE20K, Mapillary Vistas).

    Gives what Detectron2's ``COCOEvaluator`` gives. The metadata's ``thing_dataset_id_to_contiguous_id`` says which
    contiguous ids are things and what the annotations call them.

    Args:
        dataset_name: as of ``COCOEvaluator``, like the other arguments.
        backend: what computes the figures, see :func:`~mask2former.evaluation.backend.use_hotcoco`.
    """

    _metadata: Metadata

    def __init__(self, dataset_name: str, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        super().__init__(dataset_name, *args, **kwargs)
        number_annotations(self._coco_api)
        ids = [*self._coco_api.imgs, *self._coco_api.cats]
        use_hotcoco(backend, ids)  # complains now, not after the model ran over all images
        self._backend = backend

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the instances of a batch, their masks as run lengths.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "instances".
        """
        for image, output in zip(inputs, outputs, strict=True):
            image_id = image["image_id"]
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.clone()
            boxes[:, 2:] -= boxes[:, :2]  # COCO's are left, top, width, height
            found = [
                {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
                for label, box, score in zip(
                    instances.pred_classes.tolist(), boxes.tolist(), instances.scores.tolist(), strict=True
                )
            ]
            if instances.has("pred_masks"):
                for instance, mask in zip(found, instances.pred_masks.numpy(), strict=True):
                    instance["segmentation"] = encode_mask(mask)
            self._predictions.append({"image_id": image_id, "instances": found})

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        self._use_dataset_ids(predictions)
        results = list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))
        if self._output_dir:
            write_file(Path(self._output_dir, "coco_instances_results.json"), json.dumps(results).encode())
        if not self._do_evaluation:
            logger.info("There are no annotations to compare the predictions with.")
            return
        for task in self._tasks or self._tasks_from_predictions(results):
            evaluation = None
            if results:
                evaluation = CocoComparison(self._coco_api, results, task, backend=self._backend).evaluate(
                    max_detections=self._max_dets_per_image,
                    image_ids=img_ids,
                    show=True,  # recall, which the table below has not
                )
            self._results[task] = self._derive_coco_results(evaluation, task, class_names=self._class_names())

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        if not predictions:  # of which Detectron2 infers that there are no masks
            return ["bbox", "segm"]
        tasks: list[str] = super()._tasks_from_predictions(predictions)
        return tasks

    def _class_names(self) -> list[str] | None:
        """Those of the things."""
        names: list[str] | None = self._metadata.get("thing_classes")
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if names is not None and to_contiguous is not None and len(names) > len(to_contiguous):
            # Mapillary Vistas lists its other classes there too.
            return [names[contiguous] for contiguous in sorted(to_contiguous.values())]
        return names

    def _use_dataset_ids(self, predictions: list[dict[str, Any]]) -> None:
        """Replace the contiguous ids of predictions by those of the annotations, in place."""
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_contiguous is None:  # they are the same
            return
        category_ids = {v: k for k, v in to_contiguous.items()}
        for instance in (instance for prediction in predictions for instance in prediction["instances"]):
            if instance["category_id"] not in category_ids:
                raise ValueError(
                    f"The model predicted an instance of class {instance['category_id']}, but only "
                    f"{sorted(category_ids)} are things in the metadata's thing_dataset_id_to_contiguous_id."
                )
            instance["category_id"] = category_ids[instance["category_id"]]
