"""How fast a folder's disk can be read past the page cache: in sequence, and 128 KiB at random places.

A model file that is large enough is read itself; else a temporary file is written, and deleted whatever
happens. Direct reads go past the page cache where the file system has them; elsewhere the system is
asked to forget the pages of the temporary file before each pass. A virtual machine's host may still
keep what the disk was asked for, which nobody inside can see.
"""

from __future__ import annotations

import io
import mmap
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from penjing.figures import Figure
from penjing.machine import Tier
from penjing.units import KIB, MIB, show_bytes

RANDOM_BYTES = 128 * KIB
BLOCK_BYTES = 4 * MIB
FILE_BYTES = 256 * MIB
LEAST_BYTES = 16 * MIB
PASSES = 3
PASS_SECONDS = 1.0  # for each of three kinds of work
MOST_PLACES = 8192


def measure(path: Path) -> Tier:
    """The tier "disk" at `path`, a file or a folder that need not exist yet; takes a few seconds at most.

    Rates are for one reader, in 4 MiB blocks and in 128 KiB blocks; None, with the reason, where the disk
    is full, may not be written, or cannot be read past the page cache. Raises nothing for these.
    """
    place = existing(path)
    try:
        sequential, scattered = _own_file(place) or _temporary_file(place if place.is_dir() else place.parent)
    except OSError as error:
        sequential, scattered = _unknown(error.strerror or str(error))
    return Tier("disk", free_bytes(path), sequential, random_read_bytes_per_s=scattered, path=str(path))


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next((place for place in (path, *path.absolute().parents) if place.exists()), Path())


def free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write at `path`."""
    try:
        return shutil.disk_usage(existing(path)).free
    except OSError:
        return None


def device(path: Path) -> str:
    """A name for the device that holds `path`, the same from call to call: its number and its size."""
    try:
        place = existing(path)
        return f"{place.stat().st_dev}-{shutil.disk_usage(place).total}"
    except OSError:
        return ""


def _own_file(path: Path) -> tuple[Figure, Figure] | None:
    """Rates on the model's own file, or None if it is too small or has no direct reads."""
    if not path.is_file() or path.stat().st_size < FILE_BYTES // 4 or not os.access(path, os.R_OK):
        return None
    with path.open("rb", buffering=0) as file:
        return _rates(file, path.stat().st_size, True, "on the file itself") if _go_direct(file) else None


def _temporary_file(folder: Path) -> tuple[Figure, Figure]:
    free = free_bytes(folder) or 0
    size = min(FILE_BYTES, free // 4) // BLOCK_BYTES * BLOCK_BYTES
    if size < LEAST_BYTES:
        return _unknown(f"{show_bytes(free)} free, {show_bytes(4 * LEAST_BYTES)} are needed to measure")
    with tempfile.TemporaryFile(prefix=".penjing-", dir=folder, buffering=0) as file:
        direct = _go_direct(file)
        if not direct and not _forget(file, RANDOM_BYTES):
            return _unknown("this system cannot read past its page cache")
        return _rates(file, _fill(file, size), direct, "on a temporary file")


def _rates(file: io.FileIO, n_bytes: int, direct: bool, where: str) -> tuple[Figure, Figure]:
    """Sequential and random rate of a file that can be read directly, or of which pages can be dropped."""
    how = f"{'direct reads' if direct else 'dropped pages'} {where}"
    blocks = range(0, n_bytes - BLOCK_BYTES + 1, BLOCK_BYTES)
    began, passes = time.perf_counter(), list[float]()
    while len(passes) < PASSES and time.perf_counter() - began < PASS_SECONDS / 2:
        passes.append(_rate(file, blocks, BLOCK_BYTES, direct))
    places = range(0, n_bytes - RANDOM_BYTES + 1, RANDOM_BYTES)
    scattered = _rate(file, random.sample(places, min(len(places), MOST_PLACES)), RANDOM_BYTES, direct)
    return (
        Figure(statistics.median(passes), "measured", f"{how}, 4 MiB blocks, median of {len(passes)} passes"),
        Figure(scattered, "measured", f"{how}, 128 KiB at random places"),
    )


def _rate(file: io.FileIO, offsets: Sequence[int], block_bytes: int, direct: bool) -> float:
    """Bytes per second of reading blocks at `offsets`, for at most a second or so."""
    if not direct:
        _forget(file, block_bytes)
    buffer = memoryview(mmap.mmap(-1, block_bytes))  # direct reads want the alignment of a page
    began, read = time.perf_counter(), 0
    for offset in offsets:
        file.seek(offset)
        read += file.readinto(buffer) or 0
        if time.perf_counter() - began > PASS_SECONDS:
            break
    return read / (time.perf_counter() - began)


def _fill(file: io.FileIO, n_bytes: int) -> int:
    """Write random bytes for at most a second or so, down to the device; returns how many."""
    block = mmap.mmap(-1, BLOCK_BYTES)
    block.write(os.urandom(BLOCK_BYTES))  # a device that compresses gains nothing
    began, written = time.perf_counter(), 0
    while written < n_bytes and (time.perf_counter() - began < PASS_SECONDS or written < LEAST_BYTES):
        written += file.write(block) or 0
        os.fsync(file.fileno())
    return written


def _go_direct(file: io.FileIO) -> bool:
    """Let `file` be read and written past the page cache; False if its file system cannot."""
    try:
        import fcntl

        if sys.platform == "darwin":
            fcntl.fcntl(file.fileno(), fcntl.F_NOCACHE, 1)
        else:
            flags = fcntl.fcntl(file.fileno(), fcntl.F_GETFL)
            fcntl.fcntl(file.fileno(), fcntl.F_SETFL, flags | os.O_DIRECT)
    except (ImportError, AttributeError, OSError):
        return False
    return True


def _forget(file: io.FileIO, block_bytes: int) -> bool:
    """Drop the file's pages from the page cache; False if the system has no such call.

    Reads at random places also go without read-ahead, which would fetch more than was asked for.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    order = os.POSIX_FADV_RANDOM if block_bytes == RANDOM_BYTES else os.POSIX_FADV_SEQUENTIAL
    os.posix_fadvise(file.fileno(), 0, 0, order)
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _unknown(why: str) -> tuple[Figure, Figure]:
    return Figure(None, "measured", why), Figure(None, "measured", why)
