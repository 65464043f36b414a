"""Runs the benchmarks that compare with other libraries, one after the other, and puts their figures into one file.

    python tools/benchmarks/everything.py --output output/benchmarks
    python tools/benchmarks/everything.py --output output/benchmarks --quick --clock cpu

These are the operator, whole images and their parts (with the C library as it is, and keeping freed memory), steps of
training, dataset mappers and evaluation; ours beside `transformers`, torch-ms-deform-attn (where it is installed),
plain Detectron2, pycocotools and panopticapi. Each prints its table with ratios; the folder gets its figures as JSON,
all of them in results.json, and a plot of the images. It takes half an hour or so on a CPU, and minutes with --quick,
which leaves out what is compiled or in bfloat16 and takes one round. Those of single parts are run by themselves:
loss.py and masked_attention.py.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, where other programs run too"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    results, failed = {}, []
    for name, command in commands(arguments).items():
        file = arguments.output / f"{name}.json"
        file.unlink(missing_ok=True)
        print(f"\n=== {name}: python tools/benchmarks/{' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, HERE / command[0], *command[1:], "--json", str(file)]).returncode:
            failed.append(name)
        else:
            results[name] = json.loads(file.read_text())
    (arguments.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{arguments.output / 'results.json'}: {', '.join(results) or 'nothing'}")
    if failed:
        print(f"failed, as told above: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def commands(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The scripts with their arguments, by what they measure."""
    quick, clock = arguments.quick, ["--clock", arguments.clock]
    models = [*clock, "--device", arguments.device, "--threads", str(arguments.threads)]
    models += ["--rounds", "1"] if quick else ["--contenders", "all"]
    plot = ["--plot", str(arguments.output / "inference.png")]
    return {
        "operator": ["ms_deform_attn.py", "--device", arguments.device, "--rounds", "1" if quick else "11"],
        "inference": ["inference.py", *models],
        "inference_tuned": ["inference.py", *models, "--allocator", "tuned", *plot],
        "training_step": ["training_step.py", *models],
        "mapper": ["mapper.py", *clock, "--rounds", "1" if quick else "5"],
        "evaluation": ["evaluation.py", "--images", "10" if quick else "300", "--rounds", "1" if quick else "3"],
    }


if __name__ == "__main__":
    sys.exit(main())
