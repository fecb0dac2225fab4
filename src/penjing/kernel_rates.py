"""Rates of this machine's kernels: what each type and layout costs for a matrix of some shape, timed once and kept.

The products of one matrix and layout are timed in turn, round after round. A round whose threads did not get their
cores is thrown away; where none is left, the best counts, and the rates say how many were disturbed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from penjing import store
from penjing.cost.memory import Traits
from penjing.engines.base import Engine
from penjing.formats import BY_NAME
from penjing.machine import Machine
from penjing.plan import Build
from penjing.progress import bar
from penjing.quality.menu import KINDS
from penjing.rates import Kernel, KernelRates, KernelTiming

ROUNDS = 3
_COLD_CACHES = 2  # times the last-level cache: so much is read before the same weights come again
_LEAST_COLD_BYTES = 64 * 2**20
_LEAST_CPU_SHARE = 0.7  # of wall seconds times threads: below, other work took the cores
_FEW = 32  # tokens, below which a product is one of decode


class MatrixShape(Struct, frozen=True, order=True):
    """Rows and columns of a matrix, or of each of a stack of `experts`."""

    rows: int
    columns: int
    experts: int = 0
    experts_used: int = 0


def kernels_of(
    shapes: Iterable[MatrixShape], kinds: Sequence[str], traits: Traits, threads: Iterable[int],
    batches: Sequence[int], build: Build = "wheel",
) -> list[Kernel]:  # fmt: skip
    """Every product worth timing: types whose blocks fit the rows, and layouts that the engine has for them."""
    counts = sorted(set(threads))
    return [
        Kernel(kind, s.rows, s.columns, batch, count, repack, s.experts, s.experts_used, build)
        for s in shapes
        for kind in kinds
        if s.columns % BY_NAME[kind].block_weights == 0
        for repack in ((False, True) if kind in traits.repacked_types and s.rows % 8 == 0 else (False,))
        for count in counts
        for batch in batches
    ]


def all_kinds() -> tuple[str, ...]:
    return (*KINDS, "f16")


def known(machine: Machine, engine: Engine) -> tuple[KernelTiming, ...]:
    """What was timed before on this machine."""
    found = store.recall(_cache_name(machine, engine), KernelRates)
    return found.timings if found else ()


def alike(timings: Sequence[KernelTiming]) -> list[KernelTiming]:
    """Those of the matrix, threads and build that most types were timed with."""

    def setting(kernel: Kernel) -> tuple[object, ...]:
        return kernel.rows, kernel.columns, kernel.experts, kernel.threads, kernel.build

    usual = Counter(setting(t.kernel) for t in timings).most_common(1)
    return [t for t in timings if setting(t.kernel) == usual[0][0]]


def measured(
    kernels: Sequence[Kernel], machine: Machine, engine: Engine, *, fresh: bool = False
) -> KernelRates:
    """Timings of all `kernels`: from the cache as far as it knows, else taken now."""
    name = _cache_name(machine, engine)
    known = store.recall(name, KernelRates) or KernelRates(engine.version)
    have = {t.kernel: t for t in known.timings}
    missing = [kernel for kernel in kernels if fresh or kernel not in have]
    if missing:
        missing = _with_kin(missing, kernels)
        with ExitStack() as stack:
            shown = stack.enter_context(bar("timing kernels", len(missing)))
            timers = {b: stack.enter_context(engine.kernels(b)) for b in {k.build for k in missing}}
            for group in _groups(missing):
                found = timers[group[0].build].time(group, ROUNDS, cold_bytes(machine))
                have |= {timing.kernel: _undisturbed(timing) for timing in found}
                shown.advance(len(group))
                store.remember(name, replace(known, timings=tuple(have.values())))
    return replace(known, timings=tuple(have[kernel] for kernel in kernels))


def _with_kin(missing: Sequence[Kernel], kernels: Sequence[Kernel]) -> list[Kernel]:
    """With those that few tokens are multiplied in by the same matrix: they are compared, so the pace must be one."""
    groups = {_group(kernel) for kernel in missing if kernel.batch < _FEW}
    asked = set(missing)
    return [k for k in kernels if k in asked or (k.batch < _FEW and _group(k) in groups)]


def disturbed(rates: KernelRates) -> int:
    """Rounds that were thrown away because other work took the cores."""
    return sum(ROUNDS - len(timing.seconds) for timing in rates.timings)


def _groups(kernels: Sequence[Kernel]) -> list[list[Kernel]]:
    """Those of one matrix and layout together."""
    groups: dict[tuple[object, ...], list[Kernel]] = {}
    for k in kernels:
        groups.setdefault(_group(k), []).append(k)
    return list(groups.values())


def _group(k: Kernel) -> tuple[object, ...]:
    return k.build, k.type, k.rows, k.columns, k.experts, k.repack


def _undisturbed(timing: KernelTiming) -> KernelTiming:
    pairs = list(zip(timing.seconds, timing.cpu_seconds, strict=True))
    calm = [(wall, cpu) for wall, cpu in pairs if cpu >= _LEAST_CPU_SHARE * timing.kernel.threads * wall]
    return KernelTiming(timing.kernel, *map(tuple, zip(*(calm or [min(pairs)]), strict=True)))


def seconds(timing: KernelTiming) -> float:
    """Median of the rounds."""
    return median(timing.seconds)


def operations(kernel: Kernel) -> float:
    """Multiplications and additions of one product."""
    return 2.0 * kernel.rows * kernel.columns * max(1, kernel.experts_used) * kernel.batch


def cold_bytes(machine: Machine) -> int:
    """So much is read before the same weights come again."""
    last = max((c.n_bytes * c.instances for c in machine.caches if c.kind != "instruction"), default=0)
    return max(_LEAST_COLD_BYTES, _COLD_CACHES * last)


def _cache_name(machine: Machine, engine: Engine) -> str:
    place = f"{machine.cpu} {machine.cores} {engine.version}"
    return f"kernels/{hashlib.sha256(place.encode()).hexdigest()[:12]}.json"
