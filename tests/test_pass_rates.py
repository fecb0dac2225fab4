"""How passes over slices are timed, where the machine does not hold still."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from penjing import pass_rates
from penjing.cost.variants import LONG, SMALL_BATCH
from penjing.engines.base import Sample
from penjing.plan import Settings
from penjing.rates import Knobs, Rates

USUAL = Settings(2, 2, False, False)


class Restless:
    """A session whose machine gets slower with every pass, and was disturbed during one of them."""

    def __init__(self, ratio: float, drift: float, disturbed: int) -> None:
        self.settings, self._ratio, self._drift, self._disturbed = USUAL, ratio, drift, disturbed
        self._passes = count()

    def configure(self, settings: Settings) -> None:
        self.settings = settings

    def time(self, kind: str, tokens: int, depth: int, repeats: int) -> list[Sample]:
        return [Sample(kind, tokens, depth, self._seconds(next(self._passes)), 0.0) for _ in range(repeats)]

    def _seconds(self, number: int) -> float:
        usual = (1 + self._drift) ** number * (2.0 if number == self._disturbed else 1.0)
        return usual * (self._ratio if self.settings.micro_batch == SMALL_BATCH else 1.0)


@given(st.floats(0.7, 1.4), st.floats(0.0, 0.02), st.integers(0, 20))
def test_small_batches_are_told_from_the_pace_of_the_machine(ratio, drift, disturbed):
    """Their time over that of the usual ones, though the machine changes by more from one visit to the next."""
    knobs = Knobs.of("prefill", USUAL)
    known = Rates("1").add(knobs, LONG, 0, (3.0, 5.0))
    found = pass_rates._in_small_batches(known, Restless(ratio, drift, disturbed), USUAL)
    (small,) = (t for t in found.timings if t.knobs == replace(knobs, micro_batch=SMALL_BATCH))
    assert small.seconds == pytest.approx((3.0 * ratio, 5.0 * ratio), rel=4 * drift + 1e-9)
    assert set(known.timings) < set(found.timings)
