"""Times the training loss alone, by parts, and counts what it gives a GPU to do.

    python tools/benchmarks/loss.py --size 1024 1024 --batch 1
    python tools/benchmarks/loss.py --device cuda --size 1024 1024 --batch 1 --masks bool

Predictions are random, those of the official COCO configuration's ten layers; targets are those of `training_step.py`.
Launches are counted as `launches.py` says.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from contenders import CLASSES, QUERIES, Clock, device_name, write_json
from launches import as_on_a_gpu, count_launches, launches, record
from torch import Tensor
from torch.profiler import record_function
from training_step import make_targets, peak_memory

from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.matcher import HungarianMatcher
from mask2former.modeling.query_masks import QueryMasks

LAYERS, CHANNELS = 10, 256
MATCHING = "matching"
PARTS = [MATCHING, "losses", "backward"]

Predictions = Callable[[], dict[str, Any]]


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[1024, 1024], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1, help="images (default: %(default)s)")
    parser.add_argument("--instances", type=int, default=20, help="of each image (default: %(default)s)")
    parser.add_argument("--masks", choices=["map", "bool"], default="map", help="of the targets (default: %(default)s)")
    parser.add_argument("--void", action="store_true", help="with pixels that do not count")
    parser.add_argument("--bfloat16", action="store_true", help="autocast")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="as in training_step.py")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def main() -> None:
    """Prints a table."""
    arguments = get_parser().parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    criterion, predict, targets = make_loss(arguments)
    clock = Clock(arguments.clock, arguments.device)
    rounds = [time_parts(criterion, predict, targets, clock) for _ in range(arguments.rounds + 1)][1:]
    memory = peak_memory(arguments.device)
    counts = count_parts(criterion, predict, targets, arguments.device)
    seconds = {part: statistics.median(x[part] for x in rounds) for part in PARTS}
    print(f"{device_name(arguments.device)}, torch {torch.__version__}, {vars(arguments)}\n")
    print(f"{'':10}{'ms':>10}{'launches':>10}")
    for part in PARTS:
        print(f"{part:10}{1e3 * seconds[part]:10.1f}{counts[part]:10}")
    print(f"{'all':10}{1e3 * sum(seconds.values()):10.1f}{sum(counts.values()):10}   {memory / 2**30:.2f} GiB at most")
    write_json(arguments.json, {"seconds": seconds, "launches": counts, "bytes": memory})


def make_loss(arguments: argparse.Namespace) -> tuple[SetCriterion, Predictions, list[dict[str, Any]]]:
    """The criterion, what makes predictions for it, and targets."""
    device, (height, width) = arguments.device, arguments.size
    criterion = SetCriterion(CLASSES, HungarianMatcher(2, 5, 5), {}, eos_coef=0.1).to(device)
    shape = (arguments.batch, CHANNELS, height // 4, width // 4)
    features = torch.randn(shape, device=device).to(memory_format=torch.channels_last)  # as in training
    embeddings = [torch.randn(arguments.batch, QUERIES, CHANNELS, device=device) / 16 for _ in range(LAYERS)]
    logits = [torch.randn(arguments.batch, QUERIES, CLASSES + 1, device=device) for _ in range(LAYERS)]
    dtype = torch.bfloat16 if arguments.bfloat16 else torch.float32

    def predict() -> dict[str, Any]:
        pixels = features.to(dtype).requires_grad_()
        layers = [
            {
                "pred_logits": x.to(dtype).requires_grad_(),
                "pred_masks": QueryMasks(y.to(dtype).requires_grad_(), pixels),
            }
            for x, y in zip(logits, embeddings, strict=True)
        ]
        return layers[0] | {"aux_outputs": layers[1:]}

    targets: list[dict[str, Any]] = [
        {"labels": labels, "masks": masks.full() if arguments.masks == "bool" else masks}
        for labels, masks in make_targets(arguments)
    ]
    if arguments.void:
        targets = [x | {"ignore_mask": torch.rand(height, width, device=device) > 0.9} for x in targets]
    return criterion, predict, targets


def time_parts(
    criterion: SetCriterion, predict: Predictions, targets: list[dict[str, Any]], clock: Clock
) -> dict[str, float]:
    """Seconds of each part."""
    spent = 0.0

    @contextmanager
    def timing() -> Iterator[None]:
        nonlocal spent
        begin = clock()
        yield
        spent += clock() - begin

    outputs = predict()
    begin = clock()
    with around_matching(criterion, timing), autocast(outputs):
        loss = torch.stack(list(criterion(outputs, targets).values())).sum()
    forward = clock()
    loss.backward()
    return {MATCHING: spent, "losses": forward - begin - spent, "backward": clock() - forward}


def count_parts(
    criterion: SetCriterion, predict: Predictions, targets: list[dict[str, Any]], device: str
) -> dict[str, int]:
    """How often each part gives the device something to do."""
    outputs = predict()
    with (
        as_on_a_gpu(),
        record(device) as forward,
        around_matching(criterion, lambda: record_function(MATCHING)),
        autocast(outputs),
    ):
        losses = torch.stack(list(criterion(outputs, targets).values()))
    with record(device) as backward:
        losses.backward(torch.ones_like(losses))
    matching = sum(launches(event) for event in forward.events() if event.name == MATCHING)
    return {MATCHING: matching, "losses": count_launches(forward) - matching, "backward": count_launches(backward)}


@contextmanager
def around_matching(criterion: SetCriterion, context: Callable[[], Any]) -> Iterator[None]:
    """Run the matcher's methods in a context."""
    matcher = criterion.matcher

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with context():
                return method(*args)

        return run

    matcher.costs, matcher.assign = wrap(matcher.costs), wrap(matcher.assign)  # type: ignore[method-assign]
    yield
    del matcher.costs, matcher.assign


def autocast(outputs: Mapping[str, Any]) -> torch.autocast:
    """As in a training of the predictions' type."""
    logits: Tensor = outputs["pred_logits"]
    return torch.autocast(logits.device.type, torch.bfloat16, enabled=logits.dtype == torch.bfloat16)


if __name__ == "__main__":
    main()
