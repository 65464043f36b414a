"""Times whole images, and the parts that they pass through, for this implementation and for that of transformers.

    python tools/benchmarks/inference.py
    python tools/benchmarks/inference.py --contenders all --backbone swin_t --json output/t.json --plot output/t.png

Every contender runs in a process of its own. They take turns, one image each, so that whatever else the machine does
falls on all of them; figures are medians. An image goes from uint8 pixels to results of its own size. Weights are
random, so masks and classes are replaced before post-processing, for all alike, by those of 100 queries of which 25 are
sure: with no sure query, there would be nothing to do. The floor is what the convolutions and matrix products of the
network with the fewest multiplications would take at the rate of one large matrix product of that type, measured here.
Post-processing is each implementation's own: transformers' resizes masks to 384 x 384 on the way. On a GPU, parts are
timed by waiting for each of them, and the whole image in a pass without that.
"""

import argparse
import importlib
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import (
    CLASSES,
    OURS,
    QUERIES,
    THEIRS,
    Clock,
    Marks,
    add_arguments,
    device_name,
    our_config,
    start,
    their_model,
    write_json,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mask2former.inference.benchmark import sure_predictions
from mask2former.modeling.optimize.frequent_sizes import FREQUENT
from mask2former.ops._library import load_library
from mask2former.ops.linear import linear
from mask2former.ops.onednn import has_onednn

GRAPHS = "CUDA graphs"  # which the hooks that time the parts of a network would prevent
# Arguments of optimize_for_inference, or None for the model as it is.
OPTIONS: dict[str, dict[str, str] | None] = {
    OURS: None,
    "ours, optimised": {},
    "ours, CUDA graphs": {},
    "ours, compiled": {"compile_mode": "default"},
    "ours, bfloat16": {"dtype": "bfloat16"},
    "ours, bfloat16, CUDA graphs": {"dtype": "bfloat16"},
    "ours, bfloat16, compiled": {"dtype": "bfloat16", "compile_mode": "default"},
    "ours, bfloat16, compiled, CUDA graphs": {"dtype": "bfloat16", "compile_mode": "reduce-overhead"},
}
CONTENDERS = [*OPTIONS, THEIRS, *(f"{THEIRS}, {how}" for how in ("compiled", "bfloat16", "bfloat16, compiled"))]
DEFAULT = [OURS, "ours, optimised", THEIRS]
PARTS = ["backbone", "pixel decoder", "Transformer decoder", "post-processing", "whole image"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TASKS = ["panoptic", "instance", "semantic"]


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, CONTENDERS, DEFAULT, [800, 1216], "images")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS[:2])
    parser.add_argument("--plot", type=Path, help="also draw them into this file")
    return parser


