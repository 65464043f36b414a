"""Workers as processes of this machine."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

from mask2former.inference.many.parts import MOST_LOSSES, Parts
from mask2former.inference.many.shards import Shard
from mask2former.inference.many.worker import Settings, Worker

__all__ = ["run_processes"]

_logger = logging.getLogger(__name__)
_worker: Worker | None = None  # of this process, if it is one of a pool


def run_processes(settings: Settings, output: Path, shards: Sequence[Shard], number: int) -> Iterator[int]:
    """Segment parts in some processes, or in this one if ``number`` is 1; processes that are lost are started again.

    Yields:
        The number of each part that is finished.

    Raises:
        RuntimeError: Processes are lost again and again.
    """
    if number == 1:
        worker = Worker(settings, output)
        for shard in shards:
            worker.predict(shard)
            yield shard.number
        return
    remaining = {shard.number: shard for shard in shards}
    losses = 0
    while remaining:
        try:
            for done in _run_pool(settings, output, list(remaining.values()), number):
                del remaining[done]
                losses = 0
                yield done
        except BrokenProcessPool as error:
            losses += 1
            parts = Parts(output)
            parts.remove_unfinished()  # of workers that had to end with the one that was lost
            for done in remaining.keys() - set(parts.unfinished(remaining)):
                del remaining[done]
                yield done
            if losses == MOST_LOSSES:
                raise RuntimeError(
                    f"workers were lost {losses} times without finishing a part: killed, or out of memory. "
                    f"{len(remaining)} parts are left, {min(remaining)} the first; try fewer workers or a smaller "
                    "--batch-size. The same command goes on from here."
                ) from error
            _logger.warning("a worker was lost (killed, or out of memory); starting them again.")


def _run_pool(settings: Settings, output: Path, shards: Sequence[Shard], number: int) -> Iterator[int]:
    # Neither CUDA nor threads survive a fork, but a server that has done no more than imports can be forked.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(min(number, len(shards)), context, _end_with_parent)
    try:
        futures = {pool.submit(_predict, settings, output, shard): shard.number for shard in shards}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    finally:
        pool.shutdown(cancel_futures=True)


def _predict(settings: Settings, output: Path, shard: Shard) -> None:
    global _worker
    if _worker is None:  # here, and not when the process starts, because errors find their way back from here
        _worker = Worker(settings, output)
    _worker.predict(shard)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, which would wait for work forever; Ctrl-C ends them at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback from each

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
