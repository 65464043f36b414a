"""Cityscapes' metrics, counted in the process that has the prediction, so on any number of processes and machines."""

import copy
import io
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as instance_api  # noqa: N813
import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as pixel_api  # noqa: N813
import numpy as np
from cityscapesscripts.helpers.labels import category2labels, id2label, labels, name2label, trainId2label
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image

from mask2former.image_io import read_label_image

__all__ = ["CityscapesInstanceEvaluator", "CityscapesSemSegEvaluator"]

logger = logging.getLogger(__name__)
vars(np).setdefault("in1d", np.isin)  # cityscapesscripts 2.3.0 calls what NumPy 2.4 has no more

Entry = dict[str, Any]


class CityscapesEvaluator(DatasetEvaluator):
    """What both have in common.

    Args:
        dataset_name: its metadata has ``gt_dir``, the split's folder in ``gtFine``, and ``thing_classes``.
    """

    truth_suffix: str  # of the files of the annotation that is compared with

    def __init__(self, dataset_name: str) -> None:
        self._metadata = MetadataCatalog.get(dataset_name)
        truth_dir = PathManager.get_local_path(self._metadata.gt_dir)
        files = sorted(Path(truth_dir).glob(f"*/*{self.truth_suffix}"))
        self._truth = {file.name.removesuffix(self.truth_suffix): file for file in files}
        if not files:
            raise FileNotFoundError(f"{truth_dir}: has no */*{self.truth_suffix} to compare predictions with.")
        self.reset()

    def reset(self) -> None:
        self._seen: set[str] = set()

    def _truth_of(self, image: Entry) -> Path:
        """The annotation of an input of the model, whose image is called <name>_leftImg8bit.png."""
        name = Path(image["file_name"]).name.removesuffix("_leftImg8bit.png")
        if name not in self._truth:
            raise ValueError(f"{image['file_name']}: has no {name}{self.truth_suffix} in {self._metadata.gt_dir}.")
        self._seen.add(name)
        return self._truth[name]

    def _gather(self, counted: Any) -> list[Any] | None:
        """What every process has counted, on the main process; None on the others."""
        gathered = comm.gather((self._seen, counted))
        if not comm.is_main_process():
            return None
        missing = self._truth.keys() - set().union(*(seen for seen, _ in gathered))
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self._truth)} images have no prediction, such as {min(missing)!r}. The data "
                f"set must have the images of {self._metadata.gt_dir}."
            )
        return [counted for _, counted in gathered]