def main() -> None:
    """Prints a table."""
    arguments = get_parser().parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.serve:
        serve(arguments)
        return
    results = compare(arguments)
    print_table(results)
    write_json(arguments.json, results)
    if arguments.plot:
        plot(results, arguments.plot)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of all parts and contenders, and what the machine could do."""
    contenders = start(__file__, CONTENDERS, arguments)
    flops = {name: float(contender.ask("flops")) for name, contender in contenders.items()}  # warms them up, too
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    networks = {dtype: min_flops(flops, dtype) for dtype in DTYPES}
    rates: dict[str, list[float]] = {dtype: [] for dtype, count in networks.items() if count}
    for _ in range(arguments.rounds):
        for dtype, measured in rates.items():
            measured.append(matmul_rate(arguments, DTYPES[dtype]))
        for name, contender in contenders.items():
            seconds[name].append(json.loads(contender.ask("image")))
    for contender in contenders.values():
        contender.stop()
    return {
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("json", "plot", "serve")},
        "torch": torch.__version__,
        "processor": device_name(arguments.device),
        "matmul_gflops": {dtype: max(x) / 1e9 for dtype, x in rates.items()},
        "floor_s": {dtype: networks[dtype] / max(x) for dtype, x in rates.items()},
        "seconds": {
            name: {part: statistics.median(x[part] for x in rounds) for part in rounds[0]}
            for name, rounds in seconds.items()
        },
    }


def print_table(results: dict[str, Any]) -> None:
    """One line a contender."""
    settings, seconds = results["settings"], results["seconds"]
    print(f"{results['processor']}, torch {results['torch']}, {settings}")
    for dtype, rate in results["matmul_gflops"].items():
        floor = results["floor_s"][dtype]
        print(f"a matrix product in {dtype}: {rate:.0f} GFLOP/s; the network's floor: {floor:.4f} s")
    print()
    print(f"{'seconds':40}" + "".join(f"{part:>21}" for part in PARTS) + "   times as fast as")
    for name, parts in seconds.items():
        cells = "".join(f"{parts[part]:21.4f}" if part in parts else f"{'':21}" for part in PARTS)
        others = [f"{x}: {y['whole image'] / parts['whole image']:.2f}" for x, y in seconds.items() if x != name]
        print(f"{name:40}{cells}   {'; '.join(others)}")


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of the parts, and the floor."""
    from matplotlib.figure import Figure

    seconds = results["seconds"]
    figure = Figure(figsize=(9, 1 + 0.5 * len(seconds)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(seconds)
    for part in ["network", *PARTS[:-1]]:
        widths = [x.get(part, 0.0) for x in seconds.values()]
        if any(widths):
            axes.barh(list(seconds), widths, left=left, label="network as a whole" if part == "network" else part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    for (dtype, floor), style in zip(results["floor_s"].items(), (":", "--"), strict=False):
        axes.axvline(floor, color="black", linestyle=style, label=f"floor of the network in {dtype}")
    axes.invert_yaxis()
    axes.set_xlabel("seconds an image")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def min_flops(flops: dict[str, float], dtype: str) -> float:
    """Of the network with the fewest among the contenders of this type; 0 if it is not known."""
    return min((x for name, x in flops.items() if x and ("bfloat16" in name) == (dtype == "bfloat16")), default=0)


def matmul_rate(arguments: argparse.Namespace, dtype: torch.dtype, side: int = 2048) -> float:
    """Floating point operations a second of a product of two matrices, by the fastest library that is used here."""
    clock = Clock(arguments.clock, arguments.device)
    x = torch.rand(side, side, device=arguments.device, dtype=dtype)
    times = []
    for multiply in (torch.mm, linear):
        for _ in range(4):
            begin = clock()
            multiply(x, x)
            times.append(clock() - begin)
    return 2 * side**3 / min(times)


@torch.inference_mode()
def serve(arguments: argparse.Namespace) -> None:
    """A contender's process: "flops" counts the network's, "image" times the parts of an image."""
    torch.manual_seed(0)
    clock = Clock(arguments.clock, arguments.device)
    mark = Marks(clock)
    make = make_theirs if arguments.serve.startswith(THEIRS) else make_ours
    network, run = make(arguments, mark)
    height, width = arguments.size
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    for request in map(str.strip, sys.stdin):
        if request == "flops":
            for _ in range(FREQUENT if GRAPHS in arguments.serve else 1):
                run(image)
            # What is compiled has no operations to count: its twin counts for it.
            print(0 if "compiled" in arguments.serve else count_flops(network, arguments), flush=True)
            continue
        begin = clock()
        run(image)
        seconds = durations({"begin": begin, **mark.at, "end": clock()})
        if arguments.device == "cuda":  # for which every mark waits
            seconds["whole image"] = mark.time_without(lambda: run(image))
        print(json.dumps(seconds), flush=True)


def durations(marks: dict[str, float]) -> dict[str, float]:
    """Seconds between marks, of the parts that were seen."""
    seconds = {"whole image": marks["end"] - marks["begin"], "post-processing": marks["end"] - marks["network end"]}
    if "backbone end" not in marks:
        return {**seconds, "network": marks["network end"] - marks["begin"]}
    return {
        **seconds,
        "backbone": marks["backbone end"] - marks["begin"],
        "pixel decoder": marks["decoder begin"] - marks["backbone end"],
        "Transformer decoder": marks["network end"] - marks["decoder begin"],
    }


def count_flops(network: Callable[[Tensor], object], arguments: argparse.Namespace) -> int:
    """Of convolutions, matrix products and attention, twice the multiplications."""
    ours: dict[Any, Any] = {}
    if has_onednn():
        ours[torch.ops.mkldnn._linear_pointwise] = linear_flops
        ours[torch.ops.mkldnn._convolution_pointwise] = convolution_flops
    if load_library():
        operators = torch.ops.mask2former
        ours |= {
            operators.linear: linear_flops,
            operators.masked_attention: attention_flops,
            operators.winograd_conv2d: winograd_flops,
        }
    with FlopCounterMode(display=False, custom_mapping=ours) as counter:
        network(torch.rand(1, 3, *arguments.size, device=arguments.device))
    return counter.get_total_flops()


def linear_flops(x: list[int], weight: list[int], *_: object, out_shape: object) -> int:
    """Of a product of matrices."""
    return 2 * math.prod(x) * weight[0]


def convolution_flops(x: list[int], *arguments: Any, out_shape: list[int]) -> int:
    """Of a convolution, whose weights come before the bias, and after what is added if something is."""
    weight = arguments[1] if len(arguments[1] or ()) == 4 else arguments[0]
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def attention_flops(
    query: list[int], key: list[int], value: list[int], attend: list[int], heads: int, *, out_shape: object
) -> int:
    """Of products with all keys and values, as if no mask hid any."""
    return 4 * math.prod(query) * key[1]


def winograd_flops(
    pixels: list[int], weight: list[int], bias: list[int], *, out_shape: object, onednn: bool = False
) -> int:
    """Of the products alone, of which there is one for each tile of 4x4 pixels and each of its 36 transformed ones."""
    images, height, width, _ = pixels
    return 2 * images * -(-height // 4) * -(-width // 4) * math.prod(weight)


def watch(backbone: nn.Module, decoder: nn.Module, mark: Callable[[str], None]) -> None:
    """Mark when the backbone is done and when the Transformer decoder begins."""
    backbone.register_forward_hook(lambda *_: mark("backbone end"))
    decoder.register_forward_pre_hook(lambda *_: mark("decoder begin"))


def make_ours(
    arguments: argparse.Namespace, mark: Callable[[str], None]
) -> tuple[Callable[[Tensor], object], Callable[[Tensor], object]]:
    """The network, and a function of an image."""
    from detectron2.modeling import build_model

    from mask2former.modeling.optimize import optimize_for_inference

    model: Any = build_model(our_config(arguments.backbone, arguments.device)).eval()
    model = model.with_outputs(
        arguments.tasks, object_mask_threshold=0.5, instance_threshold=0.5, lazy_class_scores=True
    )
    how = OPTIONS[arguments.serve]
    model = model if how is None else optimize_for_inference(model, **how)  # type: ignore[arg-type]
    if "compiled" not in arguments.serve and GRAPHS not in arguments.serve:
        watch(model.backbone, model.sem_seg_head.predictor, mark)
    network = model.run_network

    def run_network(images: Tensor) -> dict[str, Tensor]:
        shape = network(images)["pred_masks"].shape[-2:]
        mark("network end")
        return sure_predictions(QUERIES, CLASSES, shape, arguments.device)

    model.run_network = run_network
    return network, lambda image: model([{"image": image}])


def make_theirs(
    arguments: argparse.Namespace, mark: Callable[[str], None]
) -> tuple[Callable[[Tensor], object], Callable[[Tensor], object]]:
    """The network, and a function of an image."""
    model = their_model(arguments.backbone).eval().to(arguments.device)
    if "compiled" not in arguments.serve:
        watch(model.model.pixel_level_module.encoder, model.model.transformer_module, mark)
    else:
        model.forward = torch.compile(model.forward)
    processor = importlib.import_module("transformers").Mask2FormerImageProcessor()
    height, width = arguments.size
    mean = torch.tensor(processor.image_mean, device=arguments.device).view(3, 1, 1)
    std = torch.tensor(processor.image_std, device=arguments.device).view(3, 1, 1)
    options: dict[str, dict[str, Any]] = {
        "panoptic": {"label_ids_to_fuse": set(range(80, CLASSES))},
        "instance": {"return_binary_maps": True},
    }

    def network(images: Tensor) -> Any:
        with torch.autocast(arguments.device, dtype=torch.bfloat16, enabled="bfloat16" in arguments.serve):
            return model(pixel_values=images)

    def run(image: Tensor) -> None:
        outputs = network(((image.to(arguments.device) / 255 - mean) / std)[None])
        mark("network end")
        shape = outputs.masks_queries_logits.shape[-2:]
        sure = sure_predictions(QUERIES, CLASSES, shape, arguments.device)
        outputs.class_queries_logits, outputs.masks_queries_logits = sure["pred_logits"], sure["pred_masks"]
        for task in arguments.tasks:
            process = getattr(processor, f"post_process_{task}_segmentation")
            process(outputs, target_sizes=[(height, width)], **options.get(task, {}))

    return network, run


if __name__ == "__main__":
    main()
