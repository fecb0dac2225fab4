"""Processor, topology and macOS readers: `pytest tests/test_probe_cpu.py`."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.machine import Cache
from penjing.probe import cpu, macos, memory, topology
from penjing.units import KIB, MIB
from probe_trees import captured, cpu_files, tree

# Two cores of two threads (0 and 2, 1 and 3), an L2 for each core, one L3.
SMALL = cpu_files(
    {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"},
    {
        n: [
            (1, "Data", "32K", shared),
            (1, "Instruction", "32K", shared),
            (2, "Unified", "1024K", shared),
            (3, "Unified", "16384K", "0-3"),
        ]
        for n, shared in enumerate(["0,2", "1,3", "0,2", "1,3"])
    },
)


def test_x86_names():
    """Flags of x86 become the names llama.cpp's kernels go by; the first processor speaks for all."""
    fields = cpu.parse_cpuinfo(captured("cpuinfo_zen5.txt"))

    assert cpu.parse_name(fields) == "AMD EPYC 9575F 64-Core Processor"
    expected = ("sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni")
    expected += ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")
    expected += ("avx512_vbmi", "avx512_vnni", "avx512_bf16")
    assert cpu.parse_isa(fields) == expected


def test_amx():
    """The matrix units of newer Xeons are found."""
    fields = cpu.parse_cpuinfo(captured("cpuinfo_sapphire_rapids.txt"))

    assert {"amx_tile", "amx_int8", "amx_bf16"} <= set(cpu.parse_isa(fields))


def test_arm_server():
    """A server ARM has no model name: maker and part stand for it; its vector extensions are found."""
    fields = cpu.parse_cpuinfo(captured("cpuinfo_graviton3.txt"))

    assert cpu.parse_name(fields) == "ARM implementer 0x41 part 0xd40"
    assert cpu.parse_isa(fields) == ("neon", "dotprod", "fp16", "i8mm", "bf16", "sve")


def test_raspberry_pi():
    """A Raspberry Pi goes by its board; dotprod is there, i8mm is not."""
    fields = cpu.parse_cpuinfo(captured("cpuinfo_raspberry_pi5.txt"))

    assert cpu.parse_name(fields) == "Raspberry Pi 5 Model B Rev 1.0"
    assert cpu.parse_isa(fields) == ("neon", "dotprod", "fp16")


def test_unknown_processor():
    """Where nothing tells, the name is None and there are no instruction sets."""
    assert cpu.parse_name({}) is None
    assert cpu.parse_isa({}) == ()


def test_cores_and_caches(tmp_path):
    """Threads of a core count once, and so does a cache that several processors share."""
    root = tree(tmp_path, SMALL)

    assert (cpu.physical_cores(root), cpu.logical_cores(root)) == (2, 4)
    expected = (
        Cache(1, "data", 32 * KIB, 2),
        Cache(1, "instruction", 32 * KIB, 2),
        Cache(2, "unified", MIB, 2),
        Cache(3, "unified", 16 * MIB, 1),
    )
    assert topology.caches(root) == expected


def test_caches_within_reach(tmp_path):
    """A process held to one core reaches only that core's caches."""
    reached = topology.caches(tree(tmp_path, SMALL), allowed=frozenset({1, 3}))

    assert [(c.level, c.instances) for c in reached] == [(1, 1), (1, 1), (2, 1), (3, 1)]


def test_threads_are_spread(tmp_path):
    """Cores are filled before second threads."""
    assert topology.placement(frozenset({0, 1, 2, 3}), tree(tmp_path, SMALL)) == (0, 1, 2, 3)
    assert topology.placement(frozenset({0, 2, 3}), tree(tmp_path, SMALL)) == (0, 3, 2)


