"""Readers of `sysctl` and `vm_stat`, the two tools that describe a Mac."""

from __future__ import annotations

import math
import re
import sys

from penjing.machine import Cache
from penjing.probe.text import integer, run

# What llama.cpp has kernels for, by the names that sysctl gives on Apple silicon and on Intel.
_ARM = {
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.neon": "neon",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_FP16": "fp16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
}
_INTEL = {"AVX1.0": "avx", "AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "BMI2": "bmi2", "AVX512F": "avx512f"}

_PAGES = re.compile(r"^(Pages [a-z ]+):\s+([0-9]{1,18})\.", re.MULTILINE)
_PAGE_SIZE = re.compile(r"page size of ([0-9]{1,9}) bytes")


def sysctl() -> dict[str, str]:
    """All that `sysctl` says of the hardware, by name; empty on any other system."""
    return parse_sysctl(run("sysctl", "hw", "machdep.cpu")) if sys.platform == "darwin" else {}


def vm_stat() -> str:
    """The text of `vm_stat`; empty on any other system."""
    return run("vm_stat") if sys.platform == "darwin" else ""


def parse_sysctl(text: str) -> dict[str, str]:
    """`name: value` lines as a dictionary."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def number(facts: dict[str, str], name: str) -> int | None:
    """The whole number that sysctl gives under `name`, or None."""
    return integer(facts.get(name, ""))


def parse_isa(facts: dict[str, str]) -> tuple[str, ...]:
    """Instruction sets that matter to llama.cpp."""
    words = f"{facts.get('machdep.cpu.features', '')} {facts.get('machdep.cpu.leaf7_features', '')}".split()
    found = [ours for theirs, ours in _ARM.items() if facts.get(theirs) == "1"]
    found += [ours for theirs, ours in _INTEL.items() if theirs in words]
    return tuple(dict.fromkeys(found))


def parse_caches(facts: dict[str, str]) -> tuple[Cache, ...]:
    """Caches of the fast cores (`perflevel0`), or of all cores where there is one kind.

    The older names without a level describe the slow cores on Apple silicon.
    """
    fast = "hw.perflevel0." if "hw.perflevel0.l1dcachesize" in facts else "hw."
    cores = number(facts, f"{fast}physicalcpu") or 1
    wanted = (("l1dcachesize", 1, "data", 1), ("l1icachesize", 1, "instruction", 1),
              ("l2cachesize", 2, "unified", number(facts, f"{fast}cpusperl2") or 1),
              ("l3cachesize", 3, "unified", cores))  # fmt: skip
    return tuple(
        Cache(level, kind, n_bytes, math.ceil(cores / sharers))
        for name, level, kind, sharers in wanted
        if (n_bytes := number(facts, fast + name))
    )


def parse_available(text: str) -> int | None:
    """Bytes that programs can have without swapping: free, speculative and inactive pages of `vm_stat`."""
    size = _PAGE_SIZE.search(text)
    pages = {name: int(count) for name, count in _PAGES.findall(text)}
    wanted = [pages.get(f"Pages {kind}") for kind in ("free", "speculative", "inactive")]
    if size is None or None in wanted:
        return None
    return int(size[1]) * sum(count for count in wanted if count is not None)
