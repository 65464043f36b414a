"""The whole job: find the pictures, check that it is the same job as before, do what is left, list what failed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import portalocker
from tqdm import tqdm

from mask2former.inference.loading import model_config
from mask2former.inference.many.manifest import check_manifest, describe_job
from mask2former.inference.many.parts import Parts
from mask2former.inference.many.processes import run_processes
from mask2former.inference.many.ray_runner import run_ray
from mask2former.inference.many.shards import Shard, find_shards
from mask2former.inference.many.worker import Settings
from mask2former.inference.request import Options, tasks_of
from mask2former.processors import count_usable_cores

__all__ = ["Done", "Workers", "predict_many"]


@dataclass(frozen=True)
class Workers:
    """Who does the work.

    Attributes:
        number: How many.
        ray: Address of a Ray cluster, "auto" or "local"; None takes processes of this machine.
        cpus: Of each worker, for Ray to count.
        gpus: Likewise.
    """

    number: int = 1
    ray: str | None = None
    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True)
class Done:
    """How it ended.

    Attributes:
        parts: How many there are.
        found: Those of them that were finished before this call.
        bad: Pictures that could not be segmented; ``bad_pictures.jsonl`` lists them.
    """

    parts: int
    found: int
    bad: int


def predict_many(
    source: Path,
    output: Path,
    settings: Settings,
    workers: Workers,
    *,
    images: Path | None = None,
    part_size: int = 1000,
) -> Done:
    """Segment very many pictures; called again with the same, it does what is left.

    Args:
        source: The pictures, as :func:`~mask2former.inference.many.shards.find_shards` knows them.
        output: A folder; ``docs/many_pictures.md`` describes what gets into it.
        settings: What with, and how.
        workers: Who does the work.
        images: Folder that names in a list or a JSON are relative to.
        part_size: Pictures in a part: what is lost at most for each worker if the job is stopped.

    Raises:
        FileNotFoundError: Something named here is not there.
        OSError: The weights cannot be downloaded, or the disk is full.
        ValueError: Something is wrong with the source or the settings, the output has results of another job, or
            another process is working on it.
        ModuleNotFoundError: Ray is not installed.
        RuntimeError: Workers are lost again and again, or the model fails.
    """
    if workers.number < 1:
        raise ValueError(f"--workers is {workers.number}, expected at least 1.")
    cfg = model_config(settings.model, settings.weights, settings.opts)
    options = Options(settings.task, settings.threshold, settings.size, settings.batch_size)
    (task,) = options.check(cfg, tasks_of(cfg)[:1])
    # Workers of a cluster may have another working directory.
    shards = find_shards(source.absolute(), images and images.absolute(), part_size)
    settings = replace(settings, task=task, threads=settings.threads or _threads(workers))
    parts = Parts(output)
    with _only_one(output):
        check_manifest(output, describe_job(settings, cfg, source, shards))
        parts.remove_unfinished()
        left = set(parts.unfinished(range(len(shards))))
        bar = tqdm(total=len(shards), initial=len(shards) - len(left), unit="part", disable=None)
        with bar:
            for _ in _run(settings, output, [shard for shard in shards if shard.number in left], workers):
                bar.update()
        bad = parts.collect_bad(range(len(shards)))
    return Done(len(shards), len(shards) - len(left), bad)


def _run(settings: Settings, output: Path, shards: Sequence[Shard], workers: Workers) -> Iterator[int]:
    if not shards:
        return iter(())
    if workers.ray is None:
        return run_processes(settings, output, shards, workers.number)
    return run_ray(settings, output, shards, workers.number, workers.ray, workers.cpus, workers.gpus)


def _threads(workers: Workers) -> int:
    """Of each worker."""
    if workers.ray is not None:
        return max(1, int(workers.cpus))
    return max(1, count_usable_cores() // workers.number)


@contextmanager
def _only_one(output: Path) -> Iterator[None]:
    """Keep other processes from the same output; a process that is killed lets go of it."""
    (output / "parts").mkdir(parents=True, exist_ok=True)
    try:
        with portalocker.Lock(output / ".lock", timeout=0, fail_when_locked=True):
            yield
    except portalocker.AlreadyLocked as error:
        raise ValueError(f"{output}: another process is working on it; wait for it, or stop it.") from error
