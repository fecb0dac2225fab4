"""Laws of the cost model for any device: monotone, additive, conserved; one of many is the one alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from penjing import catalogue
from penjing.cost import anywhere, constants, estimates, steps
from penjing.cost.cases import cases, strain
from penjing.cost.device import Device, device_of
from penjing.cost.shapes import Shapes, shapes_of
from penjing.cost.ways import Job, Way, Weights

HALF = Weights("bf16", "f16", 16.0, 16.0, 16.0)
CARD = Device(
    "card",
    "datacenter",
    "nvidia",
    "hbm",
    80e9,
    3e12,
    {"bf16": 9e14, "fp8": 18e14, "int8": 18e14},
    "nvlink",
    4e11,
)
DENSE = Shapes("dense", 4096, 128e3, 32, 7e9, 0.5e9, cache=65536, read=65536, attention=262144)
MIXTURE = replace(
    DENSE, name="mixture", dense=1e9, routed=29e9, moe_layers=32, experts=128.0, experts_used=8.0
)
SERVING = Way("serving", HALF)
ONE = Job("decode", 1.0, depth_tokens=1000.0)

PHASES = st.sampled_from(anywhere.PHASES)
SHAPES = st.sampled_from([DENSE, MIXTURE])
ENGINES = st.sampled_from(["serving", "compiled", "eager", "llama"])


def rate(device: Device = CARD, shapes: Shapes = DENSE, way: Way = SERVING, job: Job = ONE) -> float:
    return float(anywhere.per_second(cases([(device, shapes, way, job)]), constants.shipped(), job.phase)[0])


def job(phase: Any, sequences: float = 4.0, **more: Any) -> Job:
    lengths = {"prompt_tokens": 1000.0, "depth_tokens": 0.0, "output_tokens": 200.0} | more
    return Job(phase, sequences, **lengths)


def test_decode_of_one_sequence_is_near_bandwidth_over_bytes():
    """One sequence reads all weights: the rate is below bandwidth over bytes, and above half of it."""
    most = CARD.bytes_per_s / (2 * (DENSE.dense + DENSE.head))

    assert 0.5 * most < rate() < most


def test_prefill_of_a_long_prompt_is_near_the_rate_of_arithmetic():
    """Two operations for each weight and token; dense products reach 30 to 95 % of the datasheet."""
    found = rate(job=job("prefill", 1.0, prompt_tokens=4096.0, output_tokens=0.0))

    assert 0.3 < found * 2 * DENSE.dense / CARD.operations_per_s["bf16"] < 0.95


@given(PHASES, SHAPES, ENGINES, st.floats(1.0, 64.0), st.floats(1.01, 8.0))
@settings(max_examples=60, deadline=None)
def test_more_bandwidth_is_never_slower(phase, shapes, engine, sequences, more):
    """A device that only reads faster gives at least as many tokens per second."""
    faster = replace(CARD, bytes_per_s=CARD.bytes_per_s * more)
    way = Way(engine, HALF)

    slow = rate(CARD, shapes, way, job(phase, sequences))

    assert slow <= rate(faster, shapes, way, job(phase, sequences)) * (1 + 1e-9)


@given(PHASES, SHAPES, ENGINES, st.floats(1.01, 8.0))
@settings(max_examples=60, deadline=None)
def test_more_arithmetic_at_more_power_is_never_slower(phase, shapes, engine, more):
    """A device that only computes faster gives at least as many tokens per second."""
    faster = replace(CARD, operations_per_s={name: x * more for name, x in CARD.operations_per_s.items()})
    way = Way(engine, HALF)

    assert rate(CARD, shapes, way, job(phase)) <= rate(faster, shapes, way, job(phase)) * (1 + 1e-9)


@given(SHAPES, st.floats(1.0, 1e5), st.floats(1.0, 1e5))
@settings(max_examples=60, deadline=None)
def test_deeper_is_never_faster(shapes, depth, further):
    """A step that looks at more positions takes at least as long."""
    near, far = (Job("decode", 8.0, depth_tokens=d) for d in (depth, depth + further))

    assert rate(shapes=shapes, job=far) <= rate(shapes=shapes, job=near)


@given(SHAPES, st.floats(1.0, 200.0), st.floats(1.1, 4.0))
@settings(max_examples=60, deadline=None)
def test_together_is_faster_in_all_and_slower_for_each(shapes, sequences, more):
    """More sequences in a step make more tokens per second in all, and no more for each of them."""
    few, many = (
        rate(shapes=shapes, job=Job("decode", n, depth_tokens=500.0)) for n in (sequences, sequences * more)
    )

    assert few < many
    assert many / (sequences * more) <= few / sequences * (1 + 1e-9)


@pytest.mark.parametrize("phase", anywhere.PHASES)
def test_many_plans_at_once_are_each_alone(phase):
    """Vectors change nothing: a plan among others gets the number that it gets alone."""
    plans = [
        (replace(CARD, bytes_per_s=b), shapes, Way(engine, HALF, tensor=t), job(phase))
        for b in (1e12, 4e12)
        for shapes in (DENSE, MIXTURE)
        for engine, t in (("serving", 4), ("llama", 1))
    ]

    together = anywhere.per_second(cases(plans), constants.shipped(), phase)

    assert pytest.approx([rate(*plan) for plan in plans]) == together


def test_one_token_asks_for_its_own_experts_and_many_for_all():
    """Of 128 experts one token touches 8; two at most 16; a thousand all."""
    c = cases([(CARD, MIXTURE, SERVING, ONE)] * 3)

    one, two, many = steps.touched(c, np.array([1.0, 2.0, 1000.0])) * 128

    assert pytest.approx(8) == one
    assert 8 < two < 16
    assert pytest.approx(128) == many


def test_a_fixed_batch_of_one_token_each_is_its_prefill():
    """The first token comes with the prompt: an answer of one token has no step of decode."""
    c = cases([(CARD, DENSE, SERVING, job("mixed", output_tokens=1.0))])
    k, b = constants.shipped(), np.array([4.0])

    assert anywhere.static_seconds(c, k, b) == anywhere.prefill_seconds(c, k, b, c.prompt, c.depth)


def test_times_of_a_fixed_batch_add():
    """Twice the answer less one token takes a step more for every further token."""
    k, b = constants.shipped(), np.array([4.0])
    short, long = (cases([(CARD, DENSE, SERVING, job("mixed", output_tokens=n))]) for n in (100.0, 200.0))

    more = float((anywhere.static_seconds(long, k, b) - anywhere.static_seconds(short, k, b))[0])

    assert 100 * float(anywhere.decode_seconds(short, k, b, short.prompt)[0]) < more


@given(st.floats(100.0, 50000.0), st.floats(1.0, 5000.0), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_what_runs_at_once_fits_the_memory(prompt, output, tensor):
    """Weights and caches of the sequences in flight stay within the devices' memory."""
    asked = job("in_flight", None, prompt_tokens=prompt, output_tokens=output)
    c = cases([(CARD, DENSE, replace(SERVING, tensor=tensor), asked)])

    sequences = float(anywhere.batch_in_flight(c)[0])
    cache = 2 * DENSE.cache * (prompt + output) * sequences

    assert sequences == 1 or 2 * DENSE.weights + cache <= CARD.memory_bytes * tensor


