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
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model.itself = model
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


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads as Linux tells them")
def test_no_thread_of_a_process_group_is_left(repository):
    """A thread that is left may abort the process while the interpreter ends."""
    world = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    world["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run([sys.executable, "-c", THREADS], env={**os.environ, **world}, cwd=repository, **PIPES)
    assert done.returncode == 0, done.stderr
    before, within, after = map(int, done.stdout.split())
    assert within > before
    assert after == before


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
