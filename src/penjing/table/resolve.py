"""From the labels of a row to hardware and shapes, through the catalogue."""

from __future__ import annotations

import functools

from msgspec import Struct
from msgspec.structs import replace

from penjing import catalogue
from penjing.cost.device import Device, device_of
from penjing.cost.shapes import Shapes, shapes_of
from penjing.cost.ways import Job, Way
from penjing.errors import UnknownName
from penjing.table.rows import Row
from penjing.table.settings import engine_of, experts_used, job_of, way_of


class Case(Struct, frozen=True):
    """A row with what it means. count: devices, as the model counts them."""

    row: Row
    device: Device
    shapes: Shapes
    way: Way
    job: Job
    count: int


class Unsupported(Struct, frozen=True):
    """A row that cannot be predicted, and why."""

    row: Row
    why: str


def resolve(row: Row) -> Case | Unsupported:
    """What a row means, or the reason why nothing can be said about it."""
    try:
        found, units, host = _device(row.device)
    except UnknownName:
        return Unsupported(row, "unknown device")
    try:
        shapes = _shapes(row.model)
    except UnknownName:
        return Unsupported(row, "unknown model")
    if found is None:
        return Unsupported(row, "device without a known memory bandwidth")
    counted = replace(row, count=max(1, round((row.count or 1) * units)))
    device = _as_run(counted, _with_host(found, host, row))
    used = experts_used(row)
    if used and shapes.experts > 1:
        shapes = replace(shapes, experts_used=float(used))
    way = way_of(counted, device, shapes)
    return Case(row, device, shapes, way, job_of(counted), counted.count or 1)


Host = tuple[Device, float]  # and how many sockets


@functools.lru_cache(maxsize=4096)
def _device(label: str) -> tuple[Device | None, float, Host | None]:
    found = catalogue.device(label)
    behind = device_of(found.host) if found.host else None
    return device_of(found.machine), found.units, (behind, float(found.sockets)) if behind else None


@functools.lru_cache(maxsize=4096)
def _shapes(label: str) -> Shapes:
    return shapes_of(catalogue.model(label))


def _with_host(device: Device, host: Host | None, row: Row) -> Device:
    """The device with the processor and the memory behind it; AMX counts where the row says that it was used."""
    if host is None:
        return device
    processor, sockets = host
    rate = processor.rate("int8" if "AMX" in row.weight_format.upper() else "int8_vector")
    return replace(
        device,
        host_bytes_per_s=processor.bytes_per_s * sockets,
        host_operations_per_s=rate * sockets,
    )


def _as_run(row: Row, device: Device) -> Device:
    """Chips that hold a processor besides a GPU: the processor where the engine ran on it, whose rate nobody lists."""
    if device.kind == "cpu" or not engine_of(row, device).startswith("cpu"):
        return device
    return replace(device, kind="cpu", memory="ddr", operations_per_s={})
