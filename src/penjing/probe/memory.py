"""How much memory there is, how much of it is free to use, and what a control group allows."""

from __future__ import annotations

import re
from pathlib import Path

from penjing.probe import cgroup, macos
from penjing.probe.text import ROOT, read

_LINE = re.compile(r"^(\w+):\s+([0-9]{1,18}) kB$", re.MULTILINE)


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name, from `/proc/meminfo` (which writes kB for 1024 bytes)."""
    return {name: 1024 * int(amount) for name, amount in _LINE.findall(text)}


def total_bytes(root: Path = ROOT) -> int | None:
    """Bytes of memory that the system manages."""
    total = parse_meminfo(read(root / "proc/meminfo")).get("MemTotal")
    return total if total is not None else macos.number(macos.sysctl(), "hw.memsize")


def limit_bytes(root: Path = ROOT) -> int | None:
    """Bytes that the tightest control group allows this process and its neighbours in that group."""
    return min((group.limit_bytes for group in cgroup.memory_groups(root)), default=None)


def available_bytes(root: Path = ROOT) -> int | None:
    """Bytes that can be used without swapping or being killed: free or reclaimable, within every limit.

    A group leaves `limit - (usage - file pages)`: the kernel drops file pages before it kills.
    Never more than the system's own `MemAvailable`.
    """
    room = [max(0, group.limit_bytes - (group.held_bytes or 0)) for group in cgroup.memory_groups(root)]
    system = parse_meminfo(read(root / "proc/meminfo")).get("MemAvailable")
    if system is None:
        system = macos.parse_available(macos.vm_stat())
    return min(room if system is None else [*room, system], default=None)
