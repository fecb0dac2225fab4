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
_LONGEST_SAMPLE_SECONDS = 1.5
_HOPELESS = 1.25  # slower than the default by this factor in both phases: not looked at again
_ROUNDS, _DEEP_ROUNDS = 3, 2
_RESERVED = 0.3  # of the time, for the combination of what was best alone
_RETRIES = 3  # of a disturbed sample; then the best of them counts
_LEAST_CPU_SHARE = 0.7  # of wall × threads; spinning threads that run reach nearly 1


class Sessions:
    """One child process for each way to lay out the weights; only one at a time if memory is short."""

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
        self._open: dict[bool, Session] = {}

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
        """A session that runs `settings`."""
        settings = candidates.lean(settings, self.repacks)
        session = self._open.get(settings.repack)
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
            self._open[settings.repack] = session
        session.configure(settings)
        return session


class Tuner:
    """Collects `rates` until they decide, or until the time is over."""

    def __init__(
        self,
        sessions: Sessions,
        rates: Rates,
        *,
        seconds: float,
        patient: bool = False,
        passed: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`patient`: weights come from disk, so waiting is no sign of disturbance and samples stay small.

        `passed` is told how many seconds of the time given have gone, a few at a time.
        """
        self.rates = rates
        self._passed, self._told = passed, time.monotonic()
        self._sessions = sessions
        self._deadline = time.monotonic() + seconds
        self._patient = patient
        self._long = _SHORT
        self._steps = 2 if patient else _STEPS

    def look(self, tried: Sequence[Settings]) -> list[Settings]:
        """The cheap points of all of `tried` (the default first); returns those worth a longer look."""
        default = tried[0]
        if not self._patient:
            self._choose_sizes(default)
        for settings in tried:
            for kind, tokens, depth in self._cheap_points(settings, default):
                if settings == default or not self._over():
                    self._take(kind, settings, tokens, depth)
        return [s for s in tried if s == default or not self._hopeless(s, default)]

    def _choose_sizes(self, default: Settings) -> None:
        """Samples as long as they may be: short ones are all noise, long ones eat the time for rounds."""
        session = self._session(default)
        (prefill,) = session.time("prefill", _SHORT, 0, 1)
        (decode,) = session.time("decode", 2, _NEAR, 1)
        while self._long < 512 and 2 * self._long * prefill.seconds / _SHORT < _LONGEST_SAMPLE_SECONDS:
            self._long *= 2
        while self._steps < 32 and self._steps * decode.seconds < _LONGEST_SAMPLE_SECONDS / 10:
            self._steps *= 2

    def more(self, seconds: float) -> None:
        """So much more time is given."""
        self._deadline = time.monotonic() + seconds

    def rounds(self, tried: Sequence[Settings], count: int = _ROUNDS) -> None:
        """Every point of `tried`, `count` times in turn."""
        default = tried[0]
        for number in range(count):
            for settings in tried:
                for kind, tokens, depth in self._points(settings, default, deep=number < _DEEP_ROUNDS):
                    if self._over():
                        return
                    self._take(kind, settings, tokens, depth)

    def _points(self, settings: Settings, default: Settings, *, deep: bool) -> Iterable[Point]:
        yield from self._cheap_points(settings, default)
        if self._long > _SHORT and self._matters("prefill", settings, default):
            yield "prefill", self._long, 0
        if not deep or self._patient or settings.repack != default.repack:
            return  # attention does not see the layout
        if self._matters("prefill", settings, default):
            yield "prefill", self._long, _DEEP
        if self._matters("decode", settings, default):
            yield "decode", self._steps, _DEEP

    def _cheap_points(self, settings: Settings, default: Settings) -> Iterable[Point]:
        if self._matters("prefill", settings, default):
            yield "prefill", _SHORT, 0
        if self._matters("decode", settings, default):
            yield "decode", self._steps, _NEAR

    def _matters(self, kind: Kind, settings: Settings, default: Settings) -> bool:
        """The phase can differ from the default's: some knob of it does, and the timed prompts show it."""
        if settings == default:
            return True
        if kind == "prefill" and settings.micro_batch != default.micro_batch:
            return self._long > settings.micro_batch
        return Knobs.of(kind, settings) != Knobs.of(kind, default)

    def _take(self, kind: Kind, settings: Settings, tokens: int, depth: int) -> None:
        knobs = Knobs.of(kind, settings)
        session = self._session(settings)
        self.rates = self.rates.with_footprint(session.settings, session.memory)
        best = session.time(kind, tokens, depth, 1)[0]
        for _ in range(_RETRIES):
            if self._patient or self._over() or not disturbed(best, knobs.threads):
                break
            self.rates = replace(self.rates, disturbed=self.rates.disturbed + 1)
            again = session.time(kind, tokens, depth, 1)[0]
            best = min(best, again, key=lambda sample: sample.seconds)
        self.rates = self.rates.add(knobs, tokens, depth, (best.seconds,))
        now = time.monotonic()
        self._passed(now - self._told)
        self._told = now

    def _session(self, settings: Settings) -> Session:
        return self._sessions.under(replace(settings, context_tokens=_DEEP + 1024))

    def _seconds(self, knobs: Knobs, tokens: int, depth: int) -> tuple[float, ...]:
        return next(t.seconds for t in self.rates.points(knobs) if (t.tokens, t.depth) == (tokens, depth))

    def _hopeless(self, settings: Settings, default: Settings) -> bool:
        """Never timed, or much slower than the default in every phase that differs."""
        slower = []
        for kind, tokens, depth in self._cheap_points(settings, default):
            mine, theirs = Knobs.of(kind, settings), Knobs.of(kind, default)
            if not self.rates.points(mine):
                return True
            slower.append(min(self._seconds(mine, tokens, depth)) / min(self._seconds(theirs, tokens, depth)))
        return min(slower, default=float("inf")) > _HOPELESS

    def _over(self) -> bool:
        return time.monotonic() > self._deadline


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
    tuner = Tuner(sessions, rates, seconds=seconds * (1 - _RESERVED), patient=patient, passed=passed)
    new = [s for s in tried if not rates.was_tried(s)]
    if new:
        tuner.rounds(tuner.look(list(dict.fromkeys([default, *new]))), count=1 if patient else _ROUNDS)
        tuner.rates = tuner.rates.with_tried(new)
    tuner.more(seconds * _RESERVED)
    best = shortlist(tuner.rates, default, tried, workload, sessions.repacks)
    if not timed(tuner.rates, best):
        tuner.look([default, best])
        tuner.rounds([default, best], count=1 if patient else _ROUNDS)
    return tuner.rates


def timed(rates: Rates, settings: Settings) -> bool:
    """Both phases were timed under `settings`."""
    return bool(rates.points(Knobs.of("prefill", settings)) and rates.points(Knobs.of("decode", settings)))


def shortlist(
    rates: Rates, default: Settings, tried: Sequence[Settings], workload: Workload, repacks: bool
) -> Settings:
    """The combination that should be fastest for the workload, judged by what each knob did alone."""
    best, least = default, float("inf")
    for settings in candidates.combinations(default, [s for s in tried if timed(rates, s)], repacks):
        guess = candidates.composed(rates, default, settings)
        seconds = speed.total_seconds(guess, settings, workload.prompt_tokens, workload.answer_tokens)
        if seconds is not None and seconds.value < least:
            best, least = settings, seconds.value
    return best


def cache_kld(sessions: Sessions, default: Settings, text: str, tokens: int = 256) -> float:
    """Mean KL divergence in nats per token of a q8_0 cache to the f16 cache, on `text`."""
    settings = replace(default, context_tokens=tokens)
    session = sessions.under(settings)
    ids = session.tokenize(text)[:tokens]
    reference = [rows.copy() for rows in session.logits(ids)]
    quantized = sessions.under(replace(settings, cache_type="q8_0"))
    sums = [_kld(a, b) for a, b in zip(reference, quantized.logits(ids), strict=True)]
    return float(sum(sums) / len(ids))


def _kld(reference: np.ndarray, other: np.ndarray) -> float:
    """Sum over rows of KL(softmax(reference) ‖ softmax(other)); both of shape (rows, vocabulary)."""
    import numpy as np

    p, q = (_log_softmax(x.astype(np.float64)) for x in (reference, other))
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(x: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = x - x.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
