"""Large temporaries on a CPU: memory that is given back is cleared by the kernel before it can be had again."""

import contextlib
import ctypes
import os
import sys

__all__ = ["keep_freed_memory", "keep_freed_memory_of_program"]

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next use, instead of returning it to the system.

    This concerns the whole process, whose size stays at its peak from then on, which may be higher if there are blocks
    of gigabytes. That is why nothing calls it unless ``MODEL.INFERENCE.KEEP_MEMORY`` or its user says so, but for
    training on a CPU by ``train_net.py`` or ``mask2former train``. The environment variables ``MALLOC_TRIM_THRESHOLD_``
    and ``MALLOC_MMAP_MAX_`` do the same from outside.

    Raises:
        OSError: if the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or not (mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_MMAP_MAX, 0)):
        raise OSError(
            "the C library of this system has no mallopt, so freed memory cannot be kept; set "
            "MODEL.INFERENCE.KEEP_MEMORY to False."
        )


def keep_freed_memory_of_program() -> None:
    """:func:`keep_freed_memory` where there is glibc, for a process that does one job of ours and nothing else.

    An environment variable ``MALLOC_...`` is the user's own choice, and stays.
    """
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(OSError):
            keep_freed_memory()
