"""Hardware as a user writes it: how many of which device, what memory is behind them, and what is to be different.

8x RTX 4090 + 512GB DDR5-4800
H20 memory_bandwidth=8TB/s memory=192GB
my-machine.toml
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from penjing import catalogue
from penjing.cost.device import Device, device_of
from penjing.cost.estimates import Level, probed
from penjing.cost.ways import Phase
from penjing.errors import UsageError
from penjing.figures import Figure
from penjing.machine import Machine

_COUNT = re.compile(r"(\d{1,5})\s*[x×*]\s+|(\d{1,5})[x×*]")
_CHANGE = re.compile(r"\s+([a-z_0-9]+)=(\S+)")
_HOST = re.compile(r"\s*\+\s*([\d.]+\s*[KMGT]i?B)\s*((?:LP)?DDR\d\w?)?(?:-(\d{4,5}))?\s*$", re.IGNORECASE)
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)(b/s|b|w|flops|ops)", re.IGNORECASE)
_UNITS = {"B": ("b",), "B/s": ("b/s",), "W": ("w",), "FLOPS": ("flops", "ops")}
_TRANSFERS = {"ddr3": 1600, "ddr4": 3200, "ddr5": 5600, "lpddr4x": 4266, "lpddr5": 6400, "lpddr5x": 8533}
_CHANNELS, _CHANNEL_BYTES = 2, 8  # of a desktop computer; a server says `host_bandwidth=460GB/s`
_HOST_SHARE = 0.9  # of host memory: the system has the rest


class Hardware(Struct, frozen=True):
    """Devices of one kind in one computer or several.

    Units:
        count: devices. host_bytes: memory behind them that weights may use; 0 where nobody says.
        level: whether its memory was measured or is known by a datasheet.
        runs: factors on predictions by class of engine and phase, from runs on the device (`elsewhere.runs`).
    """

    name: str
    machine: Machine
    device: Device
    count: int = 1
    host_bytes: float = 0.0
    changed: bool = False
    level: Level = "datasheet"
    runs: Mapping[str, Mapping[Phase, float]] = {}

    @property
    def watts(self) -> float | None:
        return self.device.watts

    def of(self, count: int) -> Hardware:
        """As many devices as `count` of the same kind."""
        bare = _COUNT.sub("", self.name, count=1)
        return replace(self, count=count, name=f"{count}x {bare}" if count > 1 else bare)


def hardware(text: str) -> Hardware:
    """What `text` describes.

    Raises:
        UnknownName: there is no such device; names the nearest.
        UsageError: a change or the memory behind it makes no sense, or nobody knows how fast its memory is.
    """
    changes = dict(_CHANGE.findall(text))
    plain = _CHANGE.sub("", text).strip()
    behind = _HOST.search(plain)
    named = _HOST.sub("", plain)
    count, label = counted(named)
    found = catalogue.device(label)
    if count < 1:
        raise UsageError(f"`{text}` has {count} devices", hint="--on '1x ...'")
    machine = found.machine
    if "memory_bandwidth" in changes:  # which may be what nobody knows
        machine = _with_bandwidth(machine, _number(changes["memory_bandwidth"], "B/s", text, "8TB/s"))
    one = hardware_of(machine).of(max(1, round(count * found.units * machine.count)))
    if found.host is not None and (host := device_of(found.host)):
        one = _with_host(one, host.memory_bytes or 0.0, host.bytes_per_s * found.sockets)
    if behind:
        one = _with_host(one, _number(behind[1], "B", text), _host_rate(behind[2], behind[3]))
        one = replace(one, name=f"{one.name} + {behind[1]} {behind[2] or 'DDR5'}")
    return _changed(one, changes, text)


def _with_bandwidth(machine: Machine, rate: float) -> Machine:
    main = machine.tier("VRAM") or machine.tier("DRAM")
    told = Figure(rate, "assumed", "by the user")
    tiers = tuple(replace(t, read_bytes_per_s=told) if t is main else t for t in machine.tiers)
    return replace(machine, tiers=tiers)


def _with_host(one: Hardware, n_bytes: float, rate: float) -> Hardware:
    return replace(one, host_bytes=_HOST_SHARE * n_bytes, device=replace(one.device, host_bytes_per_s=rate))


def _host_rate(kind: str | None, transfers: str | None) -> float:
    """Bytes per second of two channels, the limit of the standard."""
    millions = int(transfers) if transfers else _TRANSFERS.get((kind or "ddr5").lower(), _TRANSFERS["ddr5"])
    return _CHANNELS * _CHANNEL_BYTES * millions * 1e6


def counted(text: str) -> tuple[int, str]:
    """How many, and of what: (8, "H20") of `8x H20`."""
    match = _COUNT.match(text)
    return (int(match[1] or match[2]), text[match.end() :].strip()) if match else (1, text.strip())


def hardware_of(machine: Machine) -> Hardware:
    """A machine that was probed, or is described in a file: what was measured of it counts for more."""
    device = device_of(machine)
    tier = machine.tier("VRAM") or machine.tier("DRAM")
    if device is None or tier is None:
        raise UsageError(
            f"nobody knows how fast the memory of `{machine.name}` is",
            hint=f"say it: --on '{machine.name} memory_bandwidth=1TB/s'",
        )
    level: Level = "probe" if tier.read_bytes_per_s.source == "measured" else "datasheet"
    if level == "probe":
        device = probed(device, tier.read_bytes_per_s.value, {})
    limit = machine.usable_memory_bytes
    if limit is not None and machine.tier("VRAM") is None:
        device = replace(device, memory_bytes=min(limit, device.memory_bytes or limit))
    return Hardware(machine.name, machine, device, level=level)


Change = Callable[[Hardware, float], Hardware]


def _device(field: str) -> Change:
    return lambda one, value: replace(one, device=replace(one.device, **{field: value}))


def _rate(name: str) -> Change:
    def change(one: Hardware, value: float) -> Hardware:
        rates = {**one.device.operations_per_s, name: value}
        return replace(one, device=replace(one.device, operations_per_s=rates))

    return change


# what may be changed: the unit that is expected, the plausible range, an example, and the change
CHANGES: dict[str, tuple[str, float, float, str, Change]] = {
    "memory": ("B", 1e8, 1e14, "141GB", _device("memory_bytes")),
    "memory_bandwidth": ("B/s", 1e9, 1e15, "8TB/s", _device("bytes_per_s")),
    "link_bandwidth": ("B/s", 1e8, 1e14, "450GB/s", _device("link_bytes_per_s")),
    "host_bandwidth": ("B/s", 1e9, 1e13, "460GB/s", _device("host_bytes_per_s")),
    "host_memory": ("B", 1e8, 1e14, "512GB", lambda one, v: replace(one, host_bytes=_HOST_SHARE * v)),
    "watts": ("W", 0.5, 1e5, "700W", _device("watts")),
    **{
        name: ("FLOPS", 1e9, 1e18, "989TFLOPS", _rate(name))
        for name in ("fp32", "fp16", "bf16", "fp8", "int8", "fp4")
    },
}


def _changed(one: Hardware, changes: dict[str, str], text: str) -> Hardware:
    for name, value in changes.items():
        if name not in CHANGES:
            near = catalogue.nearest(name, CHANGES) or sorted(CHANGES)
            raise UsageError(
                f"`{name}` of `{text}` cannot be changed", hint=f"did you mean {' or '.join(near[:3])}?"
            )
        unit, low, high, example, change = CHANGES[name]
        number = _number(value, unit, f"{name}={value}", example)
        if not low <= number <= high:
            raise UsageError(
                f"`{name}={value}` is {number:.3g} {unit}, expected {low:.0e} to {high:.0e}",
                hint=f"{name}={example}",
            )
        one = change(one, number)
    if changes:
        told = " ".join(f"{name}={value}" for name, value in changes.items())
        one = replace(one, name=f"{one.name} {told}", changed=True)
    return one


def _number(value: str, unit: str, what: str, example: str = "128GB") -> float:
    """`8TB/s` in bytes per second and so on; the unit has to be there."""
    match = _QUANTITY.fullmatch(value.strip())
    if match is None or match[4].lower() not in _UNITS[unit]:
        raise UsageError(f"`{what}` is no number of {unit}", hint=f"write it like {example}")
    scale = 1024.0 if match[3] else 1000.0
    return float(match[1]) * scale ** " kmgtp".index(match[2].lower() or " ")
