"""Keep freed memory in the process."""

from __future__ import annotations

import ctypes
import functools
import sys

__all__ = ["keep_heap_warm"]

# Options of mallopt(3), from malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


@functools.cache
def keep_heap_warm() -> bool:
    """Let the C library keep memory that tensors free, for the rest of the process.

    By default glibc maps every tensor above 32 MB (at first: 128 KB) again and unmaps it afterwards, so
    each operator pays for zeroed pages: a fifth of a large convolution's time. The price is that memory stays
    at its peak.

    Returns:
        Whether it took effect: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return all((mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 2**26)))
