"""One training at a time in an output folder."""

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TextIO

fcntl: ModuleType | None
try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

__all__ = ["only_training_in"]

logger = logging.getLogger(__name__)

LOCK = "training.lock"
_HELD = (errno.EACCES, errno.EAGAIN)  # as POSIX leaves it to the system
_LEASE = 120  # seconds; a network file system keeps the locks of a machine that is gone for about 90
_PAUSE = 5


@contextmanager
def only_training_in(folder: Path) -> Iterator[None]:
    """Keep other programs that train out of a folder, which is made if it is not there.

    The lock ends with its process, however that ends; the workers of a loader, which live a little longer, have no part
    in it. A lock of another machine, which may be gone, is waited for. It does nothing where the system or the file
    system has no locks.

    Raises:
        BlockingIOError: Another program trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with open(folder / LOCK, "a+", encoding="utf-8", errors="replace") as file:
        if (holder := _lock(file)) and not holder.endswith(f" {socket.gethostname()}"):
            logger.info(f"{folder} is locked by {holder}; waiting for as long as it may be locked by what is gone.")
            end = time.monotonic() + _LEASE
            while holder and time.monotonic() < end:
                time.sleep(_PAUSE)
                holder = _lock(file)
        if holder:
            raise BlockingIOError(
                f"{folder}: another program trains there ({holder}); wait for its end, or choose another folder."
            )
        yield


def _lock(file: TextIO) -> str:
    """Lock a file and write into it who did; returns what it says if somebody else has locked it."""
    assert fcntl is not None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            return ""  # there are no locks
        file.seek(0)
        return file.read() or "which says nothing of itself"
    file.truncate(0)
    file.write(f"process {os.getpid()} of {socket.gethostname()}")
    file.flush()
    return ""