def test_spread_over_caches():
    """Among cores, last-level caches take turns: eight processors, four cores, two caches."""
    cores = [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
    last_level = [{0, 1, 4, 5}, {2, 3, 6, 7}]

    assert topology.spread(range(8), [cores, last_level]) == (0, 2, 1, 3, 4, 6, 5, 7)


@settings(deadline=None)
@given(st.sets(st.integers(0, 40), min_size=1), st.integers(1, 9), st.integers(1, 20))
def test_spread_keeps_every_processor(cpus, core_size, cache_size):
    """Spreading only reorders, and starts with as many different cores as there are."""
    cores = [set(range(n, n + core_size)) for n in range(0, 41, core_size)]
    caches = [set(range(n, n + cache_size)) for n in range(0, 41, cache_size)]

    order = topology.spread(cpus, [cores, caches])

    assert sorted(order) == sorted(cpus)
    used = {cpu // core_size for cpu in cpus}
    assert {cpu // core_size for cpu in order[: len(used)]} == used


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("", set()), ("x", set()), ("3-", set())]
)
def test_cpu_lists(text, cpus):
    """Lists of processors are ranges and numbers; what cannot be read is left out."""
    assert topology.parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("48K\n", 48 * KIB), ("32M", 32 * MIB), ("512", 512), ("", None), ("K", None), ("0K", None)],
)
def test_cache_sizes(text, n_bytes):
    """Cache sizes are in K or M of 1024; none is None, not 0."""
    assert topology.parse_cache_size(text) == n_bytes


def test_missing_topology(tmp_path):
    """A processor whose siblings nobody tells is a core by itself; no caches are made up."""
    root = tree(tmp_path, {"sys/devices/system/cpu/online": "0-3\n"})

    assert cpu.physical_cores(root) == 4
    assert topology.domains(root) == ()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_counts():
    """A process held to one processor may keep one core busy."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        usable = cpu.usable_cores()
    finally:
        os.sched_setaffinity(0, allowed)

    assert usable is not None
    assert usable <= 1


def test_mac_of_apple_silicon():
    """Caches are those of the fast cores, not the slow ones' that the older names describe."""
    facts = macos.parse_sysctl(captured("sysctl_m1_pro.txt"))

    assert macos.parse_isa(facts) == ("neon", "dotprod", "fp16")
    assert facts["machdep.cpu.brand_string"] == "Apple M1 Pro"
    assert macos.number(facts, "hw.memsize") == 16 * 2**30
    expected = (
        Cache(1, "data", 128 * KIB, 8),
        Cache(1, "instruction", 192 * KIB, 8),
        Cache(2, "unified", 12 * MIB, 2),
    )
    assert macos.parse_caches(facts) == expected


def test_mac_of_intel():
    """An Intel Mac has an L3 for all cores, and AVX2."""
    facts = macos.parse_sysctl(captured("sysctl_intel.txt"))

    assert macos.parse_isa(facts) == ("avx", "avx2", "fma", "f16c", "bmi2")
    assert macos.parse_caches(facts)[-1] == Cache(3, "unified", 16 * MIB, 1)


def test_mac_memory():
    """Free, speculative and inactive pages can be had without swapping."""
    assert macos.parse_available(captured("vm_stat_m1.txt")) == (13561 + 5963 + 276418) * 16384
    assert macos.parse_available("") is None


@settings(deadline=None)
@given(st.text())
def test_readers_survive_any_text(text):
    """No text makes a reader raise."""
    fields = cpu.parse_cpuinfo(text)
    cpu.parse_isa(fields)
    cpu.parse_name(fields)
    topology.parse_cache_size(text)
    facts = macos.parse_sysctl(text)
    macos.parse_isa(facts)
    macos.parse_caches(facts)
    macos.parse_available(text)


def test_here():
    """On this computer the parts agree: usable ≤ logical, physical ≤ logical, available ≤ total."""
    cores = cpu.cores()

    assert 1 <= cores.physical <= cores.logical
    assert 0 < cores.usable <= cores.logical
    assert 0 < memory.available_bytes() <= memory.total_bytes()
