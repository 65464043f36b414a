"""Trains the toy in processes that are killed by signal 9, resumes them, and reports the losses of every step.

    python kills.py DATA OUTPUT

Forks each training from one process, since most of a short training is its imports.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from detectron2.engine import hooks

sys.path.insert(0, str(Path(__file__).parent))
import toy

from mask2former.engine import Trainer, load_config

STEPS, PERIOD, SECONDS_A_STEP = 6, 3, 0.01


def train(folder: Path, log: Path, kill_at_call: int | None = None) -> None:
    """Train with --resume; log each step's loss. Dies at the given call of fsync or replace, if it is given."""
    if kill_at_call is not None:
        die_at(kill_at_call)
    options = toy.options(
        OUTPUT_DIR=folder, SOLVER__MAX_ITER=STEPS, SOLVER__CHECKPOINT_PERIOD=PERIOD, DATASETS__TEST="()"
    )
    trainer = Trainer(load_config(opts=options))

    def record(trainer: Trainer) -> None:
        time.sleep(SECONDS_A_STEP)
        with log.open("a") as file:
            file.write(f"{trainer.iter} {trainer.storage.latest()['total_loss'][0].hex()}\n")

    trainer.register_hooks([hooks.CallbackHook(before_train=lambda _: log_start(trainer, log), after_step=record)])
    trainer._hooks.insert(0, trainer._hooks.pop())  # before the hook that saves
    trainer.resume_or_load(resume=True)
    trainer.train()


def log_start(trainer: Trainer, log: Path) -> None:
    with log.open("a") as file:
        file.write(f"start {trainer.start_iter}\n")


def die_at(call: int) -> None:
    """Kill this process when it makes its ``call``-th call to the disk, counted from 1."""
    count = 0

    def counting(function):
        def wrapped(*args):
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return wrapped

    os.fsync, os.replace = counting(os.fsync), counting(os.replace)


def fork(*args) -> int:
    """Start a training; returns the process's number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            train(*args)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


def wait(pid: int) -> bool:
    """Whether the process was killed; an error of its own ends this one too."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        sys.exit(f"A training ended with {os.WEXITSTATUS(status)}.")
    return False


def kill_while_saving(output: Path) -> list[Path]:
    """Kill a run at its first call to the disk, another at its second, ..., and resume each; returns their logs."""
    logs = []
    while True:
        folder = output / f"call{len(logs) + 1}"
        log = folder.with_suffix(".log")
        if not wait(fork(folder, log, len(logs) + 1)):
            return logs
        wait(fork(folder, log))
        logs.append(log)


def kill_at_any_time(folder: Path, log: Path) -> int:
    """Kill a number of times after some milliseconds of training, then let it finish; returns how often it died."""
    chance = random.Random(0)
    kills = 0
    for _ in range(5):
        before = log.read_text().count("start") if log.exists() else 0
        pid = fork(folder, log)
        while not (log.exists() and log.read_text().count("start") > before):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 4 * SECONDS_A_STEP))
        os.kill(pid, signal.SIGKILL)
        kills += wait(pid)
    wait(fork(folder, log))
    return kills


def read(log: Path) -> tuple[list[tuple[str, str]], list[int]]:
    """Each (step, loss) in the order of the log, and how many steps each start had to take again."""
    losses, lost, last = [], [], -1
    for line in log.read_text().splitlines():
        step, value = line.split()
        if step == "start":
            lost.append(last + 1 - int(value))
        else:
            losses.append((step, value))
            last = int(step)
    return losses, lost


def main() -> None:
    """Write report.json."""
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    toy.register_dataset(data)
    straight, any_time = output / "straight.log", output / "any_time.log"
    wait(fork(output / "straight", straight))
    kills = kill_at_any_time(output / "any_time", any_time)
    logs = [any_time, *kill_while_saving(output)]
    folders = [log.with_suffix("") for log in [straight, *logs]]
    final = [torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in folders]
    report = {
        "straight": dict(read(straight)[0]),
        "kills_at_any_time": kills,
        "kills_while_saving": len(logs) - 1,
        "losses": {log.stem: read(log)[0] for log in logs},
        "steps_lost": {log.stem: read(log)[1] for log in logs},
        "leftovers": [str(file) for folder in folders for file in folder.glob("*.part")],
        "equal_weights": all(torch.equal(model[name], value) for model in final for name, value in final[0].items()),
    }
    (output / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
