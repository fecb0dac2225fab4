"""The probe: this computer as a `Machine`.

What stays the same (the processor, its caches, measured rates, accelerators) is measured once and kept
in the cache folder; what changes by the minute (free memory, limits, load, usable cores, free disk) is
read anew by every call.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, structs

from penjing.figures import Figure
from penjing.machine import EngineFound, Machine, Tier
from penjing.probe import accelerators, bandwidth, cpu, disk, memory, topology
from penjing.store import cache_dir, recall, remember
from penjing.units import show_bytes

KEPT = "machine.json"
BANDWIDTH_SECONDS = 8.0

Say = Callable[[str], None]


class Kept(Struct, frozen=True):
    """What the cache holds: the machine without disks, and the tier of each disk measured, by device."""

    machine: Machine
    disks: dict[str, Tier]


def probe(
    disk_path: Path | None = None,
    *,
    fresh: bool = False,
    engines: tuple[EngineFound, ...] = (),
    progress: Say | None = None,
) -> Machine:
    """This computer, measured: some seconds the first time, next to nothing afterwards.

    The disk is the one that holds `disk_path`, by default the cache folder. `fresh` measures again;
    `progress` is told what is being done. Raises nothing: what cannot be found out is None.
    """
    say = progress or (lambda _: None)
    path = disk_path or cache_dir()
    now = _present()
    kept = None if fresh else recall(KEPT, Kept)
    if kept is None or _stale(kept.machine, now):
        kept = Kept(_measured(now, say), {})
    known = kept.disks.get(device := disk.device(path))
    tier = _disk(path, known, say)
    if known is None or known.read_bytes_per_s != tier.read_bytes_per_s:
        kept = Kept(kept.machine, {**kept.disks, device: tier})
        remember(KEPT, kept)
    return structs.replace(
        now,
        caches=kept.machine.caches,
        accelerators=kept.machine.accelerators,
        tiers=(*(_usable(t, _threads(now)) for t in kept.machine.tiers), tier),
        engines=engines,
        captured=kept.machine.captured,
        sources=kept.machine.sources,
    )


def load_average() -> float | None:
    """Processes that ran or waited for a processor or a disk, averaged over the last minute."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _present() -> Machine:
    """All that can be read in a moment."""
    cores, name, total = cpu.cores(), cpu.name(), memory.total_bytes()
    parts = (name, cores.physical and f"{cores.physical} cores", total and f"{show_bytes(total)} memory")
    return Machine(
        name=", ".join(part for part in parts if part) or "this computer",
        cores=cores,
        isa=cpu.isa(),
        memory_total_bytes=total,
        memory_available_bytes=memory.available_bytes(),
        memory_limit_bytes=memory.limit_bytes(),
        tiers=(),
        cpu=name,
        load_average=load_average(),
    )


def memory_rate(seconds: float) -> float | None:
    """Bytes per second that the memory gives at this moment, read for about `seconds`; None if nobody can tell."""
    now = _present()
    *_, dram = _levels(now)
    return bandwidth.measure_apart(
        dram, topology.placement(cpu.allowed_cpus()), seconds
    ).read_bytes_per_s.value


def _levels(now: Machine) -> list[bandwidth.Level]:
    return bandwidth.levels(
        topology.caches(allowed=cpu.allowed_cpus()),
        bandwidth.thread_counts(_threads(now), now.cores.physical or _threads(now)),
        now.memory_available_bytes,
        now.memory_total_bytes,
    )


def _measured(now: Machine, say: Say) -> Machine:
    """`now` with everything that takes time: accelerators, caches and rates."""
    say("looking for accelerators")
    found = accelerators.find()
    placement, levels = topology.placement(cpu.allowed_cpus()), _levels(now)
    tiers = []
    for level in levels:
        say(f"reading from {level.name}")
        tiers.append(bandwidth.measure_apart(level, placement, BANDWIDTH_SECONDS / len(levels)))
    return structs.replace(
        now,
        caches=topology.caches(),
        accelerators=found,
        tiers=tuple(tiers),
        load_average=load_average(),  # at the end, when it has noticed what disturbed
        captured=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        sources=("what the system says of itself", "timed reads of caches, memory and disk"),
    )


def _stale(kept: Machine, now: Machine) -> bool:
    """The kept rates are of another machine, or can be measured better now."""
    if _identity(kept) != _identity(now) or _threads(kept) < _threads(now):
        return True
    dram = kept.tier("DRAM")
    if dram is None or dram.read_bytes_per_s.value is None:  # there was too little memory to measure
        return bandwidth.dram_bytes(kept.caches, now.memory_available_bytes) is not None
    return any(map(bandwidth.disturbed, kept.tiers)) and _calmer(now.load_average, kept.load_average)


def _identity(machine: Machine) -> tuple[str | None, int | None, int | None]:
    return machine.cpu, machine.cores.logical, machine.memory_total_bytes


def _threads(machine: Machine) -> int:
    """Threads that can run at once, whole ones; a quota below one core still lets one run."""
    return max(1, int(machine.cores.usable or 1))


def _calmer(load: float | None, before: float | None) -> bool:
    """Worth another try: less than half of a load that could have disturbed."""
    return load is not None and before is not None and load < before / 2 and before > 0.5


def _usable(tier: Tier, threads: int) -> Tier:
    """`tier` for a process that may use fewer threads than when it was measured."""
    points = tuple(point for point in tier.by_threads if point.threads <= threads)
    if not points or points == tier.by_threads:
        return tier
    best = max(points, key=lambda point: point.read_bytes_per_s)
    note = f"{best.threads} of {tier.by_threads[-1].threads} threads measured"
    return structs.replace(
        tier, by_threads=points, read_bytes_per_s=Figure(best.read_bytes_per_s, "measured", note)
    )


def _disk(path: Path, known: Tier | None, say: Say) -> Tier:
    """The disk that holds `path`; measured, unless its rates are known and not None."""
    if known is None or known.read_bytes_per_s.value is None:
        say(f"reading from the disk at {path}")
        return disk.measure(path)
    return structs.replace(known, capacity_bytes=disk.free_bytes(path), path=str(path))
