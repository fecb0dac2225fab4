"""Where large blocks of a server come from: the C library's own words, read from the process's memory map."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_SECOND_BLOCK = """
import ctypes, sys
from penjing.serve.house import keep_heap_small
if sys.argv[1:] == ["kept small"]:
    keep_heap_small()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
c.free(c.malloc(2**18))
block = c.malloc(2**18)
low, high = next(line.split()[0].split("-") for line in open("/proc/self/maps") if "[heap]" in line)
print(int(low, 16) <= block < int(high, 16))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a knob of glibc")
@pytest.mark.parametrize(("how", "from_heap"), [("as it is", "True"), ("kept small", "False")])
def test_a_block_that_asyncio_reads_into_goes_back(how: str, from_heap: str):
    """The second of two large blocks: from the heap for good, or from the system once more."""
    done = subprocess.run(
        [sys.executable, "-c", _SECOND_BLOCK, how], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == from_heap
