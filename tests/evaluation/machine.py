"""One of two machines, as a program: evaluates its share of the images, from files of its own, with what torchrun sets.

``python machine.py FOLDER``, which has ``scene.pth`` and gets ``results.json``. The repository is in PYTHONPATH.
"""

import json
import sys
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from mask2former import add_maskformer2_config
from mask2former.engine import launch
from mask2former.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator, build_evaluator
from tests.evaluation import city


def main(folder: Path) -> None:
    """Run one process."""
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON = test.INSTANCE_ON = test.PANOPTIC_ON = cfg.TEST.BOUNDARY_AP = cfg.TEST.SEMANTIC_PQ = True
    cfg.OUTPUT_DIR = str(folder / "out")
    content = torch.load(folder / "scene.pth", weights_only=False)
    DatasetCatalog.register("scene", lambda: content["records"])
    MetadataCatalog.get("scene").set(**content["metadata"])
    results = evaluate(build_evaluator(cfg, "scene"), content["records"], content["outputs"])
    inputs, outputs = city.write(folder)
    for kind in (CityscapesInstanceEvaluator, CityscapesSemSegEvaluator):
        found = evaluate(kind("cityscapes_scene"), inputs, outputs)
        results.update({f"cityscapes/{task}": metrics for task, metrics in found.items()})
    (folder / "results.json").write_text(json.dumps(results))


def evaluate(evaluator: DatasetEvaluator, inputs: list[dict], outputs: list[dict]) -> dict:
    """Give an evaluator this process's share of the images."""
    evaluator.reset()
    mine = slice(comm.get_rank(), None, comm.get_world_size())
    evaluator.process(inputs[mine], outputs[mine])
    return evaluator.evaluate() or {}


if __name__ == "__main__":
    launch(main, 1, args=(Path(sys.argv[1]),))
