#!/usr/bin/env python
"""Analyze a model without weights, without data and without computing: parameters, operations, activations, memory.

    python tools/analyze_model.py --config-file configs/coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml
    python tools/analyze_model.py --config-file FILE --size 1024 2048 --details
    python tools/analyze_model.py --config-file FILE --tasks structure --depth 4

Numbers are of one image, which has the average size of COCO's at test time, and of float32. Tensors have shapes and no
values, so that large models take seconds. model_counts.py tells what is counted, model_memory.py what memory is in it.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from fake_models import COCO_SIZE, build_without_weights, run_model
from model_counts import Counts, count_activations, count_operations, count_parameters
from model_memory import measure_memory
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mask2former.engine import load_config
from mask2former.inference.runs import run_tool

Size = tuple[int, int]

# As the official tool calls them, and memory.
TASKS = ("parameter", "flop", "activation", "memory", "structure")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS[:-1], help="default: all but the structure")
    parser.add_argument("--size", nargs=2, type=int, default=COCO_SIZE, metavar=("HEIGHT", "WIDTH"), help="in pixels")
    parser.add_argument("--details", action="store_true", help="also list operators, and the parts of the model")
    parser.add_argument("--depth", type=int, default=3, help="of the structure (default: 3)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the configuration")
    args = parser.parse_args()
    model, size = build_without_weights(load_config(args.config_file, args.opts)), tuple(args.size)
    reports = {
        "parameter": lambda: report_parameters(model),
        "flop": lambda: report_operations(model, size, args.details),
        "activation": lambda: report_activations(model, size, args.details),
        "memory": lambda: report_memory(model, size),
        "structure": lambda: report_structure(model, size, args.depth),
    }
    for task in args.tasks:
        for line in reports[task]():
            print(line)


def report_parameters(model: nn.Module) -> Iterator[str]:
    """How many, in all and of each part."""
    parts = {name: count_parameters(part) for name, part in _parts(model).items()}
    listed = ", ".join(f"{name} {number / 1e6:.1f}" for name, number in parts.items())
    yield f"parameters: {count_parameters(model) / 1e6:.1f} M ({listed})"


def report_operations(model: nn.Module, size: Size, details: bool = False) -> Iterator[str]:
    """How many, as the model runs and as the paper counts."""
    for as_published, name in ((False, "as it runs"), (True, "as the paper counts")):
        counts = count_operations(model, size, as_published=as_published)
        yield f"FLOPs at {size[0]} x {size[1]}, {name}: {sum(counts['total'].values()) / 1e9:.1f} G"
        if details:
            yield from _table(counts, 1e9, "G")


def report_activations(model: nn.Module, size: Size, details: bool = False) -> Iterator[str]:
    """How many numbers convolutions, matrix products and attention give."""
    counts = count_activations(model, size)
    yield f"activations at {size[0]} x {size[1]}: {sum(counts['total'].values()) / 1e6:.1f} M"
    if details:
        yield from _table(counts, 1e6, "M")


def report_memory(model: nn.Module, size: Size) -> Iterator[str]:
    """Of weights, and of one image in inference and training."""
    memory = measure_memory(model, size)
    weights, inference, training, saved = (
        value / 2**20 for value in (memory.weights, memory.inference, memory.training, memory.saved)
    )
    yield f"memory of the weights: {weights:.0f} MiB"
    yield f"memory at {size[0]} x {size[1]}, inference: {inference:.0f} MiB besides the weights"
    yield (
        f"memory at {size[0]} x {size[1]}, training: {training:.0f} MiB with AdamW, of which {saved:.0f} MiB are an "
        "image's activations"
    )


def report_structure(model: nn.Module, size: Size, depth: int = 3) -> Iterator[str]:
    """The tree of modules: class, parameters, and the shapes that each gives."""
    shapes: dict[nn.Module, str] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        found = [tuple(tensor.shape) for tensor in tree_leaves(output) if isinstance(tensor, Tensor)]
        shapes[module] = ", ".join(map(str, found[:4])) + (", ..." if len(found) > 4 else "")

    handles = [module.register_forward_hook(note) for module in model.modules()]
    run_model(model.eval(), size)
    for handle in handles:
        handle.remove()
    for name, module in model.named_modules():
        level = name.count(".") + 1 if name else 0
        if level <= depth:
            label = "  " * level + (name.rpartition(".")[2] or type(model).__name__)
            yield (
                f"{label:44} {type(module).__name__:32} {count_parameters(module):>12,}  {shapes.get(module, '')}"
            ).rstrip()


def _parts(model: Any) -> dict[str, nn.Module]:
    head = model.sem_seg_head
    return {"backbone": model.backbone, "pixel_decoder": head.pixel_decoder, "predictor": head.predictor}


def _table(counts: Counts, unit: float, symbol: str) -> Iterator[str]:
    """What each operator costs in each part of the model."""
    parts = list(counts)
    yield f"  {'':44}" + "".join(f"{part:>15}" for part in parts)
    for name in sorted(counts["total"], key=lambda name: -counts["total"][name]):
        numbers = "".join(f"{counts[part].get(name, 0) / unit:13.2f} {symbol}" for part in parts)
        yield f"  {name:44}{numbers}"


if __name__ == "__main__":
    run_tool(main)
