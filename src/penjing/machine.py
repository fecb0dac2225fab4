"""What the hardware can do. Each rate carries its source; what nobody knows stays None."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from penjing.figures import Figure


class Cores(Struct, frozen=True):
    """Processor cores: `physical` cores, `logical` threads, and how many this process may keep busy
    (`usable`, under affinity and the cgroup's quota; a quota can be a fraction)."""

    physical: int | None
    logical: int | None
    usable: float | None


class Cache(Struct, frozen=True):
    """One level of processor cache: bytes of one instance, and the number of instances."""

    level: int
    kind: str  # "data", "instruction", "unified"
    n_bytes: int
    instances: int


class ThreadRate(Struct, frozen=True):
    """Sequential read rate with a number of threads."""

    threads: int
    read_bytes_per_s: float


class Tier(Struct, frozen=True):
    """A place that weights can be read from: a cache, DRAM, VRAM, a disk.

    `by_threads` is the measured curve behind `read_bytes_per_s`, which is its best point.
    `random_read_bytes_per_s` is for 128 KiB reads at random places, where it was measured.
    """

    name: str
    capacity_bytes: int | None
    read_bytes_per_s: Figure
    by_threads: tuple[ThreadRate, ...] = ()
    random_read_bytes_per_s: Figure | None = None
    path: str = ""


class Compute(Struct, frozen=True):
    """Peak arithmetic in one number format, counted as 2 operations a multiply-add, dense."""

    format: str
    operations_per_s: Figure


class Link(Struct, frozen=True):
    """What joins an accelerator to others of its kind (`peer`) or to the computer around it (`host`).

    bytes_per_s: in one direction, of all lanes of one accelerator together.
    """

    to: Literal["peer", "host"]
    kind: str  # "NVLink 4", "PCIe 5.0 x16"
    bytes_per_s: Figure


class Accelerator(Struct, frozen=True):
    """A GPU or NPU that a vendor's tool reports."""

    name: str
    vendor: str
    memory_bytes: int | None
    driver: str | None = None


class EngineFound(Struct, frozen=True):
    """An engine that can be used here, or why it cannot."""

    name: str
    version: str
    usable: bool
    why: str = ""


class Machine(Struct, frozen=True):
    """A computer: this one (measured), or one from a catalogue (by its datasheet).

    Units:
        memory_limit_bytes: what the cgroup, or the user, allows; None where nothing limits.
        captured: ISO time of the probe, or the date of the catalogue entry.
        count: how many of it there are, all figures being those of one.
        kind: "datacenter GPU", "laptop CPU" and the like. released: year.
        power_watts: what it is built to draw. price_usd: of one, as its note says when and where.
        die_area_mm2: of the logic made on `process`, memory stacks aside.
    """

    name: str
    cores: Cores
    isa: tuple[str, ...]
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    memory_limit_bytes: int | None
    tiers: tuple[Tier, ...]
    cpu: str | None = None
    caches: tuple[Cache, ...] = ()
    compute: tuple[Compute, ...] = ()
    accelerators: tuple[Accelerator, ...] = ()
    engines: tuple[EngineFound, ...] = ()
    count: int = 1
    load_average: float | None = None
    captured: str = ""
    sources: tuple[str, ...] = ()
    vendor: str = ""
    kind: str = ""
    released: int | None = None
    process: str = ""
    links: tuple[Link, ...] = ()
    power_watts: Figure | None = None
    price_usd: Figure | None = None
    die_area_mm2: Figure | None = None
    notes: tuple[str, ...] = ()

    @property
    def usable_memory_bytes(self) -> int | None:
        """The tightest of total memory and limit."""
        known = [x for x in (self.memory_total_bytes, self.memory_limit_bytes) if x is not None]
        return min(known) if known else None

    def tier(self, name: str) -> Tier | None:
        return next((t for t in self.tiers if t.name == name), None)

    def link(self, to: Literal["peer", "host"]) -> Link | None:
        """The way to `to`; accelerators without a link of their own reach each other through the host."""
        own = next((link for link in self.links if link.to == to), None)
        return own or next((link for link in self.links if to == "peer" and link.to == "host"), None)
