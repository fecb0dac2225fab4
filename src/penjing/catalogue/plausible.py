"""Which figures a machine can have: a slip of unit is off by a thousand or more, and is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator

from penjing.figures import Figure
from penjing.machine import Machine, Tier

# Lowest and highest that any machine of the next years can have, and an example with its unit written out.
_RANGES = {
    "count": (1, 1e6, "a number of devices"),
    "memory": (2**24, 2**55, "16 GiB are 17_179_869_184"),
    "any memory": (2**10, 2**60, "1 TB is 1e12"),
    "memory rate": (1e8, 1e15, "8 TB/s are 8e12, 50 GB/s are 50e9"),
    "any rate": (1e5, 1e16, "32 GB/s are 32e9"),
    "operations_per_s": (1e8, 1e19, "312 TFLOPS are 312e12"),
    "power_watts": (0.1, 1e5, "700 W are 700"),
    "price_usd": (1, 1e7, "1,599 dollars are 1599"),
    "die_area_mm2": (1, 1e5, "8 cm2 are 800"),
    "released": (1990, 2100, "a year"),
}
_MAIN = ("DRAM", "VRAM")  # a cache may be small, and a disk slow

Amount = tuple[str, str, float | None]  # the field, which range it has, its value


def fault(machine: Machine) -> tuple[str, str] | None:
    """The first field with a figure that no machine has, and what is wrong; None where all can be."""
    found = ((where, _problem(kind, value)) for where, kind, value in _amounts(machine) if value is not None)
    return next(((where, problem) for where, problem in found if problem), None)


def _problem(kind: str, value: float) -> str:
    low, high, example = _RANGES[kind]
    if not (math.isfinite(value) and value > 0):
        return f"expected more than 0, got {value}"
    if low <= value <= high:
        return ""
    return f"{value:g} is not plausible, expected {low:g} to {high:g}; {example}"


def _amounts(machine: Machine) -> Iterator[Amount]:
    yield "count", "count", machine.count
    yield "memory_total_bytes", "memory", machine.memory_total_bytes
    yield "memory_limit_bytes", "any memory", machine.memory_limit_bytes
    yield "released", "released", machine.released
    for i, tier in enumerate(machine.tiers):
        yield from _of_tier(f"tiers[{i}]", tier)
    for i, compute in enumerate(machine.compute):
        yield f"compute[{i}].operations_per_s.value", "operations_per_s", compute.operations_per_s.value
    for i, link in enumerate(machine.links):
        yield f"links[{i}].bytes_per_s.value", "any rate", link.bytes_per_s.value
    for name in ("power_watts", "price_usd", "die_area_mm2"):
        yield f"{name}.value", name, _value(getattr(machine, name))


def _of_tier(where: str, tier: Tier) -> Iterator[Amount]:
    prefix = "" if tier.name in _MAIN else "any "
    rate = "memory rate" if tier.name in _MAIN else "any rate"
    yield f"{where}.capacity_bytes", f"{prefix}memory", tier.capacity_bytes
    yield f"{where}.read_bytes_per_s.value", rate, tier.read_bytes_per_s.value
    yield f"{where}.random_read_bytes_per_s.value", "any rate", _value(tier.random_read_bytes_per_s)


def _value(figure: Figure | None) -> float | None:
    return figure.value if figure else None
