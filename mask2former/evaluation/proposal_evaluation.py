"""Average recall of class-agnostic mask proposals, such as those of each decoder layer (Figure 3)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from mask2former.evaluation.average_precision import CocoComparison, read_annotations
from mask2former.evaluation.run_lengths import encode_mask

__all__ = ["NUM_PROPOSALS", "ProposalEvaluator", "average_recall"]

NUM_PROPOSALS = 100


class ProposalEvaluator(DatasetEvaluator):
    """COCO's AR@100 of masks, without regard to classes, of several sources of proposals at once.

    Only the images that were processed count.

    Args:
        dataset_name: its metadata has ``json_file``, COCO's annotations.

    Raises:
        ValueError: if it has none.
    """

    def __init__(self, dataset_name: str) -> None:
        json_file = MetadataCatalog.get(dataset_name).get("json_file")
        if json_file is None:
            raise ValueError(
                f"data set {dataset_name!r} names no file of COCO annotations (metadata json_file), which average "
                "recall is of; choose another DATASETS.TEST."
            )
        self._truth = read_annotations(PathManager.get_local_path(json_file))
        self.reset()

    def reset(self) -> None:
        self._images: list[Any] = []
        self._proposals: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the proposals of a batch.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "proposals": for each source masks (N, H, W) bool and scores (N,), numpy arrays.
        """
        for image, output in zip(inputs, outputs, strict=True):
            self._images.append(image["image_id"])
            for source, (masks, scores) in output["proposals"].items():
                self._proposals[source] += [
                    {
                        "image_id": image["image_id"],
                        "category_id": 1,
                        "segmentation": encode_mask(mask),
                        "score": float(s),
                    }
                    for mask, s in zip(masks, scores, strict=True)
                ]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Compute the recall of all processes' proposals.

        Returns:
            {"proposals": {source: percent}} on the main process.
        """
        gathered = comm.gather((self._images, dict(self._proposals)))
        if not comm.is_main_process():
            return None
        images = [image_id for theirs, _ in gathered for image_id in theirs]
        sources = dict.fromkeys(source for _, proposals in gathered for source in proposals)
        return {
            "proposals": {
                source: average_recall(self._truth, [p for _, ours in gathered for p in ours.get(source, [])], images)
                for source in sources
            }
        }


def average_recall(truth: COCO, proposals: Sequence[dict[str, Any]], image_ids: Sequence[Any]) -> float:
    """AR@100 of masks in percent, without regard to classes; crowds do not count.

    Args:
        truth: the annotations.
        proposals: results in COCO's format.
        image_ids: what counts.
    """
    if not proposals:
        return 0.0
    evaluation = CocoComparison(truth, proposals, "segm").evaluate(
        max_detections=(1, 10, NUM_PROPOSALS), image_ids=image_ids, with_classes=False
    )
    return 100 * float(evaluation.stats[8])
