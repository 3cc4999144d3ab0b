"""Memory of a training process: freed blocks are kept for the next step and not given back to the system."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Whether the C library could be told so. Fresh pages are cleared by the system, which takes a fifth of a step's time.

    It holds for the rest of the process, whose peak of memory stays as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(what, NEVER) for what in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))