def test_chips_with_power_to_spare_are_not_without_limit():
    """A hundred times fewer operations for each joule change the share of the rate by little."""
    slow, slower = (
        Device("c", "datacenter", "nvidia", "hbm", 80e9, 3e12, {"fp16": 2e13}, watts=w)
        for w in (300.0, 3000.0)
    )
    long = job("prefill", 1.0)

    assert pytest.approx(rate(device=slow, job=long), rel=0.1) == rate(device=slower, job=long)


def test_a_server_is_not_faster_than_its_engine():
    """The same load through a server costs as much, and requests and the last long answers besides."""
    plain = job("in_flight", 64.0, requests=1000.0)

    assert rate(job=replace(plain, served=True)) < rate(job=plain)


def test_devices_that_take_turns_decode_no_faster_than_one():
    """A layer split adds memory, not speed."""
    way = Way("llama", HALF)

    assert rate(way=replace(way, split=4)) <= rate(way=way)
    assert rate(way=way) < rate(way=replace(SERVING, tensor=4))


def test_experts_in_host_memory_slow_decode_down_to_the_host():
    """What the host must read for a token sets the pace, however fast the device is."""
    near = replace(CARD, host_bytes_per_s=1e11, host_operations_per_s=1e13)
    active = 2 * MIXTURE.routed * 8 / 128

    found = rate(near, MIXTURE, Way("llama", HALF, host_routed=1.0))

    assert found < 1e11 / active
    assert found < rate(near, MIXTURE, Way("llama", HALF)) / 3


