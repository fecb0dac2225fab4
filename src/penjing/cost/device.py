"""A device as the cost model sees it: what its datasheet says, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from penjing.machine import Link as MachineLink
from penjing.machine import Machine, Tier

Kind = Literal["datacenter", "consumer", "apple", "soc", "npu", "cpu"]
Vendor = Literal["nvidia", "amd", "intel", "apple", "other"]
Memory = Literal["hbm", "gddr", "shared", "ddr"]
Link = Literal["nvlink", "fabric", "pcie", "network"]


class Device(Struct, frozen=True):
    """One GPU, NPU or processor, and the host behind it.

    Units:
        memory_bytes: its own memory; None where nobody says.
        bytes_per_s: of that memory. operations_per_s: dense, by format, a multiply-add as 2.
        link_bytes_per_s: to its peers, one direction. host_link_bytes_per_s: to the host's memory.
        host_bytes_per_s, host_operations_per_s: of the processor that computes what does not fit.
        cores: of a processor, where known. watts: its power limit (TDP).
    """

    name: str
    kind: Kind
    vendor: Vendor
    memory: Memory
    memory_bytes: float | None
    bytes_per_s: float
    operations_per_s: Mapping[str, float]
    link: Link = "pcie"
    link_bytes_per_s: float | None = None
    host_link_bytes_per_s: float = 32e9
    host_bytes_per_s: float | None = None
    host_operations_per_s: float | None = None
    cores: float | None = None
    watts: float | None = None

    def rate(self, arithmetic: str) -> float:
        """Operations per second in a format, by the nearest one that the datasheet has.

        A format without units of its own is computed in the next wider one that has some, at that rate.
        """
        for name in _INSTEAD[arithmetic]:
            if name in self.operations_per_s:
                narrow = self.kind == "cpu" and arithmetic.startswith("int8") and not name.startswith("int8")
                # vectors hold more of the narrow numbers
                return self.operations_per_s[name] * (2 if narrow else 1)
        return _BALANCE[self.kind] * self.bytes_per_s


# which formats stand in for one that is missing, the nearest first
_INSTEAD: Mapping[str, tuple[str, ...]] = {
    "fp16": ("bf16", "fp16", "fp32"),
    "fp16_narrow": ("fp16", "bf16", "fp32"),  # sums kept in 16 bits: twice as fast on consumer cards
    "fp8": ("fp8", "bf16", "fp16"),
    "int8": ("int8", "bf16", "fp16", "fp32"),
    "int8_vector": ("int8_vector", "int8", "bf16", "fp16", "fp32"),  # without matrix units (AMX)
    "fp16_vector": ("fp16_vector", "bf16", "fp16", "fp32"),
    "fp4": ("fp4", "fp8", "bf16", "fp16"),
}

# operations per byte of memory traffic where a datasheet has no rate: the medians of the kinds
_BALANCE: Mapping[Kind, float] = {
    "datacenter": 200.0,
    "consumer": 150.0,
    "apple": 33.0,
    "soc": 60.0,
    "npu": 220.0,
    "cpu": 25.0,
}

_MATRIX_UNITS = 8.0  # how many times faster AMX is than the vectors of the same cores
_TWO_DEVICES = "appear as two devices"  # how the catalogue notes a card whose driver shows two


def device_of(machine: Machine) -> Device | None:
    """The device that a machine is: its accelerator where it has one, else its processor.

    None where nobody knows how fast its memory is.
    """
    tier = machine.tier("VRAM") or machine.tier("DRAM")
    if tier is None or not tier.read_bytes_per_s.value:
        return None
    kind = _kind(machine)
    part = 0.5 if any(_TWO_DEVICES in note for note in machine.notes) else 1.0
    peer, host = machine.link("peer"), machine.link("host")
    watts = machine.power_watts.value if machine.power_watts else None
    return Device(
        name=machine.name,
        kind=kind,
        vendor=_vendor(machine.vendor),
        memory=_memory(kind, tier),
        memory_bytes=(tier.capacity_bytes or 0) * part or None,
        bytes_per_s=tier.read_bytes_per_s.value * part,
        operations_per_s={name: rate * part for name, rate in _rates(machine).items()},
        link=_link(peer),
        link_bytes_per_s=peer.bytes_per_s.value if peer else None,
        host_link_bytes_per_s=(host.bytes_per_s.value if host else None) or 32e9,
        cores=machine.cores.physical,
        watts=watts * part if watts else None,
    )


def _kind(machine: Machine) -> Kind:
    if not machine.accelerators or "CPU" in machine.kind:
        return "cpu"
    if machine.vendor == "Apple" and "phone" not in machine.kind:
        return "apple"
    if "SoC" in machine.kind or machine.kind == "SBC":
        return "soc"
    if machine.kind in ("consumer GPU", "workstation GPU"):
        return "consumer"
    return "datacenter" if "GPU" in machine.kind and _vendor(machine.vendor) != "other" else "npu"


def _vendor(name: str) -> Vendor:
    known: dict[str, Vendor] = {"NVIDIA": "nvidia", "AMD": "amd", "Intel": "intel", "Apple": "apple"}
    return known.get(name, "other")


def _memory(kind: Kind, tier: Tier) -> Memory:
    note = tier.read_bytes_per_s.note
    if "HBM" in note:
        return "hbm"
    if "GDDR" in note or kind in ("datacenter", "consumer", "npu"):
        return "gddr" if kind != "npu" else "hbm"
    return "ddr" if kind == "cpu" else "shared"


def _rates(machine: Machine) -> dict[str, float]:
    """Operations per second by format; of processors with matrix units, what their vectors do besides."""
    rates = {c.format: c.operations_per_s.value for c in machine.compute if c.operations_per_s.value}
    if any(name.startswith("amx") for name in machine.isa):
        wide = {"int8": "int8_vector", "bf16": "fp16_vector"}
        rates |= {vector: rates[name] / _MATRIX_UNITS for name, vector in wide.items() if name in rates}
    if (
        machine.vendor == "NVIDIA"
        and machine.kind == "consumer GPU"
        and "bf16" not in rates
        and "fp16" in rates
    ):
        rates["bf16"] = rates["fp16"] / 2  # with sums in 32 bits these cards run at half of the listed rate
    if (
        machine.vendor == "Apple"
        and not rates
        and (tier := machine.tier("DRAM"))
        and tier.read_bytes_per_s.value
    ):
        rates["fp16"] = _apple_balance(machine) * tier.read_bytes_per_s.value
    return rates


def _apple_balance(machine: Machine) -> float:
    """Operations per byte of Apple's chips: alike over the sizes of a generation; four times as many from 2025 on,
    when their GPUs got matrix units."""
    return _BALANCE["apple"] * (4 if (machine.released or 0) >= 2025 and "M4" not in machine.name else 1)


def _link(peer: MachineLink | None) -> Link:
    if peer is None or "PCIe" in peer.kind:
        return "pcie"
    return "nvlink" if peer.kind.startswith("NVLink") else "fabric"
