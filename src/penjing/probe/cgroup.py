"""What control groups of Linux allow this process: memory and processor time, versions 1 and 2.

A limit counts wherever it stands on the way from the process's own group up to the top of the mount.
Inside a container the path in `/proc/self/cgroup` is often the host's, while the mount shows only the
container's part of the tree; `/proc/self/mountinfo` tells which part that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from msgspec import Struct

from penjing.probe.text import integer, read

# Version 1 says "no limit" with the largest multiple of a page below 2^63.
_NO_LIMIT_BYTES = 2**60


class Mount(Struct, frozen=True):
    """A mounted hierarchy: `root` is the group that appears at `point`. Version 2 lists no controllers."""

    version: int
    controllers: frozenset[str]
    root: PurePosixPath
    point: PurePosixPath


class MemoryGroup(Struct, frozen=True):
    """A group with a memory limit, and what it holds that the kernel cannot take back; None if unknown."""

    limit_bytes: int
    held_bytes: int | None


def parse_mounts(mountinfo: str) -> tuple[Mount, ...]:
    """The control group hierarchies among the mounts of `/proc/self/mountinfo`."""
    found = []
    for line in mountinfo.splitlines():
        place, _, kind = line.partition(" - ")
        places, kinds = place.split(" "), kind.split(" ")
        if len(places) < 6 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kinds[0] == "cgroup2" else 1
        controllers = frozenset(kinds[2].split(",")) if version == 1 else frozenset[str]()
        found.append(Mount(version, controllers, _unescape(places[3]), _unescape(places[4])))
    return tuple(found)


def parse_membership(text: str) -> dict[str, str]:
    """Path of the process's group by controller, from `/proc/self/cgroup`; version 2 stands under `""`."""
    paths = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and number.isdecimal():
            paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def parse_quota(text: str) -> float | None:
    """Cores that `quota period` of `cpu.max` allows; None for `max`, or for -1 as version 1 says it."""
    words = text.split()
    quota, period = (integer(word) for word in words) if len(words) == 2 else (None, None)
    return quota / period if quota and period else None


def parse_stat(text: str) -> dict[str, int]:
    """`name value` lines of `memory.stat` as a dictionary."""
    words = (line.split() for line in text.splitlines())
    return {pair[0]: value for pair in words if len(pair) == 2 and (value := integer(pair[1])) is not None}


def cpu_quota(root: Path) -> float | None:
    """Cores that the tightest quota on the way up allows, a fraction perhaps; None without one."""
    quotas = []
    for version, folder in _folders("cpu", root):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quotas.append(parse_quota(" ".join(read(folder / name) for name in names)))
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_groups(root: Path) -> tuple[MemoryGroup, ...]:
    """Every group on the way up that has a memory limit."""
    groups = (_memory_group(version, folder) for version, folder in _folders("memory", root))
    return tuple(group for group in groups if group is not None)


def _memory_group(version: int, folder: Path) -> MemoryGroup | None:
    if version == 2:
        limit, usage, prefix = "memory.max", "memory.current", ""
    else:
        limit, usage, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
    stat = parse_stat(read(folder / "memory.stat"))
    # Version 1 also tells the tightest limit of those ancestors that the mount does not show.
    stated = (integer(read(folder / limit)), stat.get("hierarchical_memory_limit"))
    limit_bytes = min((n for n in stated if n is not None and n < _NO_LIMIT_BYTES), default=None)
    if limit_bytes is None:
        return None
    used = integer(read(folder / usage))
    reclaimable = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return MemoryGroup(limit_bytes, None if used is None else max(0, used - reclaimable))


def _folders(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """Folders of the groups that govern this process, with their version, innermost first."""
    paths = parse_membership(read(root / "proc/self/cgroup"))
    for mount in parse_mounts(read(root / "proc/self/mountinfo")):
        path = paths.get("" if mount.version == 2 else controller)
        if path is not None and (mount.version == 2 or controller in mount.controllers):
            for folder in _way_up(mount, PurePosixPath(path), root):
                yield mount.version, folder


def _way_up(mount: Mount, path: PurePosixPath, root: Path) -> Iterator[Path]:
    top = root / mount.point.relative_to("/")
    inside = path.is_relative_to(mount.root) and ".." not in path.parts
    folder = top / path.relative_to(mount.root) if inside else top
    while folder != top:
        yield folder
        folder = folder.parent
    yield top


def _unescape(text: str) -> PurePosixPath:
    """Mount tables write blanks, tabs, line ends and backslashes as three octal digits."""
    for sign in (" ", "\t", "\n", "\\"):
        text = text.replace(f"\\{ord(sign):03o}", sign)
    return PurePosixPath(text)
