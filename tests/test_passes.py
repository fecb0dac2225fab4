"""Times of any mix of types, composed from slices of one type each: exact where the machine keeps to the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from penjing.cost import speed
from penjing.cost.factors import fit
from penjing.cost.passes import (
    CHECKS,
    ONE,
    PREFILLS,
    WAVES,
    Passes,
    Point,
    Way,
    _checks,
    _in_rounds,
    kernels_for,
    matrices,
)  # fmt: skip
from penjing.drafting import Habit
from penjing.plan import Drafting, Settings
from penjing.quality.menu import retyped

import pass_worlds as world  # isort: skip

MODEL = world.shapes()
PASSES = world.passes(MODEL, together=(1, 4))
RATES = PASSES.measured
GUESS = Habit(Drafting("ngram", 4, 2), {"edit": {0: 0.2, 4: 0.2}, "chat": {0: 0.6, 4: 0.1}})
GUESSING = Passes(MODEL, world.rates(MODEL, checks=CHECKS), world.TRAITS, [GUESS])
WAYS = [Way(build, repack) for build in world.TRAITS.builds for repack in (False, True)]


@given(st.integers(0, 10**6), st.sampled_from(WAYS))
@settings(max_examples=40, deadline=None)
def test_a_mix_that_no_slice_has(seed, way):
    """The steps of decode of any mix, alone and together, within what priors take from a perfect fit."""
    mix = retyped(MODEL, world.mixed(MODEL, seed))
    for together in (1, 4):
        found = PASSES.pass_seconds(mix, way, Point("decode", together))
        assert np.median(found) == pytest.approx(world.known_step(mix, way, together), rel=0.03)


@given(st.integers(0, 10**6), st.integers(2, 4000))
@settings(max_examples=30, deadline=None)
def test_seconds_add_over_tensors(seed, tokens):
    """What another type changes in one tensor is what it changes in all: for a prompt of any length, and for a step."""
    way, types = Way("native", False), world.mixed(MODEL, seed)
    name = sorted(types)[seed % len(types)]
    other = types | {name: "q8_0" if types[name] == "q4_0" else "q4_0"}
    tensor = next(t for t in MODEL.tensors if t.name == name)
    tensor = tensor if tensor.layer is not None else replace(tensor, layer=None)
    settings_ = Settings(2, 2, False, False, build="native")

    def seconds(assigned):
        rates = PASSES.rates(retyped(MODEL, assigned), [settings_])
        prefill = speed.prefill_seconds(rates, settings_, tokens).value
        return prefill, speed.decode_seconds(rates, settings_, 16, 10).value

    prefill, decode = (b - a for a, b in zip(seconds(types), seconds(other), strict=True))
    alone = [PASSES.for_prompt(tensor, k, way, tokens) for k in (types[name], other[name])]
    step = [np.median(PASSES.product(tensor, k, way, ONE)) for k in (types[name], other[name])]
    assert prefill == pytest.approx(alone[1] - alone[0], rel=1e-6, abs=1e-12)
    assert decode == pytest.approx(10 * (step[1] - step[0]), rel=1e-6, abs=1e-12)


@given(st.integers(0, 10**6), st.sampled_from(WAYS), st.sampled_from(CHECKS))
@settings(max_examples=40, deadline=None)
def test_passes_that_check_guesses(seed, way, tokens):
    """Composed of products alone: no slice was timed with so many tokens of one sequence."""
    mix = retyped(MODEL, world.mixed(MODEL, seed))
    found = GUESSING.pass_seconds(mix, way, Point("decode", tokens))
    assert np.median(found) == pytest.approx(world.known_step(mix, way, tokens), rel=0.05)


def test_a_drawn_token_takes_its_passes_and_what_they_look_back_at():
    """The mean of both kinds of prompts: 0.4 passes over one token and 0.15 over five, which all attend to the rest."""
    mix = retyped(MODEL, world.mixed(MODEL))
    plain, guessing = (Settings(2, 2, False, False, drafting=d) for d in (Drafting(), GUESS.drafting))
    rates, way = GUESSING.rates(mix, [plain, guessing]), Way("wheel", False)
    near, far = (speed.decode_seconds(rates, guessing, depth, 1).value for depth in (100, 1100))
    one, five = (np.median(GUESSING.pass_seconds(mix, way, Point("decode", n))) for n in (1, 5))
    assert far - near == pytest.approx(1.15 * 1000 * len(MODEL.layers) * world.ATTENTION["decode"], rel=1e-3)
    at_start = speed.decode_seconds(rates, guessing, 12, 1).value
    assert at_start == pytest.approx(0.4 * one + 0.15 * five, rel=1e-2)
    assert GUESSING.guess_ratios(mix, way, GUESS.drafting)["edit"] == pytest.approx(0.2 + 0.2 * five / one)
    assert (
        speed.decode_seconds(rates, guessing, 100, 1).doubt > speed.decode_seconds(rates, plain, 100, 1).doubt
    )


@given(st.dictionaries(st.integers(0, 16), st.floats(0.01, 1.0), min_size=1))
def test_passes_between_timed_ones_keep_their_number_and_tokens(passes):
    """Counted in part as a smaller and in part as a larger one."""
    found = _checks(passes)
    assert sum(found.values()) == pytest.approx(sum(passes.values()))
    computed = sum(point.batch * count for point, count in found.items())
    assert computed == pytest.approx(sum((n + 1) * count for n, count in passes.items()))


def test_attention_grows_with_depth_and_threads_share_it():
    """Every layer adds what a position costs; half the threads take twice the time."""
    mix = retyped(MODEL, world.mixed(MODEL))
    two, one = Settings(2, 2, False, False, build="native"), Settings(1, 1, False, False, build="native")
    rates = PASSES.rates(mix, [two, one, replace(two, flash_attention="off")])
    near, far = (speed.decode_seconds(rates, two, depth, 1).value for depth in (100, 1100))
    assert far - near == pytest.approx(1000 * len(MODEL.layers) * world.ATTENTION["decode"], rel=1e-3)
    assert speed.decode_seconds(rates, one, 100, 1).value == pytest.approx(2 * near, rel=1e-6)
    off = replace(two, flash_attention="off")
    assert speed.decode_seconds(rates, off, 1100, 1).value > far


def test_tall_matrices_count_in_proportion():
    """Of those with more rows than are timed for prompts, the time is found as if all had been."""
    tall = world.shapes(hidden=6144)
    kernels = kernels_for(tall, world.KINDS, world.TRAITS, [Point("prefill", 512)], 2)
    assert max(k.rows for k in kernels) == 2048
    mix, way, point = retyped(tall, world.mixed(tall)), Way("native", False), Point("prefill", 512)
    found = world.passes(tall).pass_seconds(mix, way, point)
    head = world.known_step(mix, way) - world.pass_seconds(mix, way, ONE, layers=len(mix.layers))
    truth = world.pass_seconds(mix, way, point, layers=len(mix.layers) - 0.5) + head
    assert np.median(found) == pytest.approx(truth, rel=0.03)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20))
def test_every_sample_of_a_pass_counts(samples):
    """Three rounds, whatever the number of samples; none outside of them, and an even slowdown is one of all."""
    rounds = _in_rounds(tuple(samples))
    assert rounds.shape == (3,)
    assert min(samples) <= rounds.min() and rounds.max() <= max(samples)
    assert _in_rounds(tuple(2 * s for s in samples)) == pytest.approx(2 * rounds)


def test_one_slow_sample_of_many_is_no_round():
    assert _in_rounds((1.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)).max() == 1.0


def test_more_layers_and_more_tokens_take_longer():
    """Monotone in what there is to compute; small micro-batches read the weights more often."""
    way = Way("wheel", False)
    tall = world.shapes(layers=12)
    assert all(world.passes(tall).pass_seconds(tall, way, ONE) > PASSES.pass_seconds(MODEL, way, ONE))
    whole, split = (Settings(2, 2, False, False, build="native", micro_batch=n) for n in (512, 128))
    rates = PASSES.rates(MODEL, [whole, split])
    lengths = [speed.prefill_seconds(rates, whole, n).value for n in (32, 100, 512, 2000)]
    assert lengths == sorted(lengths)
    assert speed.prefill_seconds(rates, split, 512).value == pytest.approx(world.SMALL_BATCHES * lengths[2])
    assert speed.prefill_seconds(rates, split, 32).value == pytest.approx(lengths[0])
    with pytest.raises(KeyError):  # they were timed with the best build alone
        PASSES.rates(MODEL, [replace(split, build="wheel")])


@given(
    st.sampled_from(world.KINDS),
    st.sampled_from(WAYS),
    st.sampled_from((ONE, *PREFILLS)),
    st.floats(1.4, 3.0),
)
@settings(max_examples=30, deadline=None)
def test_a_slice_that_something_else_slowed_down(kind, way, point, slowness):
    """It is told by its products and the other slices, and only it; a faster timing takes its place."""
    assert PASSES.doubtful((ONE, *PREFILLS)) == []
    slow = RATES.slices[kind]
    known = next(
        t for t in slow.timings
        if (t.knobs.kind, t.knobs.build, t.knobs.repack) == (point.phase, way.build, way.repack)
        and (t.tokens == point.batch or (point == ONE and t.knobs.together == 1))
    )  # fmt: skip
    timing = replace(known, seconds=tuple(slowness * s for s in known.seconds))
    slow = replace(slow, timings=(*(t for t in slow.timings if t != known), timing))
    rates = replace(RATES, slices={**RATES.slices, kind: slow})
    assert Passes(MODEL, rates, world.TRAITS).doubtful((ONE, *PREFILLS)) == [(kind, way, point)]
    assert known in slow.with_faster(known).timings and timing not in slow.with_faster(known).timings
    assert timing not in RATES.slices[kind].with_faster(timing).timings


def test_types_without_a_slice_are_doubted():
    """They have their kernel and the usual factor, and a wider interval."""
    few = world.passes(MODEL, kinds=("q8_0", "q4_0"))
    known, unknown = (retyped(MODEL, {t.name: kind for t in matrices(MODEL)}) for kind in ("q4_0", "f16"))
    assert few.doubt(unknown) > few.doubt(known) > 0
    with pytest.raises(KeyError):
        few.pass_seconds(retyped(MODEL, {t.name: "q6_K" for t in matrices(MODEL)}), Way("wheel", False), ONE)


@given(st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_pace_that_varied_is_doubted(one, other):
    """The more it did, the wider the interval; the usual waves of a shared machine are in it already."""
    few, many = (
        Passes(MODEL, replace(RATES, pace_spread=s), world.TRAITS).doubt(MODEL) for s in sorted((one, other))
    )
    assert few <= many
    assert max(one, other) > WAVES or many == PASSES.doubt(MODEL)


def test_factors_of_types_that_never_stand_alone():
    """A type that fills no slice by itself is told from the rest; one that nobody timed gets the usual factor."""
    sums = [{("q8_0", False): 1.0}, {("q8_0", False): 0.4, ("q4_K", False): 0.3}]
    times = np.array([[1.1] * 3, [0.4 * 1.1 + 0.3 * 1.05] * 3]) + 0.02
    found = fit(sums, [1.0, 1.0], times)
    for row, seen in zip(sums, times, strict=True):
        told = sum(seconds * found.of(key) for key, seconds in row.items()) + found.layer_seconds
        assert told == pytest.approx(seen, rel=0.02)
    assert found.of(("q2_K", False)) == pytest.approx(found.usual)
    assert fit([], [], np.zeros((0, 3))).of(("q8_0", False))[0] == 1.0


@given(
    st.floats(0.5, 2.0), st.floats(0.0, 0.2), st.lists(st.floats(0.3, 3.0), min_size=3, max_size=8), st.data()
)
def test_whatever_the_pace_of_the_products_was(common, waiting, seconds, data):
    """Products that were timed while the machine was slower or faster than in all passes are no doubt about them."""
    own = [data.draw(st.floats(0.95, 1.05)) for _ in seconds]
    kinds = [(str(number), False) for number in range(len(seconds))]
    times = np.array([[common * o * s + waiting] * 3 for o, s in zip(own, seconds, strict=True)])
    found = fit([{kind: s} for kind, s in zip(kinds, seconds, strict=True)], [1.0] * len(seconds), times)
    told = [found.of(kind)[0] * s + found.layer_seconds[0] for kind, s in zip(kinds, seconds, strict=True)]
    assert told == pytest.approx(times[:, 0], rel=0.03)
    assert (found.layer_seconds >= 0).all()


@given(st.floats(1e-6, 1.0))
@settings(deadline=None)
def test_a_disturbed_timing_never_makes_time_negative(share):
    """Whatever a setting was timed at beside the usual one, a pass takes some time, and less for less."""
    off = Settings(2, 2, False, False, flash_attention="off", build="native")
    plain = speed.decode_seconds(PASSES.rates(MODEL, [off]), off, 16, 1).value
    timings = tuple(
        replace(t, seconds=tuple(share * s for s in t.seconds)) if t.knobs.flash_attention == "off" else t
        for t in RATES.others.timings
    )
    passes = Passes(MODEL, replace(RATES, others=replace(RATES.others, timings=timings)), world.TRAITS)
    assert 0 < speed.decode_seconds(passes.rates(MODEL, [off]), off, 16, 1).value <= plain
