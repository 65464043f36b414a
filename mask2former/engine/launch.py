"""Starting one process, several on this machine's GPUs or CPU, or joining the world that torchrun made."""

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser
from detectron2.engine import launch as launch_processes
from detectron2.utils import comm

__all__ = ["check_address", "check_num_gpus", "is_first_process", "is_own_address", "launch"]

_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK"}  # in the environment of its processes


def launch(
    main: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
) -> None:
    """Call ``main(*args)`` in every process of the run; the arguments are those of Detectron2's ``launch``.

    Under torchrun (or anything else that sets RANK, WORLD_SIZE and LOCAL_RANK) this process joins that world, and the
    other arguments are ignored. On a machine without GPUs, ``num_gpus_per_machine`` processes share the CPU, over gloo.

    Raises:
        ValueError: if there are fewer GPUs than asked for, no process is asked for, or several machines have no
            ``dist_url`` in common.
    """
    if _TORCHRUN.issubset(os.environ):
        _join_torchrun(main, args)
        return
    check_num_gpus(num_gpus_per_machine)
    check_address(num_machines, machine_rank, dist_url)
    if num_gpus_per_machine * num_machines == 1:
        main(*args)
        return
    url = dist_url or "auto"
    launch_processes(_run_as_one_of_several, num_gpus_per_machine, num_machines, machine_rank, url, (main, args))


def check_num_gpus(number: int) -> None:
    """Raise ValueError if ``--num-gpus`` asks for no process, or for more GPUs than this machine has.

    torchrun decides otherwise, and then it is ignored.
    """
    if _TORCHRUN.issubset(os.environ):
        return
    if number < 1:
        raise ValueError(f"--num-gpus is {number}; expected at least 1 (also on a machine without GPUs).")
    if torch.cuda.is_available() and number > torch.cuda.device_count():
        raise ValueError(f"--num-gpus is {number} but this machine has {torch.cuda.device_count()}.")


def check_address(num_machines: int, machine_rank: int, dist_url: str | None) -> None:
    """Raise ValueError if machines would wait for each other in vain: without a ``--dist-url`` in common, or a number.

    torchrun decides otherwise, and then it is ignored.
    """
    if _TORCHRUN.issubset(os.environ):
        return
    if not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--machine-rank is {machine_rank} and --num-machines {num_machines}; machines are numbered from 0 on."
        )
    if num_machines > 1 and is_own_address(dist_url):
        raise ValueError(
            f"--dist-url is {dist_url!r}, but there are {num_machines} machines; give one that all of them reach, such "
            "as tcp://<the first machine>:29500."
        )


def is_own_address(dist_url: str | None) -> bool:
    """Whether a ``--dist-url`` names no other machine: none, "auto", and Detectron2's default, one port for a user."""
    return dist_url in (None, "auto", default_argument_parser().get_default("dist_url"))


def is_first_process(machine_rank: int) -> bool:
    """Whether this program is the first of those that make up a job, before they have joined.

    Args:
        machine_rank: ``--machine-rank``, which torchrun leaves at 0.
    """
    return machine_rank == 0 and int(os.environ.get("RANK", 0)) == 0


def _join_torchrun(main: Callable[..., Any], args: tuple[Any, ...]) -> None:
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(local_size)
    comm.synchronize()
    _run_and_leave(main, args)


def _run_as_one_of_several(main: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if not torch.cuda.is_available():  # without a limit, every process would start a thread per core
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    _run_and_leave(main, args)


def _run_and_leave(main: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Call ``main(*args)``, then leave the world so that no thread of a process group is left.

    Gloo's threads free the tensors that they have sent. One that comes to it while the interpreter ends aborts the
    process; they end with the last reference to their group, of which Detectron2 and a model in a cycle keep some.
    """
    main(*args)
    comm.synchronize()  # the store is in the first process, which the others may still ask
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    comm.create_local_process_group.cache_clear()
    gc.collect()
    dist.destroy_process_group()
