"""How fast each cache level and DRAM can be read, by reading them.

Nothing is compiled: two readers that are there already touch every byte at full vector speed, outside
the interpreter's lock, and the faster one is nearer to what the hardware gives:

    memcmp    of the C library compares the two equal halves of a large buffer, in one call a pass
    maximum   of numpy runs over the same buffer again and again within one call, so that even a buffer
              that is read in less than a microsecond leaves Python's own time out

In each sample every thread holds a processor of its own, reads once to warm up, waits for the others,
and reads for some milliseconds. A sample in which a thread was off its processor says more about the
neighbours than about the memory: such samples are left out as long as there are calm ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct

from penjing.figures import Figure, Measurement
from penjing.machine import Cache, ThreadRate, Tier
from penjing.units import MIB

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

RUNS = 5
SAMPLE_SECONDS = 0.005
MOST_POINTS = 6
CALM_SHARE = 0.9  # of the wall time: every thread must have had its processor for so long
LEAST_CALM = 3

DISTURBED = "disturbed by other work"

_FILL = 0.5  # of a cache: room for the stack, the kernel and an uneven spread over its sets
_DRAM_BYTES, _LEAST_DRAM_BYTES = 256 * MIB, 64 * MIB
_TRIAL_BYTES = 16 * MIB
_LINE_BYTES = 64
_LEAST_MEMCMP_BYTES = MIB  # below, the call from Python costs as much as the reading
_ANY_BYTE = 1

Read = Callable[[], object]
T = TypeVar("T")


class Level(Struct, frozen=True):
    """What is to be measured: a tier, and the bytes that each of k threads reads again and again."""

    name: str
    capacity_bytes: int | None
    bytes_per_thread: dict[int, int]
    too_small: str = ""


class Work(Struct, frozen=True):
    """What the threads of one sample do: a read each, together of `n_bytes`.

    `call_seconds` of each read are no reading: what as many passes over next to nothing take.
    """

    reads: list[Read]
    n_bytes: int
    call_seconds: float


class Sample(Struct, frozen=True):
    """Bytes per second of all threads together, and the smallest share of processor time among them."""

    read_bytes_per_s: float
    busy_share: float


def thread_counts(usable: int, physical: int) -> tuple[int, ...]:
    """At most six counts from 1 to `usable`: powers of two, the physical cores, and all."""
    wanted = {1, min(usable, physical), usable}
    powers = [2**n for n in range(1, usable.bit_length()) if 2**n < usable]
    step = max(1, math.ceil(len(powers) / (MOST_POINTS - len(wanted))))
    return tuple(sorted(wanted.union(powers[::step])))


def dram_bytes(caches: Sequence[Cache], available_bytes: int | None) -> int | None:
    """Bytes to read so that the caches hold little of them; None if there is no room for so many."""
    last = max((c.level for c in caches), default=0)
    cached = sum(c.n_bytes * c.instances for c in caches if c.level == last)
    least, room = max(4 * cached, _LEAST_DRAM_BYTES), _room_bytes(available_bytes)
    return max(least, min(_DRAM_BYTES, room)) if least <= room else None


def levels(
    caches: Sequence[Cache], counts: Sequence[int], available_bytes: int | None, total_bytes: int | None
) -> list[Level]:
    """The tiers to measure, the inner first.

    Half of a thread's share of a cache must be 1.5 times what the level below holds for it, or reads
    would be answered from there; counts of threads for which it is less are left out, and so are those
    that would take more than a quarter of the free memory.
    """
    found = []
    below: dict[int, int] = {}
    for c in sorted((c for c in caches if c.kind != "instruction"), key=lambda c: c.level):
        share = {k: c.n_bytes // math.ceil(k / c.instances) for k in counts}
        sizes = {
            k: n_bytes
            for k in counts
            if share[k] >= 3 * below.get(k, 0)
            and k * (n_bytes := _whole_pages(_FILL * share[k])) <= _room_bytes(available_bytes)
        }
        why = "too small beside the level below, or beside the free memory"
        found.append(Level(f"L{c.level}", c.n_bytes * c.instances, sizes, why))
        below = share
    dram = dram_bytes(caches, available_bytes)
    shares = {k: _whole_pages(dram / k) for k in counts} if dram else {}
    return [*found, Level("DRAM", total_bytes, shares, "too little memory is free to read past the caches")]


def measure(level: Level, placement: Sequence[int], seconds: float) -> Tier:
    """Read one tier with each number of threads, for at most about `seconds`.

    `placement` lists the processors in the order in which threads take them; empty leaves it to the system.
    """
    if not level.bytes_per_thread:
        return _unknown(level, level.too_small)
    try:
        samples = _sample_all(level, placement, time.monotonic() + seconds)
    except (OSError, MemoryError) as error:
        return _unknown(level, f"no memory to measure it: {error}")
    curve = {
        k: max((settle(runs) for runs in readers), key=lambda rate: rate.value)
        for k, readers in samples.items()
    }
    points = tuple(ThreadRate(k, curve[k].value) for k in sorted(curve))
    figure = Figure(max(point.read_bytes_per_s for point in points), "measured", _note(curve))
    return Tier(level.name, level.capacity_bytes, figure, points)


def measure_apart(level: Level, placement: Sequence[int], seconds: float) -> Tier:
    """`measure` in a process of its own, whose large buffers then never count as ours."""
    question = msgspec.json.encode((level, tuple(placement), seconds))
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=question,
            capture_output=True,
            timeout=seconds + 20,
            check=True,
        )
        return msgspec.json.decode(done.stdout, type=Tier)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        return _unknown(level, f"measuring failed: {error}")


def disturbed(tier: Tier) -> bool:
    """Other work was running all the time: some rate is only the best that was seen."""
    return tier.read_bytes_per_s.note.startswith(DISTURBED)


def settle(runs: Sequence[Sample]) -> Measurement:
    """The median of the calm samples; if there are too few, the best of all, which counts for one."""
    calm = [run.read_bytes_per_s for run in runs if run.busy_share >= CALM_SHARE]
    if len(calm) >= LEAST_CALM:
        return Measurement.of(calm)
    return Measurement.of([max(run.read_bytes_per_s for run in runs)])


def _note(curve: dict[int, Measurement]) -> str:
    unsettled = [k for k, rate in curve.items() if rate.spread is None]
    if unsettled:
        return f"{DISTURBED} at {', '.join(map(str, unsettled))} threads: the best seen there"
    threads, best = max(curve.items(), key=lambda point: point[1].value)
    spread = (best.spread or 0) / best.value
    return f"{threads} thread{'s' * (threads > 1)}, median of {best.count} runs, spread {spread:.0%}"


def _unknown(level: Level, why: str) -> Tier:
    return Tier(level.name, level.capacity_bytes, Figure(None, "measured", why))


def _sample_all(level: Level, placement: Sequence[int], deadline: float) -> dict[int, list[list[Sample]]]:
    """Samples by number of threads, a list for each reader.

    They are taken in turns, so that a passing disturbance hits all alike.
    """
    sizes = level.bytes_per_thread
    arena = _arena(max(k * n_bytes for k, n_bytes in sizes.items()), max(sizes), placement)
    tasks: list[tuple[int, Work, list[Sample]]] = [
        (k, work, [])
        for k, n_bytes in sizes.items()
        for work in _works([arena[i * n_bytes : (i + 1) * n_bytes] for i in range(k)])
    ]
    for attempt, (_, work, runs) in itertools.product(range(3 * RUNS), tasks):
        if attempt < RUNS or settle(runs).spread is None:
            runs.append(_sample(work, placement))
        if time.monotonic() > deadline:
            break
    samples = {k: [runs for threads, _, runs in tasks if threads == k and runs] for k in sizes}
    return {k: readers for k, readers in samples.items() if readers}


def _sample(work: Work, placement: Sequence[int]) -> Sample:
    """Run all reads at once, each on a thread of its own."""
    start = threading.Barrier(len(work.reads), timeout=60)

    def timed(read: Read) -> tuple[float, float, float]:
        read()
        start.wait()
        began, cpu_began = time.perf_counter(), time.thread_time()
        read()
        cpu_seconds, ended = time.thread_time() - cpu_began, time.perf_counter()
        return began, ended, cpu_seconds / (ended - began)

    times = _on_threads([partial(timed, read) for read in work.reads], placement)
    wall_seconds = max(ended for _, ended, _ in times) - min(began for began, _, _ in times)
    reading_seconds = max(wall_seconds - work.call_seconds, wall_seconds / 2)
    return Sample(work.n_bytes / reading_seconds, min(share for _, _, share in times))


def _on_threads(jobs: Sequence[Callable[[], T]], placement: Sequence[int]) -> list[T]:
    """Run every job at the same time, each on a new thread, which is held to its place."""

    def held(index: int) -> T:
        if placement and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # taken from us since: the sample will show it
                os.sched_setaffinity(0, {placement[index % len(placement)]})
        return jobs[index]()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(held, range(len(jobs))))


def _arena(n_bytes: int, threads: int, placement: Sequence[int]) -> Bytes:
    """Fresh memory, written by the threads that will read it, so that each has its part nearby.

    Straight from the system, not from numpy, which would ask for huge pages: mapped weights have none.
    """
    import numpy as np

    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    arena = np.frombuffer(mmap.mmap(-1, n_bytes, **private), np.uint8)
    parts = np.array_split(arena, threads)
    _on_threads([partial(part.fill, _ANY_BYTE) for part in parts], placement)
    return arena


def _works(parts: Sequence[Bytes]) -> Iterator[Work]:
    """The work of each reader on `parts`, a part for each thread, of some milliseconds a sample."""
    part = parts[0]
    readers = [_maximum]
    if _libc_memcmp() is not None and part.nbytes >= _LEAST_MEMCMP_BYTES:
        readers.append(_memcmp)
    for reader in readers:
        call_seconds = _pass_seconds(reader, part[:_LINE_BYTES])
        repeats = max(1, round(SAMPLE_SECONDS / _pass_seconds(reader, part)))
        reads = [reader(part, repeats) for part in parts]
        yield Work(reads, repeats * part.nbytes * len(parts), repeats * call_seconds)


def _pass_seconds(reader: Callable[[Bytes, int], Read], part: Bytes) -> float:
    """Seconds of one pass over `part` when it is read again and again."""
    passes = min(1000, max(1, _TRIAL_BYTES // part.nbytes))
    read = reader(part, passes)
    read()
    began = time.perf_counter()
    read()
    return max(time.perf_counter() - began, 1e-9) / passes


def _maximum(part: Bytes, repeats: int) -> Read:
    import numpy as np

    words = part.view(np.uint32)
    rows, out = np.broadcast_to(words, (repeats, words.size)), np.empty(repeats, np.uint32)
    return lambda: np.maximum.reduce(rows, axis=1, out=out)


def _memcmp(part: Bytes, repeats: int) -> Read:
    memcmp, first = _libc_memcmp(), part.ctypes.data

    def read() -> None:
        half = part.nbytes // 2  # asking the part also holds on to the memory behind the address
        for _ in range(repeats):
            memcmp(first, first + half, half)

    return read


@cache
def _libc_memcmp() -> Any:
    """`memcmp` of the C library, or None where Python cannot reach it."""
    try:
        memcmp = ctypes.CDLL(None if os.name == "posix" else "msvcrt").memcmp
    except (OSError, AttributeError):
        return None
    memcmp.argtypes, memcmp.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int
    return memcmp


def _room_bytes(available_bytes: int | None) -> int:
    """Memory that measuring may take: a quarter of what is free, so that nothing else is pushed out."""
    return _DRAM_BYTES if available_bytes is None else available_bytes // 4


def _whole_pages(n_bytes: float) -> int:
    return max(1, int(n_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[Level, tuple[int, ...], float])
    sys.stdout.buffer.write(msgspec.json.encode(measure(*asked)))
