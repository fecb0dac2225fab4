"""Timings that are moved from one pace of the machine to another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pass_worlds as world
from penjing.cost import pace, speed
from penjing.cost.pace import Pace
from penjing.cost.passes import REFERENCE, Passes
from penjing.cost.variants import DEEP_BY_KIND, STEPS
from penjing.plan import Settings
from penjing.quality.menu import retyped
from penjing.rates import Timing

MODEL = world.shapes()
RATES = world.rates(MODEL)
ONE = Settings(2, 2, False, False)
times = st.floats(0.3, 3.0)


def seconds(rates):
    """Of decode and of prefill, for a mix of types."""
    found = Passes(MODEL, rates, world.TRAITS).rates(retyped(MODEL, world.mixed(MODEL)), [ONE])
    return np.array(
        [speed.decode_seconds(found, ONE, 300, 10).value, speed.prefill_seconds(found, ONE, 300).value]
    )


USUAL = seconds(RATES)


@given(times, times, st.floats(0, 2))
def test_a_product_goes_with_what_holds_it_up(prefill, decode, rate):
    """Between both phases; with decode where it reads as fast as the reference, with prefill where it hardly reads."""
    found = Pace(prefill, decode)
    assert min(prefill, decode) <= found.of(rate) * (1 + 1e-12)
    assert found.of(rate) <= max(prefill, decode) * (1 + 1e-12)
    assert found.of(1.0) == found.of(1.5) == pytest.approx(decode)
    assert found.of(0.0) == pytest.approx(prefill)


def test_nothing_changes_at_the_usual_pace():
    assert pace.at(RATES, MODEL, Pace()) == RATES


@given(times)
def test_a_machine_that_is_slower_in_everything(factor):
    """So are all times, and back again nothing has changed."""
    slow = pace.at(RATES, MODEL, Pace(factor, factor))
    assert seconds(slow) / USUAL == pytest.approx([factor, factor])
    assert slow.pace_seconds["decode"] == pytest.approx(factor * RATES.pace_seconds["decode"])
    assert seconds(pace.at(slow, MODEL, Pace(1 / factor, 1 / factor))) == pytest.approx(USUAL)


def test_slower_memory_is_felt_in_decode():
    """Prefill keeps its time; weights take up to twice theirs, attention over what lies before does not."""
    slow = pace.at(RATES, MODEL, Pace(1.0, 2.0))
    decode, prefill = seconds(slow) / USUAL
    assert 1.4 < decode < 2.0
    # a slice is taken to keep its time as a whole; the part of its last layer that reads for one token is large here
    assert prefill == pytest.approx(1.0, abs=0.06)
    deep = [t for t in RATES.others.timings if t.depth == DEEP_BY_KIND["decode"]]
    for timing in deep:
        flat = pace.flat_seconds(RATES.others, timing.knobs, timing.tokens)
        then = next(t for t in slow.others.timings if (t.knobs, t.depth) == (timing.knobs, timing.depth))
        assert then.seconds[0] - timing.seconds[0] <= flat * (1 + 1e-9)


@given(times, times)
def test_a_timing_that_was_taken_at_another_pace(prefill, decode):
    """What reads like the reference comes back exactly, with the attention that was added to it."""
    now, n_bytes = Pace(prefill, decode), pace.read_bytes(MODEL, REFERENCE, RATES.layers["decode"])
    roof = pace.reading(MODEL, RATES)
    knobs = next(t.knobs for t in RATES.others.timings if t.knobs.kind == "decode")
    flat, attention = STEPS * RATES.pace_seconds["decode"], 0.003
    taken = Timing(knobs, STEPS, DEEP_BY_KIND["decode"], (flat * decode + attention * prefill,))
    assert pace.undone(taken, flat, now, n_bytes / roof).seconds[0] == pytest.approx(flat + attention)
    near = Timing(knobs, STEPS, 16, (flat * decode,))
    assert pace.undone(near, None, now, n_bytes / roof).seconds[0] == pytest.approx(flat)


def test_experts_that_are_not_used_are_not_read():
    few, all_of_them = (pace._kernel_bytes(world.Kernel("q8_0", 64, 256, n, 2, False, 8, 2)) for n in (1, 16))
    assert all_of_them == 4 * few
