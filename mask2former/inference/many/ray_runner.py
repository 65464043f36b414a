"""Workers as actors of Ray Data, on one machine or many."""

import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mask2former.inference.many.shards import Shard
from mask2former.inference.many.worker import Settings, Worker

__all__ = ["run_ray"]


def run_ray(
    settings: Settings, output: Path, shards: Sequence[Shard], number: int, address: str, cpus: float, gpus: float
) -> Iterator[int]:
    """Segment parts in a pool of actors; Ray starts lost ones again and gives their part to another.

    Args:
        settings: What with. The model must be found under its name on every machine.
        output: A folder that every machine sees.
        shards: The parts, whose files every machine sees.
        number: Of actors.
        address: Of a cluster, "auto" for the one of this machine, or "local" to start one here.
        cpus: Of each actor.
        gpus: Of each actor.

    Yields:
        The number of each part that is finished.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: The cluster does not have so many CPUs or GPUs.
        RuntimeError: A part could not be segmented.
    """
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address=address, include_dashboard=False if address == "local" else None, log_to_driver=False)
    try:
        _check_resources(ray.cluster_resources(), number, cpus, gpus)
        yield from _run_actors(ray, settings, output, shards, number, cpus, gpus)
    finally:
        if started:
            ray.shutdown()


def _run_actors(
    ray: Any, settings: Settings, output: Path, shards: Sequence[Shard], number: int, cpus: float, gpus: float
) -> Iterator[int]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"number": shard.number, "shard": pickle.dumps(shard)} for shard in shards]
    finished = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(settings, output.absolute()),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(number, len(rows))),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    try:
        for row in finished.iter_rows():
            yield int(row["number"])
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"{_reason(error)}\nFinished parts are kept; the same command goes on from here.") from error


class _Actor:
    """Ray starts it again, and repeats its part, as often as it is lost; ``Parts.write`` sets an end to that."""

    def __init__(self, settings: Settings, output: Path) -> None:
        self._worker = Worker(settings, output)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for content in batch["shard"]:
            self._worker.predict(pickle.loads(content))
        return {"number": batch["number"]}


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--ray needs Ray Data: pip install 'mask2former[ray]'") from error
    return ray


def _check_resources(there: dict[str, float], number: int, cpus: float, gpus: float) -> None:
    """Ray would wait for what is not there, in silence."""
    for name, each, option in (("CPU", cpus, "--cpus-per-worker"), ("GPU", gpus, "--gpus-per-worker")):
        if number * each > there.get(name, 0):
            raise ValueError(
                f"{number} workers with {option} {each:g} need {number * each:g} {name}s, and Ray has "
                f"{there.get(name, 0):g}; ask for fewer --workers or less for each."
            )


def _reason(error: Exception) -> str:
    """What Ray tells, or, where that is a traceback from elsewhere, its last line."""
    text = str(error).strip()
    return text.splitlines()[-1] if "Traceback" in text else text
