"""Seconds of a workload from timings at a few points.

Prefill of n tokens at depth d costs  t0 + c·n + e·n·(d + n/2)  seconds: a start-up share, the weights'
arithmetic, and attention over what lies before each token. Decode at depth d costs  a + b·d  seconds a
token. Both are linear in the measured medians, so their errors add in quadrature by the same weights.

The attention shares (e and b) do not depend on how weights are laid out. They are therefore taken from
whichever timing with the same threads, flash attention and cache type has a second depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from penjing.figures import Estimate, Measurement
from penjing.plan import Settings
from penjing.rates import Knobs, Rates, Timing

# What runs differ by between one minute and the next on the same machine, beyond the spread of a short
# series: half-width of the interval, relative. Seen on shared virtual machines; see docs/log.md.
_DRIFT = 0.08


class Seconds(Struct, frozen=True):
    """A time and its standard error."""

    value: float
    error: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.value + other.value, math.hypot(self.error, other.error))

    def times(self, factor: float) -> Seconds:
        return Seconds(self.value * factor, self.error * abs(factor))

    def minus(self, other: Seconds) -> Seconds:
        return self + other.times(-1)

    def per(self, count: float) -> Estimate:
        """The rate `count / seconds` with an interval of two standard errors and the drift."""
        return self.estimate().map(lambda s: count / s)

    def estimate(self) -> Estimate:
        half = min(0.9, _DRIFT + 2 * self.error / self.value)
        return Estimate(self.value, self.value * (1 - half), self.value * (1 + half), "measured")


_NOTHING = Seconds(0.0, 0.0)


def prefill_seconds(rates: Rates, settings: Settings, tokens: int) -> Seconds | None:
    """Time to process a prompt of `tokens` tokens from an empty cache; None if never timed."""
    knobs = Knobs.of("prefill", settings)
    flat = sorted((t for t in rates.points(knobs) if t.depth == 0), key=lambda t: t.tokens)
    if not flat:
        return None
    attention = _attention_share(rates, knobs)
    bases = [(t.tokens, _median(t).minus(attention.times(t.tokens**2 / 2))) for t in flat]
    return _along(bases, tokens) + attention.times(tokens**2 / 2)


def decode_seconds(rates: Rates, settings: Settings, depth: int, tokens: int) -> Seconds | None:
    """Time to generate `tokens` tokens after `depth` others; None if never timed."""
    knobs = Knobs.of("decode", settings)
    points = sorted(rates.points(knobs), key=lambda t: t.depth)
    if not points:
        return None
    first = points[0]
    share = _attention_share(rates, knobs)
    middle = depth + tokens / 2
    timed_at = first.depth + first.tokens / 2
    one = _median(first).times(1 / first.tokens) + share.times(middle - timed_at)
    return one.times(tokens)


def total_seconds(rates: Rates, settings: Settings, prompt_tokens: int, answer_tokens: int) -> Seconds | None:
    """Time of one request, prompt and answer; None if a phase was never timed."""
    prefill = prefill_seconds(rates, settings, prompt_tokens)
    decode = decode_seconds(rates, settings, prompt_tokens, answer_tokens)
    return None if prefill is None or decode is None else prefill + decode


def _along(bases: Sequence[tuple[int, Seconds]], tokens: int) -> Seconds:
    """Seconds at `tokens` on the line through the smallest and the largest point, or by proportion."""
    (n0, s0), (n1, s1) = bases[0], bases[-1]
    if n0 == n1 or tokens <= n0 or s1.value <= s0.value:
        return s1.times(tokens / n1) if tokens > n0 else s0.times(max(tokens / n0, 1 / n0))
    share = (tokens - n0) / (n1 - n0)
    return s0.times(1 - share) + s1.times(share)


def _attention_share(rates: Rates, knobs: Knobs) -> Seconds:
    """Seconds per token and position before it; zero where no two depths were timed."""
    alike = [t for t in rates.timings if _attends_alike(t.knobs, knobs)]
    for deep in sorted(alike, key=lambda t: (t.knobs != knobs, -t.depth)):
        for flat in alike:
            if (flat.knobs, flat.tokens) == (deep.knobs, deep.tokens) and flat.depth < deep.depth:
                slope = _median(deep).minus(_median(flat)).times(1 / (deep.tokens * (deep.depth - flat.depth)))
                return slope if slope.value > 0 else _NOTHING
    return _NOTHING


def _attends_alike(one: Knobs, other: Knobs) -> bool:
    return (one.kind, one.threads, one.flash_attention, one.cache_type) == (
        other.kind,
        other.threads,
        other.flash_attention,
        other.cache_type,
    )


def _median(timing: Timing) -> Seconds:
    measured = Measurement.of(timing.seconds)
    return Seconds(measured.value, measured.error if measured.error is not None else 0.1 * measured.value)