def test_fewer_bits_decode_faster():
    """One sequence is bound by reading: 4 bits beat 8, and 8 beat 16."""
    bits = [HALF, Weights("fp8", "f8", 8, 8, 16, None, True), Weights("awq", "i4", 4.25, 4.25, 16)]

    speeds = [rate(way=Way("serving", weights)) for weights in bits]

    assert sorted(speeds) == speeds


def test_a_file_overrules_the_bits():
    """Where the size of the file is known, its bytes are read, whatever the name of the format says."""
    small = replace(HALF, file_bytes=4e9)

    assert rate(way=Way("serving", small)) > 2 * rate()


def test_chips_with_many_operations_per_joule_are_strained():
    """At the same rate a lower power limit lowers what products reach; nobody knows it, nothing changes."""
    tight, wide = replace(CARD, watts=300.0), replace(CARD, watts=900.0)

    assert strain(CARD) == 1.0
    assert rate(tight, job=job("prefill")) < rate(wide, job=job("prefill"))


def test_an_estimate_lies_within_its_interval():
    """low ≤ value ≤ high, and something is named that binds."""
    found = estimates.estimate(CARD, DENSE, SERVING, ONE)
    c = cases([(CARD, DENSE, SERVING, ONE)])

    assert found.low <= found.value <= found.high
    assert "memory" == estimates.rates(c, "decode").binds[0]
    prompts = cases([(CARD, DENSE, SERVING, job("prefill"))])
    assert "compute" == estimates.rates(prompts, "prefill").binds[0]


def test_a_full_memory_is_what_binds():
    """Where caches fill the memory and reading sets the pace, capacity limits the batch."""
    c = cases([(CARD, DENSE, SERVING, job("in_flight", None, prompt_tokens=4000.0, output_tokens=2000.0))])

    assert "capacity" == estimates.rates(c, "in_flight").binds[0]


def test_a_probe_that_reads_as_much_as_usual_changes_nothing():
    """Probes read 87 % of a bandwidth and 75 % of a rate on any device; more than that is a better device."""
    usual = estimates.probed(CARD, 0.87 * CARD.bytes_per_s, {"bf16": 0.75 * CARD.operations_per_s["bf16"]})
    better = estimates.probed(CARD, CARD.bytes_per_s, {})

    assert pytest.approx(rate()) == rate(usual)
    assert rate() < rate(better)
    assert pytest.approx(CARD.operations_per_s["fp8"]) == usual.operations_per_s["fp8"]


@given(st.lists(st.floats(-1, 1), max_size=20))
def test_anchors_take_off_part_of_their_mean_error(errors):
    """The correction goes towards the anchors and never beyond; with none it is 1."""
    factor = estimates.anchored(errors)
    mean = sum(errors) / len(errors) if errors else 0.0

    assert abs(math.log(factor)) <= abs(mean) + 1e-12
    assert math.log(factor) * mean <= 1e-12


def test_every_machine_of_the_catalogue_is_a_device_or_has_no_bandwidth():
    """No entry breaks the way from a datasheet to the model; a figure that nobody knows leaves no device."""
    for machine in catalogue.machines():
        tier = machine.tier("VRAM") or machine.tier("DRAM")
        assert (device_of(machine) is None) == (tier is None or not tier.read_bytes_per_s.value)


def test_a_card_that_shows_two_devices_counts_as_two():
    """The driver shows an MI250 as two devices, each with half of everything."""
    card, half = catalogue.machine("Instinct MI250"), device_of(catalogue.machine("Instinct MI250"))

    assert half is not None
    assert card.memory_total_bytes == 2 * half.memory_bytes


@pytest.mark.parametrize("name", ["Qwen3-8B", "DeepSeek-V3", "gpt-oss-120b", "Qwen3.5-35B-A3B"])
def test_sums_over_a_model_are_its_weights(name):
    """What a pass counts as dense, routed, head and lookup is every matrix of the model."""
    model = catalogue.model(name)
    vectors = sum(t.n_weights for t in model.tensors if t.role in ("norm", "bias"))

    assert model.n_weights - vectors == shapes_of(model).weights


def test_latent_attention_keeps_one_head():
    """DeepSeek-V3 caches 576 elements a layer; a cache that cannot be split over heads is kept by every device."""
    found = shapes_of(catalogue.model("DeepSeek-V3"))

    assert 61 * 576 == found.cache
    assert 1 == found.kv_heads
    assert 61 * 128 * (192 + 128) == found.attention
