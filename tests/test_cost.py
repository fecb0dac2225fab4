"""Bytes and seconds: hand-computed numbers and the laws they obey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from penjing.cost import roofline, speed
from penjing.cost.memory import Traits, cache_bytes, predict_memory
from penjing.figures import Figure
from penjing.machine import Tier
from penjing.plan import Settings
from penjing.rates import Knobs, Rates

from worlds import MIB, machine, model  # isort: skip

DEFAULT = Settings(2, 2, context_tokens=512)
TRAITS = Traits("fake", "1", frozenset({"q4_K"}), base_bytes=1000, vocabulary_bytes=2)
TOKENS = st.integers(1, 5000)


def rates_of(a: float = 0.01, b: float = 1e-6, c: float = 0.001, e: float = 1e-7) -> Rates:
    """Timings that follow the formulas exactly: decode a + b·d, prefill c·n + e·n·(d + n/2)."""
    rates = Rates("1")
    for tokens, depth in ((32, 0), (128, 0), (128, 1024)):
        seconds = c * tokens + e * tokens * (depth + tokens / 2)
        rates = rates.add(Knobs.of("prefill", DEFAULT), tokens, depth, (seconds,) * 3)
    for depth in (64, 1024):
        rates = rates.add(Knobs.of("decode", DEFAULT), 8, depth, (8 * (a + b * (depth + 4)),) * 3)
    return rates


@given(TOKENS)
def test_prefill_recovers_its_formula(tokens):
    """Timings that follow the formula are extended by it to any length of prompt."""
    expected = 0.001 * tokens + 1e-7 * tokens**2 / 2

    assert expected == pytest.approx(speed.prefill_seconds(rates_of(), DEFAULT, tokens).value)


@given(TOKENS, TOKENS)
def test_decode_recovers_its_formula(depth, tokens):
    """Decode at any depth follows from two depths."""
    expected = tokens * (0.01 + 1e-6 * (depth + tokens / 2))

    assert expected == pytest.approx(speed.decode_seconds(rates_of(), DEFAULT, depth, tokens).value)


@given(TOKENS, TOKENS, TOKENS)
def test_decode_adds_up(depth, first, second):
    """An answer takes as long as its two halves, one after the other."""
    rates = rates_of()
    whole = speed.decode_seconds(rates, DEFAULT, depth, first + second)
    halves = (
        speed.decode_seconds(rates, DEFAULT, depth, first),
        speed.decode_seconds(rates, DEFAULT, depth + first, second),
    )

    assert sum(half.value for half in halves) == pytest.approx(whole.value)


@given(TOKENS, st.integers(1, 100))
def test_time_grows(tokens, more):
    """A longer prompt never takes less time."""
    rates = rates_of()

    assert (
        speed.prefill_seconds(rates, DEFAULT, tokens).value
        < speed.prefill_seconds(rates, DEFAULT, tokens + more).value
    )


def test_error_of_a_difference_leaves_out_what_is_shared():
    """Two settings that share a noisy point differ with certainty by what they do not share."""
    noisy = Rates("1").add(Knobs.of("decode", DEFAULT), 8, 64, (0.5, 1.0, 1.5))
    one, other = (speed.decode_seconds(noisy, DEFAULT, 64, n) for n in (100, 90))

    assert one.error > 0
    assert (one - other).error == pytest.approx(one.error / 10)
    assert (one - one).error == 0


def test_never_timed_is_none():
    """What was not measured is not guessed."""
    assert speed.total_seconds(Rates("1"), DEFAULT, 10, 10) is None


def test_layout_borrows_attention():
    """A layout timed at one depth only takes its attention share from the other layout."""
    plain = replace(DEFAULT, repack=False, prefill_repack=False)
    rates = rates_of().add(Knobs.of("decode", plain), 8, 64, (8 * (0.02 + 1e-6 * 68),) * 3)

    assert speed.decode_seconds(rates, plain, 1000, 2).value == pytest.approx(2 * (0.02 + 1e-6 * 1001))


def test_memory_by_hand():
    """Mapped and repacked: the file and a copy of its four matrices; the cache is 4 layers × 512 × 1 KiB."""
    memory = predict_memory(model(), DEFAULT, TRAITS)

    assert (6 * MIB, 4 * MIB) == (memory.weights_bytes, memory.repacked_bytes)
    assert 4 * 512 * (256 + 256) * 2 == memory.cache_bytes
    assert 1000 + 2 * 1024 == memory.base_bytes
    assert sum((6 * MIB, memory.pinned_bytes)) == memory.total_bytes


def test_weights_are_conserved():
    """Read instead of mapped, every weight is there once; mapped without repacking likewise."""
    read = predict_memory(model(), replace(DEFAULT, mapped=False), TRAITS)
    plain = predict_memory(model(), replace(DEFAULT, repack=False, prefill_repack=False), TRAITS)

    assert (0, 6 * MIB) == (read.weights_bytes, read.repacked_bytes)
    assert (6 * MIB, 0) == (plain.weights_bytes, plain.repacked_bytes)


@given(st.integers(1, 100_000), st.integers(1, 4096))
def test_cache_grows_with_context(context, more):
    """More context never takes less cache, and a q8_0 cache is smaller than an f16 one."""
    small, large = (replace(DEFAULT, context_tokens=n) for n in (context, context + more))

    assert cache_bytes(model(), small) <= cache_bytes(model(), large)
    assert cache_bytes(model(), replace(large, cache_type="q8_0")) < cache_bytes(model(), large)


def test_window_bounds_the_cache():
    """A sliding-window layer keeps its window and one micro-batch, however long the context."""
    whole = model()
    layer = replace(whole.layers[0], attention="window", window_tokens=512)
    windowed = replace(whole, layers=(layer,))
    settings = replace(DEFAULT, context_tokens=65536)

    assert 1024 * 512 * 2 == cache_bytes(windowed, settings)


def test_roofline_by_hand():
    """6 MiB of weights and 100 cached tokens over 1 GB/s, at the assumed share of the peak."""
    expected = 1e9 / (6 * MIB + 100 * 4 * 512 * 2)
    estimate = roofline.decode_rate(model(), machine(), 100)

    assert estimate.value == pytest.approx(0.65 * expected)
    assert "assumed" == estimate.source
    assert estimate.low < estimate.value < estimate.high


def test_unknown_bandwidth_stays_unknown():
    """A machine whose memory speed nobody knows yields no estimate."""
    dumb = replace(machine(), tiers=(Tier("DRAM", None, Figure(None, "datasheet")),))

    assert roofline.decode_rate(model(), dumb, 0).value is None
    assert roofline.prefill_rate(model(), dumb).value is None


@given(st.integers(0, 6 * MIB), st.integers(0, MIB))
def test_more_room_is_never_slower_from_disk(room, more):
    """The best case of reading from disk improves with the memory that is left for weights."""
    disk = machine().tier("disk")

    assert (
        roofline.disk_decode_rate(model(), disk, room).high
        <= roofline.disk_decode_rate(model(), disk, room + more).high
    )
