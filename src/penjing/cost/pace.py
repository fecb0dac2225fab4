"""Timings of one moment at the pace of another.

Two things change on a machine: how fast its cores compute, and how fast its memory reads. The reference, a slice that
is timed again and again, shows both: its prefill computes, its decode reads. A product that reads its weights as fast
as the reference in decode waits for memory as that does; one that reads them slower waits for arithmetic:

    t' = t · prefill^(1-m) · decode^m,    m = min(1, its rate / rate of the reference)^8

where prefill and decode are what the reference takes then over what it takes now. Between a memory of 33 and of
57 GB/s eight types went as they would with an exponent of 8 or more (docs/log.md). Attention over what lies before
goes with prefill.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from penjing.cost.passes import HEAD, REFERENCE, head_of, matrices
from penjing.cost.variants import NEAR_BY_KIND
from penjing.formats import type_bytes
from penjing.model import Model, Tensor
from penjing.quality import stock
from penjing.rates import Kernel, Kind, Knobs, PassRates, Rates, Timing

_STEEP = 8


class Pace(Struct, frozen=True):
    """How many times as long the reference takes, by phase."""

    prefill: float = 1.0
    decode: float = 1.0

    def of(self, rate: float) -> float:
        """How many times as long a product takes that reads at `rate`, in terms of what the reference reads at."""
        waits = min(1.0, rate) ** _STEEP
        return float(self.prefill ** (1 - waits) * self.decode**waits)


def read_bytes(model: Model, kind: str, layers: int, batch: int = 1) -> float:
    """Bytes of the matrices that a pass of `batch` tokens reads of the first `layers`, all stored in `kind`."""
    return sum(
        _bytes(t, kind, model, batch) for t in matrices(model) if t.layer is not None and t.layer < layers
    )


def head_bytes(model: Model) -> float:
    """Bytes that a pass over one layer and the head reads, both stored in `HEAD`."""
    return read_bytes(model, HEAD, 1) + _bytes(head_of(model), HEAD, model, 1)


def reading(model: Model, rates: PassRates) -> float:
    """Bytes per second that the reference reads in decode at its usual pace."""
    return read_bytes(model, REFERENCE, rates.layers["decode"]) / rates.pace_seconds["decode"]


def at(rates: PassRates, model: Model, pace: Pace) -> PassRates:
    """Rates of the shapes of `model`, on a machine whose reference takes `pace` times as long."""
    usual = reading(model, rates)

    def moved(found: Rates, n_bytes: Callable[[Knobs], float]) -> Rates:
        timings = (_moved(t, _flat(found, t), pace, n_bytes(t.knobs) / usual) for t in found.timings)
        return replace(found, timings=tuple(timings))

    def of_slice(kind: str) -> Callable[[Knobs], float]:
        return lambda knobs: read_bytes(model, kind, rates.layers[knobs.kind], knobs.together)

    kernels = tuple(
        replace(t, seconds=tuple(s * pace.of(_kernel_bytes(t.kernel) / s / usual) for s in t.seconds))
        for t in rates.kernels.timings
    )
    return replace(
        rates,
        slices={kind: moved(found, of_slice(kind)) for kind, found in rates.slices.items()},
        head=moved(rates.head, lambda _: head_bytes(model)),
        others=moved(rates.others, of_slice(REFERENCE)),
        kernels=replace(rates.kernels, timings=kernels),
        pace_seconds=_paces(rates, pace),
    )


def _paces(rates: PassRates, pace: Pace) -> dict[Kind, float]:
    seconds = rates.pace_seconds
    return {"prefill": seconds["prefill"] * pace.prefill, "decode": seconds["decode"] * pace.decode}


def _flat(found: Rates, timing: Timing) -> float | None:
    near = timing.depth == NEAR_BY_KIND[timing.knobs.kind]
    return None if near else flat_seconds(found, timing.knobs, timing.tokens)


def _moved(timing: Timing, flat: float | None, pace: Pace, alike: float) -> Timing:
    """A timing at another pace.

    Args:
        flat: seconds of it that pass where nothing lies before; all of them, if None.
        alike: seconds in which the reference reads as much as one pass does.
    """
    passes = timing.tokens if timing.knobs.kind == "decode" else 1
    if flat is None:
        seconds = [s * pace.of(passes * alike / s) for s in timing.seconds]
    else:
        waiting = flat * pace.of(passes * alike / flat)
        seconds = [waiting + max(0.0, s - flat) * pace.prefill for s in timing.seconds]
    return replace(timing, seconds=tuple(seconds))


def undone(timing: Timing, flat: float | None, pace: Pace, alike: float) -> Timing:
    """A timing that was taken at `pace` as it would be at the usual one, of which `flat` and `alike` are (`_moved`)."""
    now = alike * pace.decode
    if flat is not None:
        passes = timing.tokens if timing.knobs.kind == "decode" else 1
        flat *= pace.of(passes * alike / flat)
    return _moved(timing, flat, Pace(1 / pace.prefill, 1 / pace.decode), now)


def flat_seconds(found: Rates, knobs: Knobs, tokens: int) -> float | None:
    """Seconds under `knobs` where next to nothing lies before, if that was timed."""
    near = NEAR_BY_KIND[knobs.kind]
    known = (t.seconds for t in found.timings if (t.knobs, t.tokens, t.depth) == (knobs, tokens, near))
    return next((median(seconds) for seconds in known), None)


def _bytes(tensor: Tensor, kind: str, model: Model, batch: int) -> float:
    columns, rows, *stack = tensor.shape
    n_bytes = type_bytes(stock.fallback(kind, columns), columns * rows, columns)
    return n_bytes * min(stack[0], model.experts_used * batch) if stack else n_bytes


def _kernel_bytes(kernel: Kernel) -> float:
    n_bytes = type_bytes(kernel.type, kernel.rows * kernel.columns, kernel.columns)
    return n_bytes * max(1, min(kernel.experts, kernel.experts_used * kernel.batch))
