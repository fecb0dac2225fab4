"""How passes over slices are timed, where the machine does not hold still."""

from __future__ import annotations

from itertools import count, pairwise
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import pass_worlds as world
from penjing import pass_rates
from penjing.cost.passes import ONE, Point
from penjing.cost.variants import DEEP_BY_KIND, LONG, SMALL_BATCH
from penjing.engines.base import Sample
from penjing.plan import Settings
from penjing.rates import Knobs, Rates
from penjing.reference import Reference

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


MODEL = world.shapes()
RATES = world.rates(MODEL)
POINTS = (ONE, Point("decode", 4), Point("prefill", 32))


class Shared:
    """A machine that takes `slowness` times as long as usual, which changes with every request; it keeps a record."""

    def __init__(self, slowness, drift: float) -> None:
        self.slowness, self.drift, self.asked = slowness, drift, []

    def seconds(self, what: str, usual: float) -> float:
        self.asked.append(what)
        return usual * self.slowness * (1 + self.drift) ** len(self.asked)


class Working:
    """A session on such a machine; a token takes what the reference says, or what is told."""

    settings = USUAL

    def __init__(self, machine: Shared, name: str, seconds: dict[str, float]) -> None:
        self._machine, self._name, self._seconds = machine, name, seconds

    def configure(self, settings: Settings) -> None:
        self.settings = settings

    def time(self, kind, tokens, depth, repeats, most_seconds=0.0, together=1) -> list[Sample]:
        token = self._machine.seconds(f"{self._name} {tokens} {depth} {together}", self._seconds[kind])
        return [Sample(kind, tokens, depth, token * tokens, 2 * token * tokens)] * repeats


def in_turn(slowness: float, drift: float, kind: str) -> tuple[Shared, Rates]:
    machine, seconds = Shared(slowness, drift), RATES.pace_seconds
    reference = Reference(None, MODEL, RATES.layers, 2, None, None)
    reference._sessions = {phase: Working(machine, "look", seconds) for phase in seconds}
    reference.sample("decode")
    machine.asked.clear()
    slicer = pass_rates._Slicer(RATES, world.TRAITS, MODEL, POINTS, reference)
    session = Working(machine, "slice", seconds)
    jobs = [slicer._job(session, point, 1e6) for point in POINTS if point.phase == kind]
    jobs += [replace(job, depth=DEEP_BY_KIND[kind]) for job in jobs[:1]]
    return machine, slicer._timed(Rates("1"), session, jobs)


@given(st.floats(0.3, 3.0), st.sampled_from(("prefill", "decode")))
def test_a_machine_that_is_slower_all_the_while(slowness, kind):
    """The reference shows it, and timings are as ever."""
    usual, slow = (in_turn(s, 0.0, kind)[1].timings for s in (1.0, slowness))
    assert [median(t.seconds) for t in slow] == pytest.approx([median(t.seconds) for t in usual])


@given(st.floats(-0.02, 0.02), st.sampled_from(("prefill", "decode")))
def test_a_machine_that_gets_slower_meanwhile(drift, kind):
    """What is timed first and what is timed last lose or gain no more than half of what the machine does."""
    machine, found = in_turn(1.0, drift, kind)
    whole = abs((1 + drift) ** len(machine.asked) - 1)
    usual = [median(t.seconds) for t in in_turn(1.0, 0.0, kind)[1].timings]
    assert [median(t.seconds) for t in found.timings] == pytest.approx(usual, rel=whole / 2 + 1e-9)


def test_the_reference_is_looked_at_between_any_two_timings():
    """Short ones come back at three moments of a session, others stand between them."""
    machine, _ = in_turn(1.0, 0.0, "decode")
    timed = [number for number, what in enumerate(machine.asked) if what.startswith("slice")]
    assert all(later - earlier > 1 for earlier, later in pairwise(timed))
    assert machine.asked[0].startswith("look") and machine.asked[-1].startswith("look")
    names = [machine.asked[number] for number in timed]
    first = names[0]
    assert names.count(first) == pass_rates._TURNS and len(set(names)) == len(POINTS)
    assert names[0] == names[-1] == first
