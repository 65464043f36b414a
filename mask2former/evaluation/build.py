"""Which evaluators a data set needs, as a table."""

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager

from mask2former.evaluation.boundary_evaluation import BoundaryEvaluator
from mask2former.evaluation.cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator
from mask2former.evaluation.lvis_evaluation import LVISEvaluator
from mask2former.evaluation.panoptic_evaluation import PanopticEvaluator
from mask2former.evaluation.sem_seg_evaluation import SemSegEvaluator
from mask2former.evaluation.semantic_pq_evaluation import SemanticPQEvaluator

__all__ = ["build_evaluator", "find_evaluators"]

EvaluatorBuilder = Callable[[CfgNode, str, str], DatasetEvaluator]


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluators:
    """Build the evaluators of a data set, which all see the same one pass over it.

    Args:
        cfg: ``MODEL.MASK_FORMER.TEST`` says which of the three results the model gives.
        dataset_name: a registered data set, whose metadata has ``evaluator_type``.
        output_folder: receives the predictions; by default ``OUTPUT_DIR/inference``, and below that a folder for each
            data set if there are several.

    Raises:
        ValueError: if the type is unknown, or evaluates nothing that the model gives.
    """
    if output_folder is None:
        several = len(cfg.DATASETS.TEST) > 1
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name if several else "")
    PathManager.mkdirs(output_folder)
    return DatasetEvaluators([build(cfg, dataset_name, output_folder) for build in find_evaluators(cfg, dataset_name)])


def find_evaluators(cfg: CfgNode, dataset_name: str) -> list[EvaluatorBuilder]:
    """Look up the builders of a data set's evaluators; raises as ``build_evaluator`` does."""
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in _EVALUATORS:
        raise ValueError(
            f"Data set {dataset_name!r} has evaluator_type {evaluator_type!r}; expected one of {sorted(_EVALUATORS)}. "
            f"Set it with MetadataCatalog.get({dataset_name!r}).evaluator_type = ..."
        )
    switches = cfg.MODEL.MASK_FORMER.TEST
    builders = [build for switch, build in _EVALUATORS[evaluator_type].items() if switches[switch]]
    for key, (build, beside, what, switch) in _ON_REQUEST.items():
        if cfg.TEST[key]:
            if beside not in builders:
                raise ValueError(
                    f"TEST.{key} is on, but data set {dataset_name!r} (evaluator_type {evaluator_type!r}) is not "
                    f"evaluated for {what}. Turn MODEL.MASK_FORMER.TEST.{switch} on, or TEST.{key} off."
                )
            builders.append(build)
    if not builders:
        raise ValueError(
            f"Data set {dataset_name!r} (evaluator_type {evaluator_type!r}) can be evaluated for "
            f"{' and '.join(_EVALUATORS[evaluator_type])}, but MODEL.MASK_FORMER.TEST turns these off."
        )
    return builders


def _pq(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return PanopticEvaluator(dataset_name, output_folder, cfg.TEST.EVALUATION_BACKEND)


def _miou(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return SemSegEvaluator(dataset_name, output_folder)


def _semantic_pq(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return SemanticPQEvaluator(dataset_name)


def _coco_ap(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    _require_instances(dataset_name)
    return InstanceSegEvaluator(
        dataset_name,
        output_dir=output_folder,
        max_dets_per_image=_max_detections(cfg),
        backend=cfg.TEST.EVALUATION_BACKEND,
    )


def _boundary_ap(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    # The predictions are saved by the evaluator of AP.
    return BoundaryEvaluator(dataset_name, output_dir=None, max_dets_per_image=_max_detections(cfg))


def _lvis_ap(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    _require_instances(dataset_name)
    return LVISEvaluator(dataset_name, output_dir=output_folder)


def _cityscapes_ap(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return CityscapesInstanceEvaluator(dataset_name)


def _cityscapes_miou(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return CityscapesSemSegEvaluator(dataset_name)


# What each type evaluates, and the switch of MODEL.MASK_FORMER.TEST that makes the model give it.
_EVALUATORS: dict[str, dict[str, EvaluatorBuilder]] = {
    "coco": {"INSTANCE_ON": _coco_ap},
    "lvis": {"INSTANCE_ON": _lvis_ap},
    "sem_seg": {"SEMANTIC_ON": _miou},
    "coco_panoptic_seg": {"PANOPTIC_ON": _pq, "INSTANCE_ON": _coco_ap, "SEMANTIC_ON": _miou},
    "ade20k_panoptic_seg": {"PANOPTIC_ON": _pq, "INSTANCE_ON": _coco_ap, "SEMANTIC_ON": _miou},
    "mapillary_vistas_panoptic_seg": {"PANOPTIC_ON": _pq, "INSTANCE_ON": _coco_ap, "SEMANTIC_ON": _miou},
    "cityscapes_instance": {"INSTANCE_ON": _cityscapes_ap},
    "cityscapes_sem_seg": {"SEMANTIC_ON": _cityscapes_miou},
    "cityscapes_panoptic_seg": {"PANOPTIC_ON": _pq, "INSTANCE_ON": _cityscapes_ap, "SEMANTIC_ON": _cityscapes_miou},
}


# By key of TEST: the evaluator that it adds, the one that must be there too, what that one evaluates, and its switch.
_ON_REQUEST: dict[str, tuple[EvaluatorBuilder, EvaluatorBuilder, str, str]] = {
    "BOUNDARY_AP": (_boundary_ap, _coco_ap, "instances in COCO's format", "INSTANCE_ON"),
    "SEMANTIC_PQ": (_semantic_pq, _miou, "mIoU", "SEMANTIC_ON"),
}


def _require_instances(dataset_name: str) -> None:
    """Complain before the model runs over all images if there will be nothing to compare its instances with."""
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if json_file is not None and not PathManager.isfile(json_file):
        raise FileNotFoundError(
            f"{json_file}: not found, but the AP of {dataset_name!r} is computed with it. datasets/README.md tells how "
            "to make it; or set MODEL.MASK_FORMER.TEST.INSTANCE_ON to False."
        )


def _max_detections(cfg: CfgNode) -> int:
    # COCO counts the best 100 of an image. A model made for more objects is judged on all that it may give.
    return max(100, cfg.TEST.DETECTIONS_PER_IMAGE)
