"""Timed reads of caches and memory: `pytest tests/test_probe_bandwidth.py`."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.machine import Cache
from penjing.probe import bandwidth
from penjing.probe.bandwidth import Level, Sample
from penjing.units import GIB, KIB, MIB

L1, L2, L3 = Cache(1, "data", 32 * KIB, 8), Cache(2, "unified", MIB, 8), Cache(3, "unified", 32 * MIB, 1)
CODE = Cache(1, "instruction", 64 * KIB, 8)


@given(st.integers(1, 1024), st.integers(1, 1024))
def test_thread_counts(usable, physical):
    """From one thread to all usable ones, rising, at most six counts, the physical cores among them."""
    counts = bandwidth.thread_counts(usable, physical)

    assert counts[0] == 1
    assert counts[-1] == usable
    assert list(counts) == sorted(set(counts))
    assert len(counts) <= 6
    assert min(usable, physical) in counts


@pytest.mark.parametrize(
    ("usable", "physical", "counts"),
    [(1, 1, (1,)), (2, 2, (1, 2)), (6, 6, (1, 2, 4, 6)), (96, 48, (1, 2, 8, 32, 48, 96))],
)
def test_thread_count_examples(usable, physical, counts):
    """Small machines are measured at every power of two, large ones at some of them."""
    assert bandwidth.thread_counts(usable, physical) == counts


def test_levels():
    """Each thread reads half of its share of a cache; DRAM takes 256 MiB and at least four last levels."""
    found = bandwidth.levels([CODE, L1, L2, L3], (1, 4), 64 * GIB, 128 * GIB)

    assert [level.name for level in found] == ["L1", "L2", "L3", "DRAM"]
    assert found[0].bytes_per_thread == {1: 16 * KIB, 4: 16 * KIB}
    assert found[2].bytes_per_thread == {1: 16 * MIB, 4: 4 * MIB}
    assert found[3].bytes_per_thread == {1: 256 * MIB, 4: 64 * MIB}
    assert [level.capacity_bytes for level in found] == [256 * KIB, 8 * MIB, 32 * MIB, 128 * GIB]


def test_share_no_larger_than_the_level_below():
    """Sixteen threads have 2 MiB of this L3 each, beside 1 MiB of L2: that would measure the L2."""
    wide = [Cache(2, "unified", MIB, 16), Cache(3, "unified", 32 * MIB, 1)]

    assert list(bandwidth.levels(wide, (1, 8, 16), None, None)[1].bytes_per_thread) == [1, 8]


@given(
    counts=st.sets(st.integers(1, 256), min_size=1),
    sizes=st.tuples(st.integers(4 * KIB, MIB), st.integers(64 * KIB, 64 * MIB), st.integers(MIB, 512 * MIB)),
    instances=st.integers(1, 128),
    available=st.none() | st.integers(0, 2**42),
)
def test_measuring_is_modest(counts, sizes, instances, available):
    """Measuring never takes over a quarter of the free memory, and DRAM always exceeds the caches."""
    caches = [Cache(n + 1, "unified", size, instances) for n, size in enumerate(sizes)]

    for level in bandwidth.levels(caches, sorted(counts), available, None):
        for threads, n_bytes in level.bytes_per_thread.items():
            room = 256 * MIB if available is None else available / 4
            assert threads * n_bytes <= max(room, threads * 64 * KIB)
            if level.name == "DRAM":
                assert threads * (n_bytes + 64 * KIB) >= 4 * sizes[-1] * instances


def test_too_little_memory_is_unknown():
    """Without room to read past the caches the rate of DRAM is None, with the reason."""
    *_, dram = bandwidth.levels([L3], (1, 2), 400 * MIB, GIB)

    tier = bandwidth.measure(dram, (), seconds=1)

    assert tier.read_bytes_per_s.value is None
    assert "too little memory" in tier.read_bytes_per_s.note
    assert tier.capacity_bytes == GIB


def test_disturbed_samples_are_left_out():
    """The median is of the calm samples."""
    runs = [Sample(10.0, 1.0), Sample(2.0, 0.4), Sample(11.0, 0.99), Sample(3.0, 0.5), Sample(12.0, 0.95)]

    settled = bandwidth.settle(runs)

    assert (settled.value, settled.count) == (11.0, 3)


def test_without_calm_the_best_counts_for_one():
    """Where hardly any sample was calm, the best is taken, and has no spread."""
    settled = bandwidth.settle([Sample(10.0, 0.5), Sample(9.0, 1.0), Sample(3.0, 0.2)])

    assert (settled.value, settled.count, settled.spread) == (10.0, 1, None)


@settings(deadline=None)
@given(st.integers(0, 4095))
def test_maximum_reads_every_word(place):
    """Whatever word is the largest, every pass of the reader finds it."""
    part = np.ones(4096 * 4, np.uint8)
    part.view(np.uint32)[place] = 2**31

    assert bandwidth._maximum(part, 3)().tolist() == [2**31] * 3


@settings(deadline=None)
@given(st.integers(0, 2**16 - 1))
def test_memcmp_reads_every_byte(place):
    """Wherever the halves differ, the C library's comparison finds it."""
    part = np.ones(2**17, np.uint8)
    part[place] = 2

    assert bandwidth._libc_memcmp()(part.ctypes.data, part.ctypes.data + 2**16, 2**16) > 0


def test_small_buffer_really_measured():
    """A small buffer is read at a rate between that of a slow disk and of no computer yet, in little time."""
    level = Level("L1", 64 * KIB, {1: 16 * KIB})
    began = time.monotonic()

    tier = bandwidth.measure(level, (), seconds=1)

    assert time.monotonic() - began < 3
    assert 1e8 < tier.read_bytes_per_s.value < 1e14
    assert [point.threads for point in tier.by_threads] == [1]
    assert tier.read_bytes_per_s.value == tier.by_threads[0].read_bytes_per_s


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_on_one_processor_are_noticed():
    """Threads that share a processor are off it most of the time: no sample is calm.

    Four of them: of two, some samples of 5 ms run one after the other, enough for a rate in 6 of 100 runs.
    """
    level = Level("L2", MIB, {4: 256 * KIB})

    tier = bandwidth.measure(level, (min(os.sched_getaffinity(0)),), seconds=0.2)

    assert bandwidth.disturbed(tier)
    assert tier.read_bytes_per_s.value > 0


def test_time_limit_holds():
    """With no time left, one sample is taken and the rest left out."""
    level = Level("L2", MIB, dict.fromkeys(range(1, 9), 64 * KIB))
    began = time.monotonic()

    tier = bandwidth.measure(level, (), seconds=0)

    assert time.monotonic() - began < 3
    assert [point.threads for point in tier.by_threads] == [1]


def test_memory_that_cannot_be_had():
    """If the system refuses the memory the rate is None, with the system's words."""
    tier = bandwidth.measure(Level("DRAM", None, {1: 2**60}), (), seconds=1)

    assert tier.read_bytes_per_s.value is None
    assert "no memory to measure it" in tier.read_bytes_per_s.note
    assert tier.by_threads == ()
