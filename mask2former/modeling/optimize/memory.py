"""Large temporaries on a CPU: memory that is given back is cleared by the kernel before it can be had again."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next use, instead of returning it to the system.

    This concerns the whole process, whose size stays at its peak from then on, and is why nothing here calls it unless
    ``MODEL.INFERENCE.KEEP_MEMORY`` or its user says so. The environment variables ``MALLOC_TRIM_THRESHOLD_`` and
    ``MALLOC_MMAP_MAX_`` do the same from outside.

    Raises:
        OSError: if the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or not (mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_MMAP_MAX, 0)):
        raise OSError(
            "the C library of this system has no mallopt, so freed memory cannot be kept; set "
            "MODEL.INFERENCE.KEEP_MEMORY to False."
        )
