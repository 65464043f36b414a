import os
import re
import subprocess
import sys

import pytest
import torch
from detectron2.engine import default_argument_parser

from mask2former import cli
from mask2former.engine import launch

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
THREADS = """
import os, torch
from detectron2.utils import comm
from mask2former.engine import launch

def tell():
    print(len(os.listdir("/proc/self/task")))

def main():
    comm.all_gather(1)  # Detectron2 keeps the group for the next time
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2).to(device))
    model.itself = model
    model(torch.ones(1, 2, device=device)).sum().backward()
    tell()

torch.nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()  # starts threads of PyTorch's own
tell()
launch(main, 1)
tell()
"""
# A port of this machine's own, from the user's number.
DEFAULT = default_argument_parser().get_default("dist_url")


def test_one_process_is_this_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    calls = []
    launch(lambda *args: calls.append(args), 1, args=("a", 2))

    assert calls == [("a", 2)]


@pytest.fixture
def count_threads(repository):
    """Join a world of one process, as torchrun's, and leave it: how many threads before, within and after."""

    def run(**environment):
        world = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        environment = {**os.environ, **world, **environment}
        done = subprocess.run([sys.executable, "-c", THREADS], env=environment, cwd=repository, **PIPES)
        assert done.returncode == 0, done.stderr
        return list(map(int, done.stdout.split()))

    return run


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads as Linux tells them")
def test_no_thread_of_a_process_group_is_left(count_threads):
    """A thread that is left may abort the process while the interpreter ends."""
    before, within, after = count_threads(CUDA_VISIBLE_DEVICES="")
    assert within > before
    assert after == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_world_on_a_gpu_is_left(count_threads):
    """CUDA keeps threads of its own."""
    _, within, after = count_threads()
    assert after < within


def test_no_process_is_an_error():
    with pytest.raises(ValueError, match="--num-gpus is 0; expected at least 1"):
        launch(print, 0)


@pytest.mark.parametrize("url", [None, "auto", DEFAULT])
@pytest.mark.parametrize("gpu", [False, True])
def test_several_machines_need_an_address(monkeypatch, url, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=re.escape(f"--dist-url is {url!r}, but there are 2 machines")):
        launch(print, 1, 2, 0, url)


@pytest.mark.parametrize(("rank", "machines"), [(2, 2), (-1, 2), (1, 1), (0, 0)])
def test_machines_are_numbered_from_0_on(rank, machines):
    """The others would wait for one that counts from 1."""
    with pytest.raises(ValueError, match=f"--machine-rank is {rank} and --num-machines {machines}; machines are num"):
        launch(print, 1, machines, rank, "tcp://10.0.0.1:29500")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_address_is_told_in_one_line(command, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("VERSION: 2\n")
    assert cli.main([command, "--config-file", str(tmp_path / "a.yaml"), "--num-machines", "2"]) == 1
    assert f"error: --dist-url is {DEFAULT!r}, but there are 2 machines" in capsys.readouterr().err


def test_more_gpus_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    with pytest.raises(ValueError, match="--num-gpus is 4 but this machine has 1"):
        launch(print, 4)
