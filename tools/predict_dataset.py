"""Segment very many pictures, in parts that are finished once: docs/many_pictures.md.

The same command again goes on where it was stopped.
"""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mask2former.engine.run import INTERRUPTED
from mask2former.inference.many import Settings, Workers, predict_many
from mask2former.inference.runs import complain

__all__ = ["get_parser", "main"]


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "input", type=Path, help="a folder of pictures or of .tar files, a .txt of their names, a COCO JSON, or a .tar"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the names in the .txt or JSON (default: that of the file)"
    )
    parser.add_argument("--part-size", type=int, default=1000, metavar="N", help="pictures in a part (default: 1000)")

    model = parser.add_argument_group("the model and how it is used")
    model.add_argument("--model", required=True, help="a name of the zoo, a configuration, a training's folder, ...")
    model.add_argument("--weights", metavar="FILE", help="a checkpoint to take instead of the model's own")
    model.add_argument("--device", help="such as cpu or cuda:1; default: the GPU if there is one")
    model.add_argument("--task", choices=("panoptic", "instance", "semantic"), help="default: the model's first")
    model.add_argument("--threshold", type=float, metavar="P", help="least score, 0 to 1, of what is kept")
    model.add_argument("--size", type=int, metavar="PIXELS", help="of the shorter edge, as the network sees it")
    model.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at a time (default: 1)")

    who = parser.add_argument_group("workers")
    who.add_argument("--workers", type=int, default=1, metavar="N", help="processes, or Ray's actors (default: 1)")
    who.add_argument("--threads", type=int, default=0, metavar="N", help="of each worker (default: the cores, divided)")
    who.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="through Ray Data: started here, or a cluster's address, or auto",
    )
    who.add_argument("--cpus-per-worker", type=float, default=1, metavar="N", help="of each, for Ray (default: 1)")
    who.add_argument("--gpus-per-worker", type=float, default=0, metavar="N", help="of each, for Ray (default: 0)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="configuration keys; must come last"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if every picture is segmented, 130 after Ctrl-C."""
    args = get_parser().parse_args(argv)
    device = ["MODEL.DEVICE", args.device] if args.device else []
    settings = Settings(
        model=args.model,
        weights=args.weights,
        opts=(*device, *args.opts),
        task=args.task,
        threshold=args.threshold,
        size=args.size,
        batch_size=args.batch_size,
        threads=args.threads,
    )
    workers = Workers(args.workers, args.ray, args.cpus_per_worker, args.gpus_per_worker)
    try:
        done = predict_many(args.input, args.output, settings, workers, images=args.images, part_size=args.part_size)
    except (OSError, ValueError, ModuleNotFoundError, RuntimeError) as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on with the parts that are left")
        return INTERRUPTED
    before = f" ({done.found} of them before)" if done.found else ""
    print(f"{done.parts} parts{before} -> {args.output}")
    if done.bad:
        complain(f"{done.bad} pictures could not be segmented: {args.output / 'bad_pictures.jsonl'}")
    return 1 if done.bad else 0


if __name__ == "__main__":
    sys.exit(main())
