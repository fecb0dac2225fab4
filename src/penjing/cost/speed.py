"""Seconds of a workload from timings at a few points.

Prefill of n tokens from an empty cache costs  s(n) + e·n²/2  seconds: the weights' arithmetic, between two
timed lengths on the line through them and beyond the longest in proportion, and attention over what lies
before each token. Decode at depth d costs  a + b·d  seconds a token.

The attention shares (e and b) do not depend on how weights are laid out. They are therefore taken from
whichever timing with the same flash attention and cache type has a second depth.

Everything is linear in the medians of the timed points, and is kept that way (`Seconds`): so the error of
a difference between two settings leaves out what both share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache

from msgspec import Struct
from msgspec.structs import replace

from penjing.figures import Estimate, Measurement
from penjing.plan import Drafting, Settings
from penjing.rates import Knobs, Rates, Timing

# What runs differ by between one minute and the next on the same machine, beyond the spread of a short
# series: half-width of the interval, relative. Seen on shared virtual machines; see docs/log.md.
_DRIFT = 0.08
_MOST_ATTENTION = 0.5  # of the time of a token at the least depth timed, which is short
_SINGLE_ERROR = 0.05  # of a point with one sample, relative


class Seconds:
    """A time as a weighted sum of timed points: its value and its standard error follow from theirs."""

    def __init__(self, terms: Mapping[Timing, float]) -> None:
        self.terms = dict(terms)

    @property
    def value(self) -> float:
        return sum(weight * _median(timing).value for timing, weight in self.terms.items())

    @property
    def error(self) -> float:
        return math.hypot(*(weight * (_median(timing).error or 0) for timing, weight in self.terms.items()))

    def __add__(self, other: Seconds) -> Seconds:
        both = self.terms.keys() | other.terms.keys()
        return Seconds({t: self.terms.get(t, 0.0) + other.terms.get(t, 0.0) for t in both})

    def __sub__(self, other: Seconds) -> Seconds:
        return self + other * -1

    def __mul__(self, factor: float) -> Seconds:
        return Seconds({timing: weight * factor for timing, weight in self.terms.items()})

    def per(self, count: float) -> Estimate:
        """The rate `count / seconds`, with the interval of `estimate`."""
        return self.estimate().map(lambda s: count / s)

    @property
    def doubt(self) -> float:
        """By how much the sum may be off where its terms were composed; all in one direction at worst."""
        return sum(abs(weight) * _median(t).value * t.doubt for t, weight in self.terms.items())

    def estimate(self) -> Estimate:
        """The value with an interval of two standard errors, the drift and the doubt."""
        value, doubt = self.value, self.doubt
        half = min(0.9, _DRIFT + (2 * self.error + doubt) / value)
        return Estimate(value, value * (1 - half), value * (1 + half), "fitted" if doubt else "measured")


_NOTHING = Seconds({})


def prefill_seconds(rates: Rates, settings: Settings, tokens: int) -> Seconds | None:
    """Time to process a prompt of `tokens` tokens from an empty cache; None if never timed."""
    knobs = Knobs.of("prefill", settings)
    flat = sorted((t for t in rates.points(knobs) if t.depth == 0), key=lambda t: t.tokens)
    share = _attention_share(rates, knobs)
    if not flat or share is None:
        return None
    bases = {t.tokens: Seconds({t: 1}) - share * (t.tokens**2 / 2) for t in flat}
    return _at(bases, tokens) + share * (tokens**2 / 2)


def decode_seconds(rates: Rates, settings: Settings, depth: int, tokens: int) -> Seconds | None:
    """Time to generate `tokens` tokens after `depth` others, for every sequence at once; None if never timed."""
    knobs = Knobs.of("decode", settings)
    points = sorted(rates.points(knobs), key=lambda t: t.depth)
    share = _attention_share(rates, knobs)
    if not points or share is None:
        return None
    first = points[0]
    middle = first.depth + first.tokens / 2
    here = Seconds({first: 1 / first.tokens})
    # a disturbed timing at depth, which would gain below it
    if share.value * middle > _MOST_ATTENTION * here.value:
        share = share * (_MOST_ATTENTION * here.value / (share.value * middle))
    one = here + share * (depth + tokens / 2 - middle)
    return one * tokens


class Request(Struct, frozen=True):
    """What one request of several users takes, each of whom asks again as soon as he is answered.

    Every step of decode gives each of n users a token. While the engine works on a prompt the others wait, so that
    in the time of a request each of the n prompts is worked on once: total = n·p + d, with p the time of a prompt and
    d that of the steps.

    Units:
        prefill: a prompt alone. steps: the steps of an answer alone. decode: the answer, with the waits in it.
        first: until the first token, as a rule. first_at_worst: where all users ask at the same moment.
    """

    prefill: Seconds
    steps: Seconds
    users: int
    answer_tokens: int

    @property
    def decode(self) -> Seconds:
        return self.steps + self.prefill * (self.users - 1)

    @property
    def total(self) -> Seconds:
        return self.prefill + self.decode

    @property
    def first(self) -> Estimate:
        """Alone, the prompt. With others, half of what they ask in the share of time that goes to prompts.

        Low is the prompt by itself, high is where all ask at once: all prompts, and a step before and after.
        """
        alone = self.prefill.estimate()
        if self.users == 1 or alone.value is None:
            return alone
        step = self.steps * (1 / self.answer_tokens)
        busy = self.users * self.prefill.value / self.total.value
        usual = self.prefill * (1 + busy * (self.users - 1) / 2) + step
        worst = self.prefill * self.users + step * 2
        return replace(usual.estimate(), low=alone.low, high=worst.estimate().high)


def request(rates: Rates, settings: Settings, prompt_tokens: int, answer_tokens: int) -> Request | None:
    """A request of one of `settings.sequences` users; None if a phase was never timed."""
    prefill = prefill_seconds(rates, settings, prompt_tokens)
    decode = decode_seconds(rates, settings, prompt_tokens, answer_tokens)
    if prefill is None or decode is None:
        return None
    return Request(prefill, decode, settings.sequences, answer_tokens)


def total_seconds(rates: Rates, settings: Settings, prompt_tokens: int, answer_tokens: int) -> Seconds | None:
    """Time of one request, prompt and answer; None if a phase was never timed."""
    found = request(rates, settings, prompt_tokens, answer_tokens)
    return None if found is None else found.total


def weights(points: Iterable[int], tokens: int) -> dict[int, float]:
    """What the time of each of `points` counts in that of `tokens` tokens.

    Between two points on their line, outside in proportion to the nearest.
    """
    known = sorted(points)
    below = max((n for n in known if n <= tokens), default=None)
    above = min((n for n in known if n >= tokens), default=None)
    if below is None or above is None:
        nearest = above if below is None else below
        assert nearest is not None
        return {nearest: tokens / nearest}
    share = (tokens - below) / (above - below) if above > below else 0.0
    return {above: share, below: 1 - share}  # the second wins where both are one


def _at(bases: Mapping[int, Seconds], tokens: int) -> Seconds:
    total = _NOTHING
    for n, weight in weights(bases, tokens).items():
        total = total + bases[n] * weight
    return total


def _attention_share(rates: Rates, knobs: Knobs) -> Seconds | None:
    """Seconds per token and position before it; zero if nobody looked at depth, None if only others did.

    Heads are shared out among threads, so that a share timed with other threads is scaled by their number.
    """
    pairs = [
        (deep, flat)
        for deep in rates.timings
        for flat in rates.timings
        if (deep.knobs, deep.tokens) == (flat.knobs, flat.tokens)
        and _steps(deep.knobs) == _steps(knobs)
        and deep.depth > flat.depth
    ]
    alike = [pair for pair in pairs if _attention(pair[0].knobs) == _attention(knobs)]
    if not alike:
        return None if pairs else _NOTHING
    deep, flat = min(alike, key=lambda p: _distance(p[0].knobs, knobs))
    scale = deep.knobs.threads / knobs.threads / (deep.tokens * (deep.depth - flat.depth))
    share = (Seconds({deep: 1}) - Seconds({flat: 1})) * scale
    return share if share.value > 0 else _NOTHING


def _distance(one: Knobs, other: Knobs) -> tuple[bool, bool, bool]:
    return one != other, one.build != other.build, one.threads != other.threads


def _steps(knobs: Knobs) -> tuple[str, int, Drafting]:
    return knobs.kind, knobs.together, knobs.drafting


def _attention(knobs: Knobs) -> tuple[str, str]:
    return knobs.flash_attention, knobs.cache_type


@cache
def _median(timing: Timing) -> Measurement:
    measured = Measurement.of(timing.seconds)
    if measured.count == 1:
        return Measurement(measured.value, 1, _SINGLE_ERROR * measured.value / 1.2533)
    return measured
