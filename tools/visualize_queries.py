#!/usr/bin/env python
"""Figure 3 of the paper: the masks that learnable queries propose before any layer has seen the image.

    python tools/visualize_queries.py --config-file FILE --output out/queries MODEL.WEIGHTS model_final.pth

Writes the class-agnostic average recall with 100 proposals (AR@100, of COCO's annotations) of the queries and of some
of the layers, as JSON and as a plot, and pictures of what single queries propose.
"""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import matplotlib
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from torch import Tensor

from mask2former.engine import Trainer, load_config
from mask2former.evaluation.proposal_evaluation import NUM_PROPOSALS, ProposalEvaluator
from mask2former.inference.runs import run_tool
from mask2former.inference.weights import load_whole_model
from mask2former.modeling.postprocessing import MaskGeometry
from mask2former.visualization import draw_instances

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", type=Path, default=Path("output/queries"))
    parser.add_argument("--layers", type=int, nargs="+", help="0 is the queries; every third layer by default")
    parser.add_argument("--images", type=int, help="of the first data set of DATASETS.TEST; all by default")
    parser.add_argument("--pictures", type=int, default=8, help="images that proposals are drawn for")
    parser.add_argument("--queries", type=int, default=4, help="proposals drawn for each of them")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the configuration")
    args = parser.parse_args()
    cfg = load_config(args.config_file, args.opts)
    model = load_whole_model(Trainer.build_model(cfg).eval(), cfg.MODEL.WEIGHTS)
    args.output.mkdir(parents=True, exist_ok=True)
    recall = analyse(cfg, model, args)
    (args.output / "average_recall.json").write_text(json.dumps(recall, indent=2) + "\n")
    plot_recall(recall, args.output / "average_recall.png")
    for layer, value in recall.items():
        print(f"{layer:20} AR@{NUM_PROPOSALS} {value:.1f}")


def analyse(cfg: CfgNode, model: Any, args: argparse.Namespace) -> dict[str, float]:
    """Draw proposals of the first images, and compute AR@100 of each layer.

    Raises:
        ValueError: if the data set has no COCO annotations, or a layer does not exist.
    """
    dataset = cfg.DATASETS.TEST[0]
    loader = Trainer.build_test_loader(cfg, dataset)  # makes the annotations of a data set of one's own
    evaluator = ProposalEvaluator(dataset)
    layers = args.layers or range(0, len(model.sem_seg_head.predictor.transformer_ffn_layers) + 1, 3)
    names = {layer: "learnable queries" if layer == 0 else f"layer {layer}" for layer in layers}
    for number, batch in enumerate(itertools.islice(loader, args.images)):
        sample = batch[0]
        by_layer = propose(model, sample, layers)
        evaluator.process([sample], [{"proposals": {names[layer]: found for layer, found in by_layer.items()}}])
        if number < args.pictures and 0 in by_layer:
            picture = draw_proposals(sample, *by_layer[0], count=args.queries)
            cv2.imwrite(str(args.output / f"{Path(sample['file_name']).stem}.png"), picture[:, :, ::-1])
    results = evaluator.evaluate()
    assert results is not None, "this is one process"
    return results["proposals"]


@torch.no_grad()
def propose(model: Any, sample: dict[str, Any], layers: Sequence[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Predict masks (N, height, width) bool, and their scores (N,), from the best on, after each of some layers.

    A score is the probability of there being an object, times the mean probability inside the mask. Empty masks and all
    after the first 100 are left out.

    Raises:
        ValueError: if there is no prediction of a layer.
    """
    predictor = model.sem_seg_head.predictor
    # Of the decoder alone, not of its layers: all predictions are returned, and there is no dropout.
    training = mock.patch.object(predictor, "training", True)
    outputs: list[dict[str, Any]] = []
    listening = model.sem_seg_head.register_forward_hook(lambda head, inputs, output: outputs.append(output))
    with training, mock.patch.object(predictor, "deep_supervision", True), listening:
        (last,) = model.predict_queries([sample])
    predictions = [*outputs[0]["aux_outputs"], outputs[0]]
    # Without learnable query features the first prediction is the first layer's.
    by_layer = dict(enumerate(predictions, start=0 if predictor.query_feat is not None else 1))
    missing = [layer for layer in layers if layer not in by_layer]
    if missing:
        raise ValueError(f"there are no predictions of the layers {missing}; the model has them of {sorted(by_layer)}.")
    return {layer: _best(by_layer[layer], last.geometry) for layer in layers}


def _best(prediction: dict[str, Tensor], geometry: MaskGeometry) -> tuple[np.ndarray, np.ndarray]:
    logits = geometry.to_output(prediction["pred_masks"][0])
    masks = logits > 0
    area = masks.flatten(1).sum(1)
    inside = (logits.sigmoid() * masks).flatten(1).sum(1) / area.clamp(min=1)
    scores = (1 - prediction["pred_logits"][0].float().softmax(-1)[:, -1]) * inside
    order = scores.argsort(descending=True)
    order = order[area[order] > 0][:NUM_PROPOSALS]
    return masks[order].cpu().numpy(), scores[order].cpu().numpy()


def draw_proposals(sample: dict[str, Any], masks: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Draw the image and beside it ``count`` proposals of different places, each on the image, RGB."""
    image = detection_utils.read_image(sample["file_name"], "RGB")
    panels = [image, *(draw_instances(image, masks[i : i + 1], [0]) for i in select_different(masks, count))]
    return np.concatenate(panels, axis=1)


def select_different(masks: np.ndarray, count: int, most_overlap: float = 0.5) -> list[int]:
    """Take the first masks that overlap with no earlier one by more than an IoU of ``most_overlap``."""
    chosen: list[int] = []
    for index, mask in enumerate(masks):
        overlaps = [(mask & masks[other]).sum() / (mask | masks[other]).sum() for other in chosen]
        if len(chosen) < count and all(overlap <= most_overlap for overlap in overlaps):
            chosen.append(index)
    return chosen


def plot_recall(recall: dict[str, float], path: Path) -> None:
    """Draw a bar for each layer."""
    figure, axis = plt.subplots(figsize=(1 + len(recall), 3), layout="constrained")
    axis.bar_label(axis.bar(list(recall), list(recall.values())), fmt="%.1f")
    axis.set_ylabel(f"AR@{NUM_PROPOSALS}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_tool(main)
