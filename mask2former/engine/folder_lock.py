"""One training at a time in an output folder."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

__all__ = ["only_training_in"]

LOCK = "training.lock"
_HELD = (errno.EACCES, errno.EAGAIN)  # as POSIX leaves it to the system


@contextmanager
def only_training_in(folder: Path) -> Iterator[None]:
    """Keep other programs that train out of a folder, which is made if it is not there.

    The lock ends with its process, however that ends; the workers of a loader, which live a little longer, have no part
    in it. It does nothing where the system or the file system has no locks.

    Raises:
        BlockingIOError: Another program trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with open(folder / LOCK, "a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                file.seek(0)
                raise BlockingIOError(
                    f"{folder}: another program trains there ({file.read() or 'which says nothing of itself'}); wait "
                    "for its end, or choose another folder."
                ) from None
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} of {socket.gethostname()}")
            file.flush()
        yield
