"""The nouns: frozen, JSON round trip, and the few laws they carry."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.artifact import Artifact
from penjing.errors import UsageError
from penjing.figures import Estimate, Figure, Measurement
from penjing.gguf import read_model
from penjing.machine import Cores, Machine
from penjing.model import Model, Tensor
from penjing.plan import Settings
from penjing.units import parse_size, show_bytes
from penjing.workload import Workload

from gguf_files import real_model  # isort: skip

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.parametrize(
    "value",
    [
        Workload(prompt_tokens=3, memory_bytes=5),
        Settings(2, 1, repack=False),
        Artifact("a.gguf", 1, "0" * 64, "b.gguf", versions={"penjing": "0"}),
        Estimate(1.0, 0.5, 2.0, "measured"),
        Figure(None, "assumed"),
    ],
)
def test_round_trip(value):
    """What is written as JSON is read back equal, and the value cannot be changed."""
    assert value == msgspec.json.decode(msgspec.json.encode(value), type=type(value))
    with pytest.raises(AttributeError):
        setattr(value, value.__struct_fields__[0], None)


def test_model_round_trip():
    """A whole model survives JSON."""
    model = read_model(real_model())

    assert model == msgspec.json.decode(msgspec.json.encode(model), type=Model)


@given(st.lists(finite, min_size=1, max_size=20))
def test_measurement_lies_inside_its_samples(samples):
    """The median is never outside what was seen, and a single sample has no spread."""
    measured = Measurement.of(samples)

    assert min(samples) <= measured.value <= max(samples)
    assert (measured.spread is None) == (len(samples) == 1)


@given(st.floats(0.1, 1e6), st.floats(0, 0.9))
def test_estimate_keeps_its_order(value, half):
    """Mapping an interval through a falling function turns it round instead of inverting it."""
    rate = Estimate(value, value * (1 - half), value * (1 + half), "measured").map(lambda s: 1 / s)

    assert rate.low <= rate.value <= rate.high
    assert rate.contains(rate.value)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("8GiB", 8 * 2**30),
        ("600MB", 600_000_000),
        ("600 mb", 600_000_000),
        ("1.5g", 1_500_000_000),
        ("4096", 4096),
    ],
)
def test_sizes(text, n_bytes):
    """GiB counts by 1024, GB by 1000, and bare numbers are bytes."""
    assert n_bytes == parse_size(text)


@pytest.mark.parametrize("text", ["", "-1GiB", "0", "GiB", "8 apples", "1e9", "9999999999TiB"])
def test_no_sizes(text):
    """What is not a positive size is refused with an example."""
    with pytest.raises(UsageError) as caught:
        parse_size(text)

    assert "8GiB" in caught.value.hint


@given(st.integers(1, 2**52))
def test_shown_sizes_can_be_read(n_bytes):
    """A size as shown reads back within half a percent."""
    assert parse_size(show_bytes(n_bytes)) == pytest.approx(n_bytes, rel=0.006, abs=0.5)


@pytest.mark.parametrize(
    "wrong",
    [{"prompt_tokens": 0}, {"answer_tokens": -5}, {"memory_bytes": 0}, {"max_kld": -0.1}, {"users": 0}],
)
def test_workload_refuses_nonsense(wrong):
    """A limit that makes no sense names itself and the least that does."""
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} is .* at least"):
        Workload(**wrong)


def test_workload_needs_its_context():
    """A context that cannot hold prompt and answer is refused with both numbers."""
    with pytest.raises(UsageError, match="context of 100 tokens cannot hold 90 prompt") as caught:
        Workload(prompt_tokens=90, answer_tokens=20, context_tokens=100)

    assert "--context 110" == caught.value.hint


def test_active_bytes_count_experts_by_share():
    """Of eight experts with two used, a token reads a quarter; a tied embedding is read whole, as output."""
    expert = Tensor("blk.0.ffn_up_exps.weight", "expert_up", (4, 4, 8), "f16", 256, 0, active_share=0.25)
    embedding = Tensor("token_embd.weight", "token_embedding", (4, 10), "f16", 80, active_share=0.1)
    model = Model("m", "llama", True, "test", 4, 10, 64, (), (expert, embedding))

    assert 64 + 80 == model.active_bytes
    assert 32 + 40 == model.active_weights


def test_machine_limits():
    """The tighter of memory and limit counts; nothing known stays None."""
    machine = Machine("m", Cores(1, 1, 1), (), 8, 7, 5, ())

    assert 5 == machine.usable_memory_bytes


def test_estimates_add():
    """Values and both ends, and nothing is known where one of them is not."""
    one, other = Estimate(2.0, 1.0, 4.0, "fitted"), Estimate(3.0, 2.5, 3.5, "measured")
    assert one + other == Estimate(5.0, 3.5, 7.5, "fitted")
    assert one + Estimate.unknown() == Estimate.unknown()
