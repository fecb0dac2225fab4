"""Limits of control groups, on captured trees: `pytest tests/test_probe_cgroup.py`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.probe import cgroup, cpu, memory
from penjing.units import GIB, MIB
from probe_trees import captured, tree

UNLIMITED_V1 = "9223372036854771712\n"


def v1_group(folder, limit, usage=0, inactive_file=0, active_file=0, hierarchical=UNLIMITED_V1):
    stat = f"cache 1\ninactive_file 0\nactive_file 0\nhierarchical_memory_limit {hierarchical.strip()}\n"
    stat += f"total_inactive_file {inactive_file}\ntotal_active_file {active_file}\n"
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": f"{usage}\n",
        f"{folder}/memory.stat": stat,
    }


def v2_group(folder, limit, usage=0, inactive_file=0, active_file=0):
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": f"{usage}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {inactive_file}\nactive_file {active_file}\n",
    }


def machine(mountinfo, membership):
    return {
        "proc/meminfo": captured("meminfo.txt"),
        "proc/self/mountinfo": captured(mountinfo),
        "proc/self/cgroup": membership,
    }


def test_no_group_no_limit(tmp_path):
    """Without control groups nothing limits, and the system's own figure is what is available."""
    root = tree(tmp_path, {"proc/meminfo": captured("meminfo.txt")})

    assert memory.limit_bytes(root) is None
    assert cgroup.cpu_quota(root) is None
    assert memory.available_bytes(root) == 23418672 * 1024
    assert memory.total_bytes(root) == 24684092 * 1024


def test_v1_huge_value_is_no_limit(tmp_path):
    """Version 1 writes a huge number where nothing limits."""
    files = machine("mountinfo_v1.txt", "4:memory:/\n1:cpu,cpuacct:/\n")
    root = tree(tmp_path, files | v1_group("sys/fs/cgroup/memory", UNLIMITED_V1))

    assert memory.limit_bytes(root) is None


