"""The processor: its name, its cores, and the instruction sets that llama.cpp has kernels for."""

from __future__ import annotations

import os
import re
from pathlib import Path

from penjing.machine import Cores
from penjing.probe import cgroup, macos, topology
from penjing.probe.text import ROOT, read

# The kernel's word for each instruction set, and ours.
_ISA = {
    "sse4_2": "sse4_2", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi2": "bmi2",
    "avx_vnni": "avx_vnni", "avx512f": "avx512f", "avx512cd": "avx512cd", "avx512bw": "avx512bw",
    "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512vbmi": "avx512_vbmi",
    "avx512_vnni": "avx512_vnni", "avx512_bf16": "avx512_bf16",
    "amx_tile": "amx_tile", "amx_int8": "amx_int8", "amx_bf16": "amx_bf16",
    "asimd": "neon", "neon": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "i8mm": "i8mm",
    "bf16": "bf16", "sve": "sve", "sve2": "sve2", "sme": "sme",
}  # fmt: skip

_FIELD = re.compile(r"^([^:\n]+?)[ \t]*:[ \t]*(.*)$", re.MULTILINE)


def parse_cpuinfo(text: str) -> dict[str, str]:
    """Each field of `/proc/cpuinfo` as the first processor has it."""
    return dict(reversed(_FIELD.findall(text)))


def parse_isa(fields: dict[str, str]) -> tuple[str, ...]:
    """Instruction sets that matter to llama.cpp, from the `flags` of x86 or the `Features` of ARM."""
    flags = f"{fields.get('flags', '')} {fields.get('Features', '')}".split()
    return tuple(dict.fromkeys(ours for theirs, ours in _ISA.items() if theirs in flags))


def parse_name(fields: dict[str, str]) -> str | None:
    """The processor's name; ARM kernels often give only the board, or the maker's and the part's number."""
    for field in ("model name", "Model", "Hardware"):
        if fields.get(field, "").strip():
            return " ".join(fields[field].split())
    if "CPU implementer" in fields and "CPU part" in fields:
        return f"ARM implementer {fields['CPU implementer']} part {fields['CPU part']}"
    return None


def name(root: Path = ROOT) -> str | None:
    """What the processor calls itself."""
    found = parse_name(parse_cpuinfo(read(root / "proc/cpuinfo")))
    return found or macos.sysctl().get("machdep.cpu.brand_string")


def isa(root: Path = ROOT) -> tuple[str, ...]:
    """Instruction sets that matter to llama.cpp; empty where nothing tells."""
    return parse_isa(parse_cpuinfo(read(root / "proc/cpuinfo"))) or macos.parse_isa(macos.sysctl())


def physical_cores(root: Path = ROOT) -> int | None:
    """Cores of the whole machine, threads of one core counted once."""
    return len(topology.cores(root)) or macos.number(macos.sysctl(), "hw.physicalcpu")


def logical_cores(root: Path = ROOT) -> int | None:
    """Threads that the whole machine runs at once."""
    return len(topology.online(root)) or macos.number(macos.sysctl(), "hw.logicalcpu") or os.cpu_count()


def allowed_cpus() -> frozenset[int]:
    """Numbers of the processors that this process may run on; empty where the system has no such notion."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def usable_cores(root: Path = ROOT) -> float | None:
    """Cores that this process may keep busy under its affinity and the quota of its control group."""
    known = [float(count) for count in (len(allowed_cpus()), logical_cores(root)) if count]
    quota = cgroup.cpu_quota(root)
    return min(known if quota is None else [*known, quota], default=None)


def cores(root: Path = ROOT) -> Cores:
    return Cores(physical_cores(root), logical_cores(root), usable_cores(root))