class CityscapesInstanceEvaluator(CityscapesEvaluator):
    """AP and AP50 as cityscapesscripts define them, which compute them here from the overlaps."""

    truth_suffix = "_gtFine_instanceIds.png"

    def reset(self) -> None:
        super().reset()
        self._matches: dict[str, dict[str, Any]] = {}

    def process(self, inputs: list[Entry], outputs: list[Entry]) -> None:
        """Match the instances of a batch.

        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "instances", whose ``pred_masks`` are (N, H, W).
        """
        for image, output in zip(inputs, outputs, strict=True):
            path = self._truth_of(image)
            instances = output["instances"]
            class_names = [self._metadata.thing_classes[i] for i in instances.pred_classes.tolist()]
            masks = instances.pred_masks.cpu().numpy() != 0
            self._matches[path.name] = _match(read_label_image(path), masks, class_names, instances.scores.tolist())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compute the metrics of all processes' predictions.

        Returns:
            {"segm": {"AP": percent, "AP50": percent}} on the main process.
        """
        gathered = self._gather(self._matches)
        if gathered is None:
            return None
        settings = _settings(instance_api)
        instance_api.setInstanceLabels(settings)
        matches = {name: match for theirs in gathered for name, match in theirs.items()}
        averages = instance_api.computeAverages(instance_api.evaluateMatches(matches, settings), settings)
        metrics = {"AP": 100 * float(averages["allAp"]), "AP50": 100 * float(averages["allAp50%"])}
        logger.info(f"Cityscapes instances: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}")
        return {"segm": metrics}


class CityscapesSemSegEvaluator(CityscapesEvaluator):
    """IoU of classes and of categories ("_sup"), and both weighted by instances (iIoU), as cityscapesscripts do."""

    truth_suffix = "_gtFine_labelIds.png"

    def reset(self) -> None:
        super().reset()
        self._settings = _settings(pixel_api)
        self._confusion = pixel_api.generateMatrix(self._settings)
        self._instances = pixel_api.generateInstanceStats(self._settings)
        self._label_ids = np.full(256, 255, dtype=np.uint8)
        for train_id, label in trainId2label.items():
            if not label.ignoreInEval:
                self._label_ids[train_id] = label.id

    def process(self, inputs: list[Entry], outputs: list[Entry]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg": (K, H, W) scores of the training ids.
        """
        for image, output in zip(inputs, outputs, strict=True):
            predicted = self._label_ids[output["sem_seg"].argmax(dim=0).cpu().numpy()]
            file = io.BytesIO()  # cityscapesscripts want a file
            Image.fromarray(predicted).save(file, "bmp")
            truth = os.fspath(self._truth_of(image))
            pixel_api.evaluatePair(file, truth, self._confusion, self._instances, {}, self._settings)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compute the metrics of all processes' predictions.

        Returns:
            {"sem_seg": {"IoU": percent, "iIoU": ..., "IoU_sup": ..., "iIoU_sup": ...}} on the main process.
        """
        gathered = self._gather((self._confusion, self._instances))
        if gathered is None:
            return None
        counts = (sum(confusion for confusion, _ in gathered), _add([instances for _, instances in gathered]))
        metrics = {name: 100 * float(score) for name, score in _scores(*counts, self._settings).items()}
        logger.info(f"Cityscapes classes: {', '.join(f'{name} {value:.3f}' for name, value in metrics.items())}")
        return {"sem_seg": metrics}


def _settings(api: Any) -> Any:
    settings = copy.copy(api.args)
    settings.quiet = True
    return settings


def _match(truth: np.ndarray, masks: np.ndarray, class_names: list[str], scores: list[float]) -> dict[str, Any]:
    """The overlaps of an image's predicted and true instances, in the form that cityscapesscripts evaluate.

    Args:
        truth: (H, W) ids: class * 1000 + number, or the class alone for groups and for classes without instances.
        masks: (N, H, W) bool.
        class_names: N.
        scores: N.
    """
    names = [label.name for label in labels if label.hasInstances and not label.ignoreInEval]
    ignored = np.zeros(int(truth.max()) + 1, dtype=bool)
    true: dict[str, list[Entry]] = {name: [] for name in names}
    for instance_id, area in zip(*map(np.ndarray.tolist, np.unique(truth, return_counts=True)), strict=True):
        ignored[instance_id] = instance_id in id2label and id2label[instance_id].ignoreInEval
        label = id2label[instance_id // 1000 if instance_id >= 1000 else instance_id]
        if label.name in true:
            entry = {"instID": instance_id, "labelID": label.id, "pixelCount": area, "medDist": -1, "distConf": 0.0}
            true[label.name].append({**entry, "matchedPred": []})
    predicted: dict[str, list[Entry]] = {name: [] for name in names}
    for number, (mask, name, score) in enumerate(zip(masks, class_names, scores, strict=True)):
        overlaps = np.bincount(truth[mask], minlength=len(ignored))
        if overlaps.any():
            prediction = {"predID": number, "labelID": name2label[name].id, "confidence": score}
            prediction |= {"pixelCount": int(overlaps.sum()), "voidIntersection": int(overlaps[ignored].sum())}
            predicted[name].append({**prediction, "matchedGt": _link(prediction, true[name], overlaps)})
    return {"groundTruth": true, "prediction": predicted}


def _link(prediction: Entry, true: Iterable[Entry], overlaps: np.ndarray) -> list[Entry]:
    """Let the true instances know of a prediction that overlaps them; returns those, with the overlap."""
    linked = []
    for instance in true:
        overlap = int(overlaps[instance["instID"]])
        if overlap:
            instance["matchedPred"].append({**prediction, "intersection": overlap})
            plain = {key: value for key, value in instance.items() if key != "matchedPred"}
            linked.append({**plain, "intersection": overlap})
    return linked


def _add(statistics: list[Entry]) -> Entry:
    """Sum what the processes have counted of instances; the lists of label ids are the same in all."""
    total = copy.deepcopy(statistics[0])
    for theirs in statistics[1:]:
        for kind, groups in theirs.items():
            for group, counts in groups.items():
                for key, value in counts.items():
                    if key != "labelIds":
                        total[kind][group][key] += value
    return total


def _scores(confusion: np.ndarray, instances: Entry, settings: Any) -> dict[str, float]:
    names = {id2label[label].name: label for label in settings.evalLabels}
    iou = {name: pixel_api.getIouScoreForLabel(label, confusion, settings) for name, label in names.items()}
    instance_iou = {
        name: pixel_api.getInstanceIouScoreForLabel(label, confusion, instances, settings)
        for name, label in names.items()
    }
    category_iou = {name: pixel_api.getIouScoreForCategory(name, confusion, settings) for name in category2labels}
    category_instance_iou = {
        name: pixel_api.getInstanceIouScoreForCategory(name, confusion, instances, settings) for name in category2labels
    }
    lists = {"IoU": iou, "iIoU": instance_iou, "IoU_sup": category_iou, "iIoU_sup": category_instance_iou}
    return {name: pixel_api.getScoreAverage(scores, settings) for name, scores in lists.items()}
