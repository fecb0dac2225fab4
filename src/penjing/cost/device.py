"""A device as the cost model sees it: what its datasheet says, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

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
                return self.operations_per_s[name] * (2 if narrow else 1)  # vectors hold more of the narrow numbers
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
