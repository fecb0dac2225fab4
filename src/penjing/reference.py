"""Slices in one type whose sessions stay open while other things are timed: they tell the machine's pace."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Self

from penjing import slices
from penjing.cost import pace
from penjing.cost.pace import Pace
from penjing.cost.passes import REFERENCE, WAVES, Way
from penjing.cost.variants import NEAR_BY_KIND
from penjing.engines.base import Engine, Session
from penjing.figures import Measurement
from penjing.gguf.header import Header
from penjing.model import Model
from penjing.plan import Settings
from penjing.quality import stock
from penjing.quantize.native import Native
from penjing.rates import Kind, PassRates

SLICE_VOCABULARY = 256
_CONTEXT = 2304  # tokens
_START_SECONDS = 120.0
_PACE_TOKENS, _PACE_STEPS = 32, 4
_SAMPLE_SECONDS, _MOST_REPEATS = 0.07, 8
_LOOK_SECONDS = 4.0


class Reference:
    """A folder of slices of one model, and sessions of two of them: one for each phase, as the wheel runs them."""

    def __init__(
        self, header: Header, model: Model, layers: Mapping[Kind, int], threads: int, engine: Engine, native: Native
    ) -> None:  # fmt: skip
        self._header, self._model, self._layers, self._threads = header, model, layers, threads
        self._engine, self._native = engine, native
        self._paces: dict[Kind, list[float]] = {"prefill": [], "decode": []}
        self._repeats: dict[Kind, int] = {"prefill": 1, "decode": 1}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penjing-slices-")))
            self._sessions: dict[Kind, Session] = {
                kind: stack.enter_context(self.open(self.slice(REFERENCE, kind, kind), Way("wheel", False)))
                for kind in self._layers
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def slice(self, kind: str, phase: Kind, name: str) -> Path:
        """A file with as many layers as timings of `phase` need, all matrices in the type `kind`."""
        return self.write(kind, self._layers[phase], SLICE_VOCABULARY, name)

    def write(self, kind: str, layers: int, vocabulary: int, name: str) -> Path:
        path = self._folder / name
        slices.write(self._header, stock.uniform(self._model, kind), layers, vocabulary, path, self._native)
        return path

    def file(self, phase: Kind) -> Path:
        """The slice whose session tells the pace."""
        return self._folder / phase

    def open(self, path: Path, way: Way) -> Session:
        """A session of a slice."""
        settings = Settings(
            self._threads,
            self._threads,
            way.repack,
            way.repack,
            context_tokens=_CONTEXT,
            mapped=not way.repack,
            build=way.build,
        )
        return self._engine.open(path, settings, start_seconds=_START_SECONDS)

    def sample(self, kind: Kind) -> float:
        """Seconds a token that the reference takes now."""
        tokens, depth = (_PACE_STEPS, NEAR_BY_KIND["decode"]) if kind == "decode" else (_PACE_TOKENS, 0)
        samples = self._sessions[kind].time(kind, tokens, depth, self._repeats[kind])
        seconds = median(s.seconds / s.tokens for s in samples)
        self._paces[kind].append(seconds)
        self._repeats[kind] = max(1, min(_MOST_REPEATS, round(_SAMPLE_SECONDS / seconds / tokens)))
        return seconds

    def recent(self, usual: Mapping[Kind, float], samples: int) -> Pace:
        """Pace of the median of the last samples: what disturbed one of them did not slow the machine down."""
        now = {kind: median(seconds[-samples:]) for kind, seconds in self._paces.items()}
        return Pace(**{kind: now[kind] / seconds for kind, seconds in usual.items()})

    def look(self) -> dict[Kind, float]:
        """Seconds a token by phase, the median over a few seconds."""
        samples: dict[Kind, list[float]] = {kind: [] for kind in self._layers}
        end = time.monotonic() + _LOOK_SECONDS
        while time.monotonic() < end:
            for kind in self._layers:
                samples[kind].append(self.sample(kind))
        return {kind: median(seconds) for kind, seconds in samples.items()}

    def usual(self) -> dict[Kind, float]:
        """Seconds a token by phase, the median of all that were taken."""
        return {kind: median(seconds) for kind, seconds in self._paces.items()}

    @property
    def spread(self) -> float:
        """Relative deviation of the samples, of the phase where it is larger."""
        found = [Measurement.of(seconds) for seconds in self._paces.values() if len(seconds) > 1]
        return max((m.spread / m.value for m in found if m.spread), default=0.0)

    def at_present(self, rates: PassRates) -> PassRates:
        """Rates at the pace that the machine has now."""
        now = self.look()
        paces = {kind: _believed(now[kind] / usual) for kind, usual in rates.pace_seconds.items()}
        return pace.at(rates, self._model, Pace(**paces))


def _believed(slowness: float) -> float:
    """What a look of a few seconds says beyond the waves that come and go all the time."""
    beyond = max(0.0, abs(math.log(slowness)) - WAVES)
    return math.exp(math.copysign(beyond, math.log(slowness)))
