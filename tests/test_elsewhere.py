"""Plans for hardware that is not here: what a user writes, laws of what comes out, and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from commands import penjing
from penjing import catalogue
from penjing.cost.shapes import shapes_of
from penjing.elsewhere import answers
from penjing.elsewhere.answers import Asked
from penjing.elsewhere.appraise import appraised
from penjing.elsewhere.hardware import CHANGES, hardware
from penjing.elsewhere.plan import Prices
from penjing.elsewhere.ways import Wish, ways
from penjing.errors import DoesNotFit, UnknownName, UsageError
from penjing.workload import Workload

FREE = Prices()
SMALL, EXPERTS = catalogue.model("Qwen3-8B"), catalogue.model("Qwen3-30B-A3B")
DEVICES = (
    "RTX 4090",
    "H20",
    "H200 SXM",
    "Ascend 910B2",
    "Instinct MI300X",
    "M4 Max 128GB",
    "EPYC 9654 384GB",
)


def best(model, where, workload, wish=None):
    return answers.plan(Asked.of(model, workload, FREE, wish or Wish()), where).chosen


# --- what a user writes ---------------------------------------------------------------------------------


def test_counts_memory_behind_and_changes():
    """`8x`, `+ 128GB DDR5` and `name=value`, each by itself and together."""
    one = hardware("RTX 4090")
    eight = hardware("8x RTX 4090 + 512GB DDR4-3200")
    assert (one.count, eight.count, eight.name) == (
        1,
        8,
        "8x RTX 4090 + 512GB DDR4-3200".replace("-3200", ""),
    )
    assert eight.host_bytes == pytest.approx(0.9 * 512e9) and one.host_bytes == 0
    assert eight.device.host_bytes_per_s == 2 * 8 * 3200e6
    changed = hardware("H20 memory_bandwidth=8TB/s memory=192GiB fp8=1PFLOPS watts=700W")
    assert changed.device.bytes_per_s == 8e12 and changed.device.memory_bytes == 192 * 2**30
    assert changed.device.operations_per_s["fp8"] == 1e15 and changed.watts == 700
    assert changed.device.operations_per_s["bf16"] == hardware("H20").device.operations_per_s["bf16"]


@given(st.sampled_from(sorted(CHANGES)), st.floats(1.01, 900, allow_nan=False))
@settings(max_examples=60, deadline=None)
def test_changes_are_read_back(name, number):
    """A value within the plausible range is taken as it is written; without its unit it is refused."""
    unit, low, _, _, _ = CHANGES[name]
    prefix = (
        "" if unit == "W" else "GT"[low >= 1e9 and name in ("fp32", "fp16", "bf16", "fp8", "int8", "fp4")]
    )
    text = f"RTX 4090 {name}={number:.4f}{prefix}{unit}"
    assert hardware(text).changed
    with pytest.raises(UsageError):
        hardware(f"RTX 4090 {name}={number:.4f}")


def test_what_nobody_knows_can_be_said():
    """A device whose bandwidth is not published is refused, and the hint works."""
    with pytest.raises(UsageError) as caught:
        hardware("MLU590")
    said = caught.value.hint.split("'")[1]
    assert hardware(said).device.bytes_per_s == 1e12


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("RTX 4091", UnknownName, "RTX 409"),
        ("0x RTX 4090", UsageError, "0 devices"),
        ("H20 memory_bandwith=8TB/s", UsageError, "memory_bandwith"),
        ("H20 memory_bandwidth=8", UsageError, "B/s"),
        ("H20 memory_bandwidth=8MB/s", UsageError, "expected"),
        ("H20 fp8=8TB", UsageError, "FLOPS"),
    ],
)
def test_what_makes_no_sense_is_refused(text, error, told):
    """With a hint that can be pasted."""
    with pytest.raises(error) as caught:
        hardware(text)
    assert told in str(caught.value) + caught.value.hint and caught.value.hint


# --- laws -----------------------------------------------------------------------------------------------


@given(st.sampled_from(DEVICES), st.floats(1.05, 8), st.integers(1, 16))
@settings(max_examples=25, deadline=None)
def test_faster_memory_never_makes_it_slower(name, factor, users):
    """The best plan with more bandwidth is at least as fast."""
    where, wanted = hardware(name), Workload(1000, 200, users=users)
    quick = replace(where, device=replace(where.device, bytes_per_s=factor * where.device.bytes_per_s))
    slow, fast = (best(SMALL, w, wanted).estimate.total_seconds.value for w in (where, quick))
    assert fast <= slow * 1.031  # among ways nearly as fast the one with fewer devices is taken


@given(st.sampled_from(DEVICES[:5]), st.integers(1, 64))
@settings(max_examples=25, deadline=None)
def test_more_devices_and_fewer_users_never_harm(name, users):
    """Of the time of a request."""
    wanted = Workload(1000, 200, users=users)
    times = [best(EXPERTS, hardware(f"{n}x {name}"), wanted).estimate.total_seconds.value for n in (2, 4, 8)]
    assert times[1] <= times[0] * 1.031 and times[2] <= times[1] * 1.031
    assert (
        best(EXPERTS, hardware(f"2x {name}"), replace(wanted, users=1)).estimate.total_seconds.value
        <= times[0] * 1.031
    )


@given(st.sampled_from(DEVICES), st.integers(1, 64), st.integers(128, 8000))
@settings(max_examples=25, deadline=None)
def test_what_is_chosen_fits(name, users, context):
    """The memory that is needed is there, and so is room for every user; intervals hold their values."""
    wanted = Workload(100, 28, users=users, context_tokens=context)
    where = hardware(f"4x {name}" if "EPYC" not in name else name)
    plan = answers.plan(Asked.of(SMALL, wanted), where)
    e, s = plan.chosen.estimate, plan.chosen.settings
    assert s.sequences >= users
    for estimate in (e.decode_tokens_per_s, e.first_token_seconds, e.throughput_tokens_per_s, e.memory_bytes):
        assert 0 < estimate.low <= estimate.value <= estimate.high
    limit = plan.chosen.settings.devices * hardware(name).device.memory_bytes
    assert e.memory_bytes.value <= limit


def test_fewer_are_needed_for_less():
    """Of every device at most as many for fewer users and looser limits."""
    kinds = [(hardware(name), 64) for name in DEVICES[:5]]
    tight = Workload(1000, 200, users=64, max_first_token_seconds=2, min_decode_tokens_per_s=20)
    loose = Workload(1000, 200, users=8, max_first_token_seconds=10, min_decode_tokens_per_s=5)

    def counts(workload):
        rows = answers.needed(Asked.of(EXPERTS, workload), kinds)
        return {r.machine.split("x ")[-1]: r.devices if r.chosen else 1000 for r in rows}

    few, many = counts(loose), counts(tight)
    assert few.keys() == many.keys() and all(few[name] <= many[name] for name in few)
    assert any(few[name] < many[name] for name in few)


def test_plans_together_are_what_they_are_alone():
    """Sharing rows between plans that differ in how they are spread changes no figure."""
    where, shapes, wanted = hardware("8x H20"), shapes_of(EXPERTS), Workload(1000, 200, users=16)
    plans = [(where, way) for way in ways(where, shapes, EXPERTS, Wish())]
    together = appraised(plans, shapes, wanted)
    for i in range(0, len(plans), 17):
        alone = appraised([plans[i]], shapes, wanted)
        assert alone.total[0] == pytest.approx(together.total[i], rel=1e-12)
        assert alone.needed[0] == pytest.approx(together.needed[i], rel=1e-12)


def test_experts_in_host_memory():
    """Where memory behind the card is there, a model that exceeds the card runs from it, and says what binds."""
    large = catalogue.model("Qwen3-235B-A22B")
    plan = answers.plan(Asked.of(large, Workload()), hardware("RTX 4090 + 256GB DDR5"))
    assert plan.chosen.settings.host_experts > 0.5 and plan.chosen.binds["decode"] == "host"
    with pytest.raises(DoesNotFit):
        answers.plan(Asked.of(large, Workload()), hardware("RTX 4090"))


def test_money_and_energy():
    """Cost is that of the devices in use for the time that a million tokens take; energy is at the power limit."""
    plan = answers.plan(Asked.of(SMALL, Workload(users=4), Prices(per_hour=3.6)), hardware("2x H20"))
    e, n = plan.chosen.estimate, plan.chosen.settings.devices
    seconds = 1e6 / e.throughput_tokens_per_s.value
    assert e.cost_per_million_tokens.value == pytest.approx(seconds * n * 3.6 / 3600)
    assert e.joules_per_million_tokens.value == pytest.approx(seconds * e.watts.value)
    assert e.joules_per_million_tokens.source == "assumed"


# --- the commands ---------------------------------------------------------------------------------------


def document(*words: str):
    done = penjing(*words, "--json")
    assert done.code == 0, done.stderr
    return json.loads(done.stdout)


def test_the_questions_that_users_ask():
    """A plan, all ranked, what is needed, and two beside each other."""
    plan = document("plan", "Qwen3-32B", "--on", "2x RTX 4090", "--users", "4", "--price-per-hour", "0.5")
    assert (
        plan["machine"] == "2x RTX 4090"
        and plan["chosen"]["estimate"]["cost_per_million_tokens"]["value"] > 0
    )
    every = document("plan", "Qwen3-8B", "--on", "all", "--users", "4")["ranked"]
    times = [r["chosen"]["estimate"]["total_seconds"]["value"] for r in every if r["chosen"]]
    assert len(times) > 100 and times == sorted(times) and any(r["chosen"] is None for r in every)
    need = document("need", "Qwen3-235B-A22B", "--of", "H20, RTX 4090", "--users", "8", "--per-token", "0.1")[
        "needed"
    ]
    assert {r["machine"].split("x ")[-1] for r in need} == {"H20", "RTX 4090"}
    rows = document("compare", "8x H20", "4x RTX 4090", "--model", "GLM-4.5")["compared"]
    assert [bool(r["chosen"]) for r in rows] == [True, False] and rows[1]["limited_by"] == "memory"


def test_what_people_see(tmp_path):
    """Tables with intervals and what binds; an inventory; a filter by class."""
    shown = penjing("plan", "DeepSeek-V3", "--on", "8x H20 memory_bandwidth=8TB/s", "--users", "16")
    for wanted in ("8x H20 memory_bandwidth=8TB/s", "decode, each user", "binds", "kWh", "datasheets"):
        assert wanted in shown.stdout
    have = tmp_path / "have.toml"
    have.write_text('"H20" = 16\n"RTX 4090" = 8\n')
    assert "4x H20" in penjing("need", "GLM-4.6", "--have", str(have)).stdout
    classed = document("plan", "Qwen3-8B", "--on", "all", "--class", "3A090.a.1", "--users", "2")["ranked"]
    names = {r["machine"] for r in classed}
    assert "H100 SXM 80GB" in names and not any("M4 Max" in name for name in names)


def test_a_picture(tmp_path):
    """Three panels as one SVG that needs nothing from elsewhere."""
    file = tmp_path / "p.svg"
    words = ("plan", "Qwen3-30B-A3B", "--on", "2x H20", "--users", "8", "--picture", str(file))
    assert penjing(*words).code == 0
    text = file.read_text()
    assert text.count('id="axes_') == 3 and "<svg" in text and 'href="http' not in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("plan", "Qwen3-8B", "--on", "RTX 4090", "--format", "Q5"), "Q5_K_M"),
        (("plan", "DeepSeek-V3", "--on", "RTX 4090"), "penjing need"),
        (("plan", "Qwen3-8B", "--on", "H20", "--first-token", "0.000001"), "--first-token"),
        (("compare", "H20", "--model", "Qwen3-8B"), "penjing compare"),
        (("need", "Qwen3-8B", "--have", "none.toml"), "= 8"),
    ],
)
def test_refusals_say_what_to_do(words, told, refuses: Callable[..., tuple[str, str]]):
    """One line, and a hint."""
    assert told in refuses(*words)[1]