def test_v1_takes_the_smallest_on_the_way_up(tmp_path):
    """A limit of a parent group binds its children, whichever is smaller counts."""
    files = machine("mountinfo_v1.txt", "4:memory:/outer/inner\n1:cpu,cpuacct:/\n")
    files |= v1_group("sys/fs/cgroup/memory", UNLIMITED_V1)
    files |= v1_group("sys/fs/cgroup/memory/outer", f"{2 * GIB}\n", usage=GIB, active_file=GIB // 4)
    files |= v1_group("sys/fs/cgroup/memory/outer/inner", f"{3 * GIB}\n", usage=GIB // 2)
    root = tree(tmp_path, files)

    assert memory.limit_bytes(root) == 2 * GIB
    assert memory.available_bytes(root) == 2 * GIB - (GIB - GIB // 4)


def test_v1_limit_of_an_ancestor_out_of_sight(tmp_path):
    """The kernel tells the tightest limit of ancestors that a container's mount does not show."""
    files = machine("mountinfo_v1_container.txt", "4:memory:/docker/4f1c0a\n")
    files |= v1_group("sys/fs/cgroup/memory", UNLIMITED_V1, hierarchical=str(GIB))

    assert memory.limit_bytes(tree(tmp_path, files)) == GIB


@pytest.mark.parametrize("path", ["/docker/4f1c0a", "/", "/../other", "/docker/4f1c0abc"])
def test_v1_container_path_of_the_host(tmp_path, path):
    """In a container the group's files stand at the mount, whatever path the host has for it."""
    files = machine("mountinfo_v1_container.txt", f"4:memory:{path}\n3:cpu,cpuacct:{path}\n")
    files |= v1_group("sys/fs/cgroup/memory", f"{600 * MIB}\n", usage=100 * MIB, inactive_file=40 * MIB)
    files |= {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    root = tree(tmp_path, files)

    assert memory.limit_bytes(root) == 600 * MIB
    assert memory.available_bytes(root) == 540 * MIB
    assert cgroup.cpu_quota(root) == 1.5


def test_container_groups_below_its_own(tmp_path):
    """A group made inside a container is found below the mount."""
    files = machine("mountinfo_v1_container.txt", "4:memory:/docker/4f1c0a/job\n")
    files |= v1_group("sys/fs/cgroup/memory", f"{GIB}\n") | v1_group(
        "sys/fs/cgroup/memory/job", f"{GIB // 2}\n"
    )

    assert memory.limit_bytes(tree(tmp_path, files)) == GIB // 2


def test_v2_nested(tmp_path):
    """Version 2: `max` is no limit; memory and processor limits are inherited from every parent."""
    top, leaf = "sys/fs/cgroup/user.slice", "sys/fs/cgroup/user.slice/job.scope"
    files = machine("mountinfo_v2.txt", "0::/user.slice/job.scope\n")
    files |= v2_group(top, f"{4 * GIB}\n", usage=3 * GIB, inactive_file=GIB, active_file=GIB // 2)
    files |= v2_group(leaf, "max\n") | {
        f"{leaf}/cpu.max": "max 100000\n",
        f"{top}/cpu.max": "250000 100000\n",
    }
    root = tree(tmp_path, files)

    assert memory.limit_bytes(root) == 4 * GIB
    assert memory.available_bytes(root) == 4 * GIB - (3 * GIB - GIB - GIB // 2)
    assert cgroup.cpu_quota(root) == 2.5


def test_hybrid_reads_memory_from_v1(tmp_path):
    """With both versions mounted, version 2 without a memory controller says nothing."""
    files = machine("mountinfo_hybrid.txt", "4:memory:/job\n0::/\n")
    files |= v1_group("sys/fs/cgroup/memory/job", f"{GIB}\n") | {"sys/fs/cgroup/unified/cgroup.procs": "1\n"}

    assert memory.limit_bytes(tree(tmp_path, files)) == GIB


def test_usage_over_the_limit_leaves_nothing(tmp_path):
    """A group that holds more than its limit leaves 0 bytes, never fewer."""
    files = machine("mountinfo_v2.txt", "0::/job\n") | v2_group("sys/fs/cgroup/job", "1000\n", usage=5000)

    assert memory.available_bytes(tree(tmp_path, files)) == 0


def test_usage_unknown(tmp_path):
    """Where a group does not tell its usage, its limit still bounds what is available."""
    files = machine("mountinfo_v2.txt", "0::/job\n") | {"sys/fs/cgroup/job/memory.max": f"{GIB}\n"}

    assert memory.available_bytes(tree(tmp_path, files)) == GIB


@settings(deadline=None)
@given(*[st.integers(0, 2**45)] * 4)
def test_available_is_within_limit_and_system(tmp_path_factory, limit, usage, inactive, active):
    """Whatever a group reports, 0 ≤ available ≤ limit, and never above the system's own figure."""
    files = machine("mountinfo_v2.txt", "0::/job\n")
    files |= v2_group("sys/fs/cgroup/job", f"{limit}\n", usage, inactive, active)
    root = tree(tmp_path_factory.mktemp("root"), files)

    available = memory.available_bytes(root)

    assert available is not None
    assert 0 <= available <= min(memory.limit_bytes(root), 23418672 * 1024)


def test_quota_below_affinity(tmp_path):
    """Usable cores are the tightest of affinity and quota, a fraction if the quota is one."""
    files = machine("mountinfo_v2.txt", "0::/job\n") | {"sys/fs/cgroup/job/cpu.max": "50000 100000\n"}

    assert cpu.usable_cores(tree(tmp_path, files)) == 0.5


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", None),
        ("-1 100000", None),
        ("200000 100000", 2.0),
        ("", None),
        ("5", None),
        ("1 0", None),
    ],
)
def test_quota_texts(text, cores):
    """A quota is quota over period; `max` and -1 are none, and so is what cannot be read."""
    assert cgroup.parse_quota(text) == cores


def test_escaped_mount_point():
    """Blanks in a mount point, written as \\040, are read as blanks."""
    (mount,) = cgroup.parse_mounts("35 24 0:30 / /sys/my\\040groups rw - cgroup2 cgroup2 rw\n")

    assert str(mount.point) == "/sys/my groups"


@settings(deadline=None)
@given(st.text())
def test_readers_survive_any_text(text):
    """No text makes a reader raise."""
    cgroup.parse_mounts(text)
    cgroup.parse_membership(text)
    cgroup.parse_quota(text)
    cgroup.parse_stat(text)
    memory.parse_meminfo(text)
