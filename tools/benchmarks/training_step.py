"""Times steps of training, and how much memory they take, for this implementation and for that of transformers.

    python tools/benchmarks/training_step.py
    python tools/benchmarks/training_step.py --contenders ours "ours, bfloat16" --size 1024 1024 --batch 1

Every contender runs in a process of its own. They take turns, one step each, so that whatever else the machine does
falls on all of them; figures are medians. A step goes from images and targets to updated weights, by AdamW; a GPU is
waited for after each part, but not in the step as a whole, which is another one. Both have
the same random targets, here as the mappers give them and there as floats, leave the backbone's batch norms as they
are, and drop no paths. Convolutions are prepared here as the trainer does it. Weights are random. What launches are,
`launches.py` says.
"""

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from contenders import (
    CLASSES,
    OURS,
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
from launches import as_on_a_gpu, count_launches, record
from torch import Tensor, nn

from mask2former.structures import SegmentMasks

CHECKPOINTING, GRAPHS = f"{OURS}, checkpointing", f"{OURS}, CUDA graphs"
CONTENDERS = [f"{name}{dtype}" for name in (OURS, GRAPHS, CHECKPOINTING, THEIRS) for dtype in ("", ", bfloat16")]
DEFAULT = [OURS, THEIRS]
PARTS = ["network", "loss", "backward", "optimizer", "step"]

Step = Callable[[], Tensor]


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, CONTENDERS, DEFAULT, [512, 512], "steps")
    parser.add_argument("--batch", type=int, default=2, help="images a step (default: %(default)s)")
    parser.add_argument("--instances", type=int, default=20, help="of each image (default: %(default)s)")
    parser.add_argument("--launches", action="store_true", help="also count what a step gives a GPU to do")
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


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of all parts and contenders, and their peaks of memory in bytes."""
    contenders = start(__file__, CONTENDERS, arguments)
    for contender in contenders.values():
        contender.ask("step")  # warms it up
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, contender in contenders.items():
            seconds[name].append(json.loads(contender.ask("step")))
    memory = {name: int(contender.ask("memory")) for name, contender in contenders.items()}
    counted = contenders.items() if arguments.launches else ()
    launches = {name: int(contender.ask("launches")) for name, contender in counted}
    for contender in contenders.values():
        contender.stop()
    return {
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("json", "serve")},
        "torch": torch.__version__,
        "processor": device_name(arguments.device),
        "bytes": memory,
        "launches": launches,
        "seconds": {
            name: {part: statistics.median(x[part] for x in rounds) for part in PARTS}
            for name, rounds in seconds.items()
        },
    }


def print_table(results: dict[str, Any]) -> None:
    """One line a contender."""
    seconds = results["seconds"]
    print(f"{results['processor']}, torch {results['torch']}, {results['settings']}\n")
    print(f"{'seconds':28}" + "".join(f"{part:>11}" for part in PARTS) + "   peak GiB   times as fast as")
    for name, parts in seconds.items():
        cells = "".join(f"{parts[part]:11.3f}" for part in PARTS)
        others = [f"{x}: {y['step'] / parts['step']:.2f}" for x, y in seconds.items() if x != name]
        print(f"{name:28}{cells}{results['bytes'][name] / 2**30:11.2f}   {'; '.join(others)}")
    for name, count in results["launches"].items():
        print(f"{name:28}{count:11} launches")


def serve(arguments: argparse.Namespace) -> None:
    """A contender's process: "step" times the parts of one, "memory" tells the peak so far, "launches" counts."""
    torch.manual_seed(0)
    clock = Clock(arguments.clock, arguments.device)
    mark = Marks(clock)
    make = make_theirs if arguments.serve.startswith(THEIRS) else make_ours
    model, run = make(arguments)
    model.criterion.register_forward_pre_hook(lambda *_: mark("network"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(arguments.device, dtype=torch.bfloat16, enabled="bfloat16" in arguments.serve):
            loss = run()
        mark("loss")
        loss.backward()
        mark("backward")
        optimizer.step()
        mark("optimizer")

    for request in map(str.strip, sys.stdin):
        if request == "memory":
            print(peak_memory(arguments.device), flush=True)
        elif request == "launches":
            with as_on_a_gpu(), record(arguments.device) as recorded:
                step()
            print(count_launches(recorded), flush=True)
        else:
            begin = clock()
            step()
            times = [begin, *(mark.at[part] for part in PARTS[:-1])]
            seconds = {part: end - start for part, start, end in zip(PARTS, times, times[1:], strict=False)}
            seconds["step"] = times[-1] - begin
            if arguments.device == "cuda":  # for which every mark waits
                seconds["step"] = mark.time_without(step)
            print(json.dumps(seconds), flush=True)


def peak_memory(device: str) -> int:
    """Bytes, of the tensors on a GPU, or of the whole process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_targets(arguments: argparse.Namespace) -> list[tuple[Tensor, SegmentMasks]]:
    """Classes (T,) of each image, and discs (T, H, W) of which the later ones hide the earlier."""
    height, width = arguments.size
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    targets = []
    for _ in range(arguments.batch):
        x, y, radius = torch.rand(3, arguments.instances, 1, 1)
        discs = ((rows - y) ** 2 + (columns - x) ** 2).sqrt() < 0.05 + 0.2 * radius
        ids = torch.arange(1, arguments.instances + 1, dtype=torch.uint8)
        id_map = (discs * ids[:, None, None]).amax(dim=0)
        labels = torch.randint(0, CLASSES, (arguments.instances,))
        targets.append(
            (labels.to(arguments.device), SegmentMasks(id_map.to(arguments.device), ids.to(arguments.device)))
        )
    return targets


def make_ours(arguments: argparse.Namespace) -> tuple[Any, Step]:
    """The model, and a function that runs it to its loss."""
    from detectron2.modeling import build_model
    from detectron2.structures import Instances

    from mask2former.modeling.optimize import prepare_for_training, record_training_graphs

    options = ["MODEL.SWIN.DROP_PATH_RATE", "0.0"]
    if CHECKPOINTING in arguments.serve:
        options += [
            "MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING",
            "['backbone', 'pixel_decoder', 'transformer_decoder']",
        ]
    model: Any = prepare_for_training(build_model(our_config(arguments.backbone, arguments.device, options)).train())
    if GRAPHS in arguments.serve:
        record_training_graphs(model)
    image = torch.randint(0, 256, (3, *arguments.size)).float().to(arguments.device)
    samples = [
        {"image": image, "instances": Instances(tuple(arguments.size), gt_classes=labels, gt_masks=masks)}
        for labels, masks in make_targets(arguments)
    ]

    def run() -> Tensor:
        return torch.stack(list(model(samples).values())).sum()

    return model, run


def make_theirs(arguments: argparse.Namespace) -> tuple[Any, Step]:
    """The model, and a function that runs it to its loss."""
    model = their_model(arguments.backbone).to(arguments.device).train()
    # As Detectron2 trains: batch norms keep their statistics and parameters.
    for module in model.model.pixel_level_module.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    images = torch.randn(arguments.batch, 3, *arguments.size, device=arguments.device)
    targets = make_targets(arguments)
    inputs = {
        "pixel_values": images,
        "class_labels": [labels for labels, _ in targets],
        "mask_labels": [masks.float() for _, masks in targets],  # the type that they take
    }
    return model, lambda: model(**inputs).loss


if __name__ == "__main__":
    main()
