#!/usr/bin/env python
"""Train every row of one of the paper's ablation tables, and print the table with the paper's numbers beside ours.

    python tools/run_ablations.py 4a 4c --seeds 3                                   # on COCO, as in the paper
    python tools/run_ablations.py all --config configs/examples/nuclei_panoptic_lite0.yaml SOLVER.MAX_ITER 400
    python tools/run_ablations.py 4e --slurm --sbatch "--gres=gpu:8 --time=3-0" --num-gpus 8

Rows are the files of configs/ablations/, laid over the base configuration. A row that several tables have is trained
once. What is finished is not trained again, and what was interrupted goes on from its last checkpoint: repeat the
command. Below the output folder is a folder for each row and seed, and for each table a .md, a .csv and a .png.
"""

import mask2former  # noqa: F401, I001  before Detectron2: imports it without its libraries' warnings, or says how to get it
import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from ablation_report import Result, write_report
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from fake_models import COCO_SIZE, build_without_weights
from model_counts import count_operations, count_parameters

from mask2former.durable_files import replace_file
from mask2former.engine import Trainer, launch, load_config, setup
from mask2former.inference.runs import run_tool

REPOSITORY = Path(__file__).resolve().parents[1]
ROWS = REPOSITORY / "configs" / "ablations"
BASE = REPOSITORY / "configs" / "coco" / "instance-segmentation" / "maskformer2_R50_bs16_50ep.yaml"
TABLES: dict[str, Any] = json.loads((REPOSITORY / "tools" / "ablations.json").read_text())

REQUEUED = ["--requeue", "--signal=B:USR1@120"]  # what requeue.sh needs

CONFIG, OPTIONS, RESULT, LOG, SETTINGS = "row.yaml", "options.json", "result.json", "ablation.log", "settings.yaml"


def main() -> None:
    """Run the command line."""
    args = _parse()
    if args.run:
        opts = json.loads((args.run / OPTIONS).read_text())
        launch(run, args.num_gpus, dist_url="auto", args=(args.run, opts, args.num_gpus))
        return
    tables = list(TABLES) if "all" in args.tables else args.tables
    rows = sorted({row["config"] for table in tables for row in TABLES[table]["rows"]})
    runs = [prepare(args, row, seed) for row in rows for seed in range(1, args.seeds + 1)]
    waiting = [folder for folder in runs if not (folder / RESULT).is_file()]
    failed = []
    for number, folder in enumerate([] if args.report else waiting, start=1):
        print(f"[{number}/{len(waiting)}] {folder.relative_to(args.output)}", flush=True)
        if not start(args, folder):
            failed.append(folder)
    results = read_results(args.output, rows, args.seeds)
    for table in tables:
        print("\n" + write_report(table, TABLES[table], results, args.output))
    if failed:
        sys.exit(f"{len(failed)} runs failed; see {LOG} in {', '.join(str(folder) for folder in failed)}.")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}, or all; then KEY VALUE pairs"
    )
    parser.add_argument("--config", type=Path, default=BASE, help="configuration that rows are laid over")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "output" / "ablations")
    parser.add_argument("--num-gpus", type=int, default=1, help="of each run; processes on a CPU")
    parser.add_argument("--report", action="store_true", help="train nothing; print what is finished")
    parser.add_argument("--slurm", action="store_true", help="submit a job for each run, and do not wait for it")
    parser.add_argument("--sbatch", default="", metavar="OPTIONS", help="more options for sbatch")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # the process that trains
    args = parser.parse_intermixed_args()
    # KEY VALUE pairs come after the tables; keys have a dot.
    first = next((i for i, word in enumerate(args.words) if "." in word), len(args.words))
    args.tables, args.opts = args.words[:first], args.words[first:]
    unknown = [table for table in args.tables if table not in (*TABLES, "all")]
    if unknown:
        parser.error(f"there is no table {', '.join(unknown)}; expected some of {', '.join(TABLES)}, or all")
    if len(args.opts) % 2:
        parser.error(f"{' '.join(args.opts)} are not pairs of KEY VALUE")
    if args.seeds < 1 or not (args.tables or args.run):
        parser.error("name at least one table and one seed")
    return args


