"""Exported files as models to predict with."""

import logging
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from mask2former.config import add_maskformer2_config
from mask2former.data.class_metadata import metadata_from_json
from mask2former.engine.setup import finish_config
from mask2former.export import MAX_SIZE, MIN_SIZE, ExportInfo, load_exported, model_of_file
from mask2former.inference.segmenter import Segmenter

__all__ = ["open_exported"]

logger = logging.getLogger(__name__)


def open_exported(path: Path, device: str | None = None) -> Segmenter:
    """Open a file of ``tools/export_model.py``; nothing else is needed, neither its configuration nor its data set.

    Args:
        path: ONNX, TorchScript, ``torch.export`` or AOTInductor. ONNX files are data; the other three are programs, so
            open only those that you trust.
        device: as :func:`~mask2former.export.load_exported` takes it.

    Raises:
        FileNotFoundError: nothing is there.
        ModuleNotFoundError: without the package ``onnxruntime``.
        ValueError: it is not such a file, or cannot run there.
    """
    exported = load_exported(path, device)
    _warn_of_what_it_leaves_out(exported.info, path)
    model = model_of_file(exported)
    metadata = metadata_from_json(exported.info.metadata)
    cfg = _config(exported.info, path)
    return Segmenter(cfg, model=model, metadata=metadata, least_side=MIN_SIZE, most_side=MAX_SIZE)


def _warn_of_what_it_leaves_out(info: ExportInfo, path: Path) -> None:
    """Say so where the model that was exported would find something else."""
    if info.postprocessing == "none":
        return
    left_out = []
    if info.tile_size > 0:
        left_out.append(f"larger pictures are cut into tiles of {info.tile_size} pixels")
    if info.split_disconnected_things and info.postprocessing != "semantic":
        left_out.append("disconnected things are split")
    for what in left_out:
        logger.warning(
            "%s: %s by the model that was exported, but not by this file, which has %s post-processing inside, so "
            "results may be much worse; export with --with-postprocessing none.",
            path,
            what,
            info.postprocessing,
        )


def _config(info: ExportInfo, path: Path) -> CfgNode:
    """What the file says, under the keys that a :class:`Segmenter` reads."""
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.MODEL.WEIGHTS = str(path)
    cfg.INPUT.FORMAT = info.channels
    cfg.INPUT.TEST_SCALE = info.test_scale
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = info.test_shortest_edge, info.test_longest_edge
    tasks = info.tasks if info.postprocessing == "none" else [info.postprocessing]
    test = cfg.MODEL.MASK_FORMER.TEST
    test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON = (x in tasks for x in ("panoptic", "instance", "semantic"))
    cfg.TEST.DETECTIONS_PER_IMAGE = info.max_instances
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    return finish_config(cfg)
