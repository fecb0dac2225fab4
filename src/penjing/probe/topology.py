"""Which processors share a core and which share a cache, from `/sys/devices/system/cpu`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from penjing.machine import Cache
from penjing.probe import macos
from penjing.probe.text import ROOT, integer, read
from penjing.units import KIB, MIB

Cpus = frozenset[int]

_CPU = "sys/devices/system/cpu"


class Domain(Struct, frozen=True):
    """One cache and the processors that share it."""

    level: int
    kind: str
    n_bytes: int
    cpus: Cpus


def parse_cpu_list(text: str) -> Cpus:
    """Processor numbers of a list like `0-3,8`."""
    found: set[int] = set()
    for piece in text.strip().split(","):
        first, dash, last = piece.partition("-")
        low, high = integer(first), integer(last if dash else first)
        if low is not None and high is not None:
            found.update(range(low, high + 1))
    return frozenset(found)


def parse_cache_size(text: str) -> int | None:
    """Bytes of a size like `48K`, as the kernel writes the size of a cache."""
    text = text.strip()
    unit = {"K": KIB, "M": MIB}.get(text[-1:], 1)
    number = integer(text.rstrip("KM"))
    return number * unit if number else None


def online(root: Path = ROOT) -> Cpus:
    """Processors that the kernel runs; empty where it does not tell."""
    return parse_cpu_list(read(root / _CPU / "online"))


def cores(root: Path = ROOT) -> frozenset[Cpus]:
    """The threads of each core. A processor whose siblings are unknown is a core by itself."""
    siblings = (
        parse_cpu_list(read(root / _CPU / f"cpu{cpu}/topology/thread_siblings_list")) or frozenset({cpu})
        for cpu in online(root)
    )
    return frozenset(siblings)


def domains(root: Path = ROOT) -> tuple[Domain, ...]:
    """Every cache of the machine, the inner levels first."""
    folders = (f for cpu in online(root) for f in sorted((root / _CPU / f"cpu{cpu}/cache").glob("index*")))
    found = {_domain(folder) for folder in folders} - {None}
    return tuple(sorted((d for d in found if d), key=lambda d: (d.level, d.kind, min(d.cpus))))


def caches(root: Path = ROOT, allowed: Cpus = frozenset()) -> tuple[Cache, ...]:
    """Caches by level and kind, counting those that serve one of the `allowed` processors (all if empty).

    Where instances differ in size, as between fast and slow cores, the size is that of the first.
    """
    found = [d for d in domains(root) if not allowed or d.cpus & allowed]
    counts = Counter((d.level, d.kind) for d in found)
    first = {(d.level, d.kind): d.n_bytes for d in reversed(found)}
    linux = tuple(Cache(level, kind, first[level, kind], n) for (level, kind), n in counts.items())
    return linux or macos.parse_caches(macos.sysctl())


def spread(cpus: Iterable[int], groupings: Iterable[Iterable[Cpus]]) -> tuple[int, ...]:
    """`cpus` in the order in which threads are best placed: far apart first.

    Each grouping, the one that matters most first, parts the processors into sets that share
    something; a second processor of a set comes after the first ones of all sets.
    """
    order = sorted(cpus)
    for groups in reversed([list(grouping) for grouping in groupings]):
        owner = {cpu: index for index, group in enumerate(groups) for cpu in group}
        seen: Counter[int] = Counter()
        ranks = {}
        for cpu in order:
            group = owner.get(cpu, -1 - cpu)
            ranks[cpu] = seen[group]
            seen[group] += 1
        order.sort(key=ranks.__getitem__)
    return tuple(order)


def placement(allowed: Cpus, root: Path = ROOT) -> tuple[int, ...]:
    """The order in which to fill the `allowed` processors: cores before their second threads, and
    among these the last-level caches in turn."""
    known = domains(root)
    last = max((d.level for d in known), default=0)
    return spread(allowed, [cores(root), [d.cpus for d in known if d.level == last]])


def _domain(folder: Path) -> Domain | None:
    level = integer(read(folder / "level"))
    n_bytes = parse_cache_size(read(folder / "size"))
    cpus = parse_cpu_list(read(folder / "shared_cpu_list"))
    kind = read(folder / "type").strip().lower()
    return Domain(level, kind, n_bytes, cpus) if level and n_bytes and cpus and kind else None