def prepare(args: argparse.Namespace, row: str, seed: int) -> Path:
    """Write the folder of a run: its configuration, options, and the settings that these come to.

    Raises:
        SystemExit: if the folder was written for other settings.
    """
    folder: Path = args.output.resolve() / row / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((ROWS / f"{row}.yaml").read_text())
    config |= {"_BASE_": str(args.config.resolve()), "OUTPUT_DIR": str(folder), "SEED": seed}
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / OPTIONS).write_text(json.dumps(args.opts))
    cfg = load_config(str(folder / CONFIG), args.opts).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = ""  # may differ between the machine that submits and the one that trains
    settings = cfg.dump()
    file = folder / SETTINGS
    if file.is_file() and file.read_text() != settings:
        sys.exit(
            f"{folder} holds a run with other settings ({SETTINGS} there). Give the same --config and options as "
            "before, another --output, or delete the folder."
        )
    file.write_text(settings)
    return folder


def start(args: argparse.Namespace, folder: Path) -> bool:
    """Train in a process of its own, so that its memory can be measured and its failure ends nothing else."""
    command = [sys.executable, str(Path(__file__).resolve()), "--run", str(folder), "--num-gpus", str(args.num_gpus)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    if args.slurm:
        return submit(command, folder, shlex.split(args.sbatch), environment)
    with (folder / LOG).open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        print("\n".join((folder / LOG).read_text().splitlines()[-5:]), file=sys.stderr)
    return done.returncode == 0


def submit(command: list[str], folder: Path, options: list[str], environment: dict[str, str]) -> bool:
    """Submit a run to Slurm, unless a job of its name waits or runs already."""
    name = "ablation-" + "-".join(folder.parts[-2:])
    queued = subprocess.run(
        ["squeue", "--me", "--noheader", f"--name={name}"], capture_output=True, text=True, check=True
    )
    if queued.stdout.strip():
        print(f"  {name} is in the queue already")
        return True
    options = [f"--job-name={name}", f"--output={folder / LOG}", "--open-mode=append", *REQUEUED, *options]
    script = f"--wrap=exec {shlex.join([str(REPOSITORY / 'tools/slurm/requeue.sh'), *command])}"
    return subprocess.run(["sbatch", *options, script], env=environment).returncode == 0


def run(folder: Path, opts: list[str], num_gpus: int) -> None:
    """Train and evaluate one row with one seed, and write its result; one process of ``num_gpus``."""
    cfg = setup(argparse.Namespace(config_file=str(folder / CONFIG), opts=opts, num_gpus=num_gpus, eval_only=False))
    began = time.perf_counter()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    metrics = trainer.train()
    if not comm.is_main_process():
        return
    model = build_without_weights(cfg)
    result = {
        "metrics": flatten_results_dict(metrics or {}),  # segm/AP; with several data sets, their name comes first
        "peak_memory_gb": peak_memory() / 2**30,
        "seconds": time.perf_counter() - began,  # since the last start
        "parameters": count_parameters(model),
        "gflops": sum(count_operations(model, COCO_SIZE, as_published=True)["total"].values()) / 1e9,
    }
    with replace_file(folder / RESULT) as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())


def peak_memory() -> int:
    """Bytes: of the GPU that PyTorch held at most, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_results(output: Path, rows: list[str], seeds: int) -> dict[str, list[Result]]:
    """Read what is finished: for each row the results of its seeds."""
    files = {row: [output / row / f"seed{seed}" / RESULT for seed in range(1, seeds + 1)] for row in rows}
    return {row: [json.loads(file.read_text()) for file in paths if file.is_file()] for row, paths in files.items()}


if __name__ == "__main__":
    if "--run" in sys.argv:  # its log needs the traceback
        main()
    else:
        run_tool(main)
