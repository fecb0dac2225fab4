"""Short, interleaved measurements of the real model under the settings that are worth it.

Rounds go A B C A B C, so that a change of the machine's pace hits all alike. A sample whose threads did
not get their cores is thrown away and taken again. What is hopeless after the cheap first look is not
measured further, so that the time goes to where the decision is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from msgspec.structs import replace

from penjing.cost import speed
from penjing.engines.base import Engine, Sample, Session
from penjing.plan import Settings
from penjing.rates import Knobs, Rates
from penjing.search import candidates
from penjing.workload import Workload

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["prefill", "decode"]
Point = tuple[Kind, int, int]  # tokens, after so many others
_SHORT, _STEPS, _NEAR, _DEEP = 32, 8, 64, 1024  # tokens of a short prefill, least of a decode sample; depths
_LONGEST_SAMPLE_SECONDS = 1.8  # that sizes are chosen for
_MOST_SAMPLE_SECONDS = 5.0  # where a sample turns out slower than that, decode ends it here
_HOPELESS = 1.25  # slower than the reference by this factor in both phases: not looked at again
_ROUNDS, _DEEP_ROUNDS = 3, 2
_RESERVED = 0.2  # of the time, for the combination of what was best alone
_OVERTIME_SECONDS = 10.0  # for the reference, which should be timed at every point once
_PROMISE = 0.05  # less than this share of the time is not worth another series
_RETRIES = 3  # of a disturbed sample; then the best of them counts
_LEAST_CPU_SHARE = 0.7  # of wall × threads; spinning threads that run reach nearly 1


class Sessions:
    """One child process for each build and layout of the weights; only one at a time if memory is short."""

    def __init__(
        self,
        engine: Engine,
        model: Path,
        *,
        together: bool,
        repacks: bool,
        start_seconds: float,
        check_weights: bool,
        warm_up: bool,
    ) -> None:
        self._engine, self._model = engine, model
        self._together, self.repacks = together, repacks
        self._start_seconds, self._check, self._warm_up = start_seconds, check_weights, warm_up
        self._open: dict[tuple[bool, str], Session] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].__exit__(None, None, None)

    def under(self, settings: Settings) -> Session:
        """A session that runs `settings`, which use one layout of the weights for both phases."""
        settings = candidates.lean(settings, self.repacks)
        layout = settings.repack, settings.build
        session = self._open.get(layout)
        if session is None:
            if not self._together:
                self.close()
            session = self._engine.open(
                self._model,
                settings,
                start_seconds=self._start_seconds,
                check_weights=self._check,
                warm_up=self._warm_up,
            )
            self._check = False  # once is enough for a file
            self._open[layout] = session
        session.configure(settings)
        return session


class Tuner:
    """Collects `rates` until they decide, or until the time is over.

    Everything is compared with a reference: the engine's default, or the same with another number of
    threads where that is much faster, as it is beside other work (threads that spin at barriers for
    each other then make two of them slower than one, by a factor of up to 100).
    """

    def __init__(
        self,
        sessions: Sessions,
        rates: Rates,
        default: Settings,
        *,
        seconds: float,
        patient: bool = False,
        passed: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`patient`: weights come from disk, so waiting is no sign of disturbance and samples stay small.

        `passed` is told how many seconds of the time given have gone, a few at a time.
        """
        self.rates, self.default, self.reference = rates, default, default
        self._passed, self._told = passed, time.monotonic()
        self._sessions = sessions
        self._deadline = time.monotonic() + seconds
        self._patient = patient
        self._long = _SHORT
        self._steps = 2 if patient else _STEPS

    def look(self, tried: Sequence[Settings]) -> list[Settings]:
        """The cheap points of all of `tried`; returns what deserves a longer look, the reference first."""
        if not self._patient:
            self._choose_sizes()
        by_threads = [s for s in tried if _alike_but_threads(s, self.default)]
        others = [s for s in tried if s not in by_threads]
        self._glance([self.default, *by_threads])
        self.reference = min([self.default, *by_threads], key=self._slowness)
        others = [_with_threads_of(s, self.reference) for s in others]
        self._glance(others)
        hopeful = [s for s in (self.default, *by_threads, *others) if not self._hopeless(s)]
        return list(dict.fromkeys([self.reference, *hopeful]))

    def _glance(self, tried: Iterable[Settings]) -> None:
        for settings in tried:
            for kind, tokens, depth in self._cheap_points(settings):
                if settings == self.default or not self._over():
                    self._take(kind, settings, tokens, depth, retries=0)

    def _slowness(self, settings: Settings) -> float:
        """By how much slower than the default in its better phase; to replace it takes a clear gain in both."""
        if settings == self.default:
            return 1 / _HOPELESS
        return max(self._ratios(settings, self.default), default=float("inf"))

    def _choose_sizes(self) -> None:
        """Samples as long as they may be: short ones are all noise, long ones eat the time for rounds."""
        session = self._session(self.default)
        (prefill,) = session.time("prefill", _SHORT, 0, 1)
        (decode,) = session.time("decode", 1, _NEAR, 1, together=self.default.sequences)
        while self._long < 512 and 2 * self._long * prefill.seconds / _SHORT < _LONGEST_SAMPLE_SECONDS:
            self._long *= 2
        while self._steps < 32 and 2 * self._steps * decode.seconds < _LONGEST_SAMPLE_SECONDS / 5:
            self._steps *= 2

    def more(self, seconds: float) -> None:
        """So much more time is given."""
        self._deadline = time.monotonic() + seconds

    def rounds(self, tried: Sequence[Settings], count: int) -> None:
        """Every point of `tried`, `count` times in turn."""
        for number in range(count):
            for settings in tried:
                for kind, tokens, depth in self._points(settings, deep=number < _DEEP_ROUNDS):
                    first = number == 0 and settings == self.reference
                    if self._over(_OVERTIME_SECONDS if first else 0):
                        break
                    self._take(kind, settings, tokens, depth, _RETRIES)

    def _points(self, settings: Settings, *, deep: bool) -> Iterable[Point]:
        yield from self._cheap_points(settings)
        if self._long > _SHORT and self._matters("prefill", settings):
            yield "prefill", self._long, 0
        if not deep or self._patient or settings.split:
            return
        if settings.repack != self.reference.repack and settings.build == self.reference.build:
            return  # attention does not see the layout
        if self._matters("prefill", settings):
            yield "prefill", self._long, _DEEP
        if self._matters("decode", settings) and (depth := self._deep(settings)) > 2 * _NEAR:
            yield "decode", self._steps, depth

    def _deep(self, settings: Settings) -> int:
        """Many sequences are looked at no deeper than the plan lets them grow: the caches of all have to fit."""
        if settings.sequences == 1:
            return _DEEP
        return min(_DEEP, settings.context_tokens // settings.sequences - self._steps - 2)

    def _cheap_points(self, settings: Settings) -> Iterable[Point]:
        if self._matters("prefill", settings):
            yield "prefill", _SHORT, 0
        if self._matters("decode", settings):
            yield "decode", self._steps, _NEAR

    def _matters(self, kind: Kind, settings: Settings) -> bool:
        """The phase can differ from the reference's: some knob of it does, and the timed prompts show it."""
        if settings == self.reference:
            return True
        if kind == "prefill" and settings.micro_batch != self.reference.micro_batch:
            return self._long > settings.micro_batch
        return Knobs.of(kind, settings) != Knobs.of(kind, self.reference)

    def _take(self, kind: Kind, settings: Settings, tokens: int, depth: int, retries: int) -> None:
        knobs = Knobs.of(kind, settings)
        session = self._session(candidates.relaid(settings, knobs.repack))
        self.rates = self.rates.with_footprint(session.settings, session.memory)
        best = session.time(kind, tokens, depth, 1, _MOST_SAMPLE_SECONDS, knobs.together)[0]
        for _ in range(retries):
            if self._patient or self._over() or not disturbed(best, knobs.threads):
                break
            self.rates = replace(self.rates, disturbed=self.rates.disturbed + 1)
            again = session.time(kind, tokens, depth, 1, _MOST_SAMPLE_SECONDS, knobs.together)[0]
            best = min(best, again, key=lambda sample: sample.seconds)
        self.rates = self.rates.add(knobs, tokens, depth, (best.seconds * tokens / best.tokens,))
        now = time.monotonic()
        self._passed(now - self._told)
        self._told = now

    def _session(self, settings: Settings) -> Session:
        return self._sessions.under(replace(settings, context_tokens=_DEEP + 1024))

    def _hopeless(self, settings: Settings) -> bool:
        """Never timed, or much slower than the reference in every phase that differs."""
        return min(self._ratios(settings, self.reference), default=float("inf")) > _HOPELESS

    def _ratios(self, settings: Settings, other: Settings) -> list[float]:
        """Time over that of `other` at the cheap points that were taken of both."""
        ratios = []
        points: tuple[Point, ...] = (("prefill", _SHORT, 0), ("decode", self._steps, _NEAR))
        for kind, tokens, depth in points:
            mine, theirs = (self._least(Knobs.of(kind, s), tokens, depth) for s in (settings, other))
            if mine is not None and theirs is not None and Knobs.of(kind, settings) != Knobs.of(kind, other):
                ratios.append(mine / theirs)
        return ratios

    def _least(self, knobs: Knobs, tokens: int, depth: int) -> float | None:
        points = [t for t in self.rates.points(knobs) if (t.tokens, t.depth) == (tokens, depth)]
        return min(points[0].seconds) if points else None

    def _over(self, overtime_seconds: float = 0) -> bool:
        return time.monotonic() > self._deadline + overtime_seconds


def disturbed(sample: Sample, threads: int) -> bool:
    """Other work took the cores: the threads got much less CPU time than they waited."""
    return sample.cpu_seconds < _LEAST_CPU_SHARE * threads * sample.seconds


def tune(
    sessions: Sessions,
    rates: Rates,
    tried: Sequence[Settings],
    workload: Workload,
    *,
    seconds: float,
    patient: bool = False,
    passed: Callable[[float], None] = lambda _: None,
) -> Rates:
    """Rates that decide between `tried` (the engine's default first) and their combinations."""
    default = tried[0]
    given = seconds * (1 - _RESERVED)
    tuner = Tuner(sessions, rates, default, seconds=given, patient=patient, passed=passed)
    count = 1 if patient else _ROUNDS
    new = [s for s in tried if not rates.was_tried(s)]
    if new:
        tuner.rounds(tuner.look([s for s in new if s != default]), count)
        tuner.rates = tuner.rates.with_tried(new)
    tuner.more(seconds * _RESERVED)
    best = promising(tuner.rates, default, tried, workload, sessions.repacks)
    if best is not None:
        tuner.rounds(list(dict.fromkeys([*tuner.look([best]), best])), count)
    return tuner.rates


def _alike_but_threads(settings: Settings, other: Settings) -> bool:
    return candidates.lean(_with_threads_of(settings, other), False) == candidates.lean(other, False)


def _with_threads_of(settings: Settings, other: Settings) -> Settings:
    return replace(settings, threads=other.threads, prefill_threads=other.prefill_threads)


def timed(rates: Rates, settings: Settings) -> bool:
    """Both phases were timed under `settings`."""
    return bool(rates.points(Knobs.of("prefill", settings)) and rates.points(Knobs.of("decode", settings)))


def promising(
    rates: Rates, default: Settings, tried: Sequence[Settings], workload: Workload, repacks: bool
) -> Settings | None:
    """A combination that was not timed and should beat all that were by a margin; None if there is none.

    It is judged by what each of its knobs did alone.
    """
    best, least = None, float("inf")
    for settings in candidates.combinations(default, tried, repacks):
        known = timed(rates, settings)
        guess = rates if known else candidates.composed(rates, default, settings)
        if guess is None:
            continue
        seconds = speed.total_seconds(guess, settings, workload.prompt_tokens, workload.answer_tokens)
        needed = 1.0 if known else 1 - _PROMISE
        if seconds is not None and seconds.value / needed < least:
            best, least = (None if known else settings), seconds.value / needed
    return best


def cache_kld(session: Session, text: str, tokens: int = 256) -> float:
    """Mean KL divergence in nats per token of a q8_0 cache to the f16 cache, on `text`."""
    settings = replace(session.settings, context_tokens=tokens, cache_type="f16")
    session.configure(settings)
    ids = session.tokenize(text)[:tokens]
    reference = [rows.copy() for rows in session.logits(ids)]
    session.configure(replace(settings, cache_type="q8_0"))
    sums = [_kld(a, b) for a, b in zip(reference, session.logits(ids), strict=True)]
    return float(sum(sums) / len(ids))


def _kld(reference: np.ndarray, other: np.ndarray) -> float:
    """Sum over rows of KL(softmax(reference) ‖ softmax(other)); both of shape (rows, vocabulary)."""
    import numpy as np

    from penjing.evaluate import log_softmax

    p, q = log_softmax(reference), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(dtype=np.float64))
