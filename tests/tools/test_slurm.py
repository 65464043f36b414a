"""The scripts for Slurm, with stand-ins for its commands that run everything on this machine."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SRUN = """#!/usr/bin/env bash
# Runs the command once for each of the job's machines, all at once; is as good as the worst.
echo "srun $*" >> "$FAKE_SLURM/calls"
while [[ $1 == --* ]]; do shift; done
pids=()
trap 'kill -TERM "${pids[@]}"' TERM
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
  SLURM_NODEID=$node "$@" & pids+=($!)
done
worst=0
for pid in "${pids[@]}"; do wait "$pid" || worst=$?; done
exit "$worst"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$FAKE_SLURM/calls"
if [[ $1 == show ]]; then printf '127.0.0.1\\n127.0.0.1\\n'; fi
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two machines, in which ``calls`` has what was asked of Slurm."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "calls").touch()
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "FAKE_SLURM": str(tmp_path),
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "OMP_NUM_THREADS": "1",
    }


def calls(slurm: dict[str, str]) -> list[str]:
    return (Path(slurm["FAKE_SLURM"]) / "calls").read_text().splitlines()


@pytest.mark.parametrize("name", ["train.sbatch", "requeue.sh"])
def test_scripts_are_sound(name: str, repository: Path) -> None:
    script = repository / "tools/slurm" / name
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_every_machine_meets_at_the_first(slurm: dict[str, str], repository: Path) -> None:
    environment = slurm | {"PYTHON": "echo", "SLURM_JOB_ID": "41234", "SLURM_GPUS_ON_NODE": "4", "MAX_RESTARTS": "1"}
    done = subprocess.run(
        ["tools/slurm/train.sbatch", "--config-file", "a b.yaml", "SEED", "1"],
        cwd=repository, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    command = (
        "-m torch.distributed.run --nnodes 2 --nproc-per-node 4 --max-restarts 1 --rdzv-backend c10d "
        "--rdzv-endpoint 127.0.0.1:21234 --rdzv-id 41234 train_net.py --resume --config-file a b.yaml SEED 1"
    )
    assert done.stdout.splitlines() == [command, command]
    assert calls(slurm)[0] == "scontrol show hostnames node[1-2]"
    text = (repository / "tools/slurm/train.sbatch").read_text()
    assert "#SBATCH --requeue\n#SBATCH --signal=B:USR1@120\n" in text


def start(repository: Path, slurm: dict[str, str], command: str) -> "subprocess.Popen[str]":
    """Run a command in ``requeue.sh``, and wait until it says so."""
    script = [str(repository / "tools/slurm/requeue.sh"), "bash", "-c", command]
    job = subprocess.Popen(script, env=slurm, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "started\n"
    return job


def test_a_job_near_its_limit_ends_and_goes_back_into_the_queue(slurm: dict[str, str], repository: Path) -> None:
    job = start(
        repository, slurm, "trap 'echo ended; exit 143' TERM; echo started; for _ in {1..2000}; do sleep 0.01; done"
    )
    job.send_signal(signal.SIGUSR1)
    output = job.communicate(timeout=20)[0]
    assert output.startswith("ended\nThe time limit is near")
    assert job.returncode == 0
    assert calls(slurm) == [f"scontrol requeue {slurm['SLURM_JOB_ID']}"]


def test_a_job_that_finishes_at_the_last_moment_does_not_come_back(slurm: dict[str, str], repository: Path) -> None:
    job = start(repository, slurm, "trap 'exit 0' TERM; echo started; for _ in {1..2000}; do sleep 0.01; done")
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=20)
    assert job.returncode == 0
    assert calls(slurm) == []


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_that_ends_by_itself_keeps_its_status(slurm: dict[str, str], repository: Path, status: int) -> None:
    job = start(repository, slurm, f"echo started; exit {status}")
    job.communicate(timeout=20)
    assert job.returncode == status
    assert calls(slurm) == []


def test_a_cancelled_job_ends_and_does_not_come_back(slurm: dict[str, str], repository: Path) -> None:
    job = start(repository, slurm, "echo started; exec sleep 60")
    time.sleep(0.05)
    job.terminate()
    job.communicate(timeout=20)
    assert job.returncode == 128 + signal.SIGTERM
    assert calls(slurm) == []


@pytest.mark.slow
def test_two_machines_train_and_go_on_after_a_process_died(
    slurm: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    toy_script = repository / "tests/engine/toy.py"
    sys.path.insert(0, str(toy_script.parent))
    try:
        import toy
    finally:
        sys.path.pop(0)
    toy.write_dataset(tmp_path / "data")
    options = toy.options(
        OUTPUT_DIR=tmp_path / "out",
        SOLVER__CHECKPOINT_PERIOD=2,
        SOLVER__MAX_ITER=8,
        DATASETS__TEST="()",
        MODEL__MASK_FORMER__DROPOUT=0.0,
    )
    environment = slurm | {
        "TRAIN_SCRIPT": str(toy_script),
        "PROCESSES_PER_NODE": "1",
        "TOY_DATA": str(tmp_path / "data"),
        "TOY_DEATH": str(tmp_path / "died"),
        "PYTHONPATH": str(repository),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        ["tools/slurm/train.sbatch", *options],
        cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert (tmp_path / "died").exists()
    log = (tmp_path / "out/log.txt").read_text()
    assert "Starting training from iteration 0" in log
    assert "Starting training from iteration 4" in log  # it died in the sixth step; two steps are saved at a time
    assert (tmp_path / "out/log.txt.rank1").is_file()

    from mask2former.engine import Trainer, load_config

    toy.register_dataset(tmp_path / "data")
    alone = Trainer(load_config(opts=[*options, "OUTPUT_DIR", str(tmp_path / "alone")]))
    alone.resume_or_load(resume=False)
    alone.train()
    weights = torch.load(tmp_path / "out/model_final.pth", weights_only=True)["model"]
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)
