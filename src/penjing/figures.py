"""Numbers that know where they come from.

Figure       one value and its source
Estimate     a predicted value between a low and a high
Measurement  a measured value with the number of samples and their spread
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

Source = Literal["measured", "datasheet", "fitted", "assumed"]


class Figure(Struct, frozen=True):
    """A number and its source. `value` is None where nobody knows; it is never 0 or a guess instead."""

    value: float | None
    source: Source
    note: str = ""


class Estimate(Struct, frozen=True):
    """A prediction: `low ≤ value ≤ high`, or all three None where nothing can be said."""

    value: float | None
    low: float | None
    high: float | None
    source: Source

    @classmethod
    def unknown(cls) -> Estimate:
        return cls(None, None, None, "assumed")

    @classmethod
    def exact(cls, value: float, source: Source) -> Estimate:
        return cls(value, value, value, source)

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of `function(x)` for a monotone function, rising or falling."""
        if self.value is None or self.low is None or self.high is None:
            return self
        ends = sorted((function(self.low), function(self.high)))
        return Estimate(function(self.value), ends[0], ends[1], self.source)

    def __add__(self, other: Estimate) -> Estimate:
        """The sum, as unsure as if both were off in the same direction; unknown where one of them is."""
        mine, theirs = (self.low, self.value, self.high), (other.low, other.value, other.high)
        if None in mine or None in theirs:
            return Estimate.unknown()
        low, value, high = (a + b for a, b in zip(mine, theirs, strict=True))  # type: ignore[operator]
        return Estimate(value, low, high, self.source)

    def contains(self, value: float) -> bool:
        return self.low is not None and self.high is not None and self.low <= value <= self.high


class Measurement(Struct, frozen=True):
    """What was measured: the median of `count` samples and their spread.

    Units:
        value: whatever the name of the field that holds it says.
        spread: the median absolute deviation times 1.4826, in the unit of `value`; for a normal
            distribution that is its standard deviation. None for a single sample.
    """

    value: float
    count: int
    spread: float | None
    source: Literal["measured"] = "measured"

    @classmethod
    def of(cls, samples: Sequence[float]) -> Measurement:
        """Raises statistics.StatisticsError when there is no sample."""
        middle = statistics.median(samples)
        if len(samples) < 2:
            return cls(middle, len(samples), None)
        return cls(middle, len(samples), 1.4826 * statistics.median(abs(x - middle) for x in samples))

    @property
    def error(self) -> float | None:
        """Standard error of the median (1.2533 standard deviations over √count, for normal samples)."""
        return None if self.spread is None else 1.2533 * self.spread / math.sqrt(self.count)
