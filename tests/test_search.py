"""The choice: never worse than the default, within every limit, with a reason for each refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from penjing import tune
from penjing.engines.base import Sample
from penjing.engines.fake import FakeEngine, steady
from penjing.errors import DoesNotFit, UsageError
from penjing.machine import Cores
from penjing.planner import plan_here
from penjing.rates import Rates
from penjing.search import candidates, choose
from penjing.search.fit import largest_context
from penjing.workload import Workload

from worlds import MIB, machine, model, question  # isort: skip

LONG_PROMPT = Workload(prompt_tokens=2000, answer_tokens=50)
LONG_ANSWER = Workload(prompt_tokens=50, answer_tokens=500)


def hidden_kernel(kind, settings, tokens, depth):
    """Repacking halves the speed of prefill and gives a fifth more decode, as seen on real CPUs."""
    factor = 1.0
    if settings.prefill_repack if kind == "prefill" else settings.repack:
        factor = 2.0 if kind == "prefill" else 0.8
    return factor * steady(kind, settings, tokens, depth)


def plan(
    tmp_path: Path,
    engine: FakeEngine,
    workload: Workload,
    cores: int = 2,
    memory_bytes: int = 2**30,
    **options,
):
    path = tmp_path / "model.gguf"
    if not path.exists():
        path.write_bytes(b"fake weights")
    here = machine(cores, memory_bytes)
    return plan_here(path, model(), here, workload, engine, say=lambda _: None, **options)


def test_plan_depends_on_the_workload(tmp_path):
    """One layout alone: the one with the faster prefill for long prompts, with the faster decode for long answers."""
    engine = FakeEngine(hidden_kernel)

    assert not plan(tmp_path, engine, LONG_PROMPT, may_split=False).chosen.settings.repack
    assert plan(tmp_path, engine, LONG_ANSWER, may_split=False).chosen.settings.repack


def test_each_phase_gets_its_layout(tmp_path):
    """With room for both, prefill uses the weights as in the file and decode the repacked ones."""
    chosen = plan(tmp_path, FakeEngine(hidden_kernel), Workload(prompt_tokens=512, answer_tokens=128)).chosen

    assert (False, True) == (chosen.settings.prefill_repack, chosen.settings.repack)
    assert chosen.settings.mapped
    assert 2 * 6 * MIB == chosen.memory.weights_bytes + chosen.memory.repacked_bytes


def test_a_second_layout_has_to_pay(tmp_path):
    """Twice the memory for one percent of the time is no bargain: the smaller plan is taken."""
    assert not plan(tmp_path, FakeEngine(hidden_kernel), LONG_PROMPT).chosen.settings.split


def test_two_layouts_only_where_both_fit(tmp_path):
    """With too little memory for two copies the plan keeps one."""
    tight = Workload(prompt_tokens=512, answer_tokens=128, memory_bytes=30 * MIB)

    assert not plan(tmp_path, FakeEngine(hidden_kernel), tight).chosen.settings.split


def test_second_plan_measures_nothing(tmp_path):
    """What was measured for one workload decides the next one without starting the engine."""
    engine = FakeEngine(hidden_kernel)
    plan(tmp_path, engine, LONG_PROMPT)
    before = len(engine.opened)
    plan(tmp_path, engine, LONG_ANSWER)

    assert before == len(engine.opened)


def test_default_stays_when_nothing_is_better(tmp_path):
    """On an engine where no knob matters the default is kept, with its reason, and every other has one too."""
    here = plan(tmp_path, FakeEngine(lambda kind, s, n, d: 0.001 * n), LONG_PROMPT)

    assert candidates.lean(here.question.default, repacks=True) == here.chosen.settings
    assert "nothing that was measured beats" in here.chosen.why
    assert all(refusal.why for refusal in here.plan.refused)


def test_small_gain_does_not_move_the_plan(tmp_path):
    """A gain of two percent is not worth leaving the default for."""
    engine = FakeEngine(lambda kind, s, n, d: (0.98 if not s.repack else 1.0) * steady(kind, s, n, d))

    assert plan(tmp_path, engine, LONG_PROMPT).chosen.settings.repack


def test_beside_other_work_one_thread_wins(tmp_path):
    """Where two threads wait for each other twenty times as long as they work, the plan takes one, for every phase."""
    engine = FakeEngine(
        lambda kind, s, n, d: (40 if max(s.threads, s.prefill_threads) > 1 else 1) * steady(kind, s, n, d)
    )
    chosen = plan(tmp_path, engine, LONG_ANSWER, cores=2).chosen.settings

    assert (1, 1) == (chosen.threads, chosen.prefill_threads)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.3, 3.0), min_size=8, max_size=8), st.integers(1, 4000), st.integers(1, 4000))
def test_never_worse_than_the_default(factors, prompt, answer):
    """Whatever the knobs do to the speed, the plan's true time never exceeds the default's."""
    pace = _pace(factors)
    engine = FakeEngine(pace)
    workload = Workload(prompt_tokens=prompt, answer_tokens=answer)
    asked = question(workload)
    tried, _ = candidates.singles(asked.default, asked.model, asked.machine.cores, asked.traits, workload)
    rates = _tuned(engine, tried, workload)
    every = [*tried, *candidates.combinations(asked.default, tried, repacks=True)]
    verdict = choose.choose(replace(asked, rates=rates), [s for s in every if tune.timed(rates, s)])

    assert (
        _truth(pace, verdict.chosen.settings, prompt, answer)
        <= _truth(pace, asked.default, prompt, answer) * 1.001
    )


def test_disturbed_samples_are_taken_again():
    """A sample whose threads did not run is thrown away, and the next calm one counts."""
    calm = Sample("decode", 8, 64, 0.1, 0.2)
    waiting = Sample("decode", 8, 64, 1.0, 0.2)

    assert not tune.disturbed(calm, threads=2)
    assert tune.disturbed(waiting, threads=2)


@given(st.integers(1, 128), st.integers(1, 256))
def test_thread_counts(physical, logical):
    """Counts to try are distinct, start at the physical cores, and never exceed what may be used."""
    counts = candidates.thread_counts(Cores(physical, max(physical, logical), max(physical, logical)))

    assert physical == counts[0]
    assert len(set(counts)) == len(counts)
    assert all(1 <= n <= max(physical, logical) for n in counts)


def test_refusal_names_the_limit(tmp_path):
    """A model that does not fit is refused with need, limit and three ways out, before the engine starts."""
    engine = FakeEngine()
    with pytest.raises(DoesNotFit, match=r"needs .* the limit is 5\.00 MiB") as caught:
        plan(tmp_path, engine, replace(LONG_ANSWER, memory_bytes=5 * MIB, prompt_tokens=10, answer_tokens=10))

    assert not engine.opened
    assert "--allow-disk" in caught.value.hint or "file of the same model" in caught.value.hint


def test_disk_is_used_only_when_allowed(tmp_path):
    """With permission the same model runs mapped, without copies, and says that it reads from disk."""
    workload = Workload(prompt_tokens=10, answer_tokens=10, memory_bytes=7 * MIB, allow_disk=True)
    here = plan(tmp_path, FakeEngine(weights_bytes=6 * MIB), workload)

    assert here.chosen.from_disk
    assert here.chosen.settings.mapped
    assert not here.chosen.settings.repack
    assert any("read from disk" in note for note in here.plan.notes)


@given(st.integers(7 * MIB, 200 * MIB))
def test_largest_context_fits_and_is_largest(budget):
    """The context offered fits the limit, and the next larger one does not."""
    asked = question()
    frugal = replace(asked.default, repack=False, prefill_repack=False)
    context = largest_context(asked, frugal, budget)

    def total(n):
        return choose.memory_of(asked, replace(frugal, context_tokens=n)).total_bytes

    assert context == 0 or total(context) <= budget
    assert context == asked.model.context_tokens or total(context + 256) > budget


@given(st.integers(8 * MIB, 64 * MIB), st.integers(0, 64 * MIB))
def test_looser_memory_never_gives_a_worse_plan(budget, more):
    """More memory never makes the best time longer."""
    rates = _tuned(FakeEngine(hidden_kernel), _tried(), LONG_PROMPT)
    times = []
    for limit in (budget, budget + more):
        asked = question(LONG_PROMPT, rates, budget_bytes=limit)
        verdict = choose.choose(asked, _tried())
        chosen = verdict.chosen
        times.append(chosen.estimate.total_seconds.value if chosen else float("inf"))

    assert times[1] <= times[0] * 1.03  # within the gain that moves a plan


def test_impossible_speed_is_refused_with_the_nearest(tmp_path):
    """A decode speed that no candidate reaches is refused with what the default would give."""
    with pytest.raises(UsageError, match="keeps all limits") as caught:
        plan(tmp_path, FakeEngine(), replace(LONG_ANSWER, min_decode_tokens_per_s=1e6))

    assert "tok/s decode" in caught.value.hint


def test_context_beyond_the_model_is_refused(tmp_path):
    """A context longer than the model was made for is refused with both numbers."""
    with pytest.raises(UsageError, match="context of 9000 tokens exceeds the 8192"):
        plan(tmp_path, FakeEngine(), Workload(context_tokens=9000))


def test_quantized_cache_needs_permission_and_a_measured_divergence(tmp_path):
    """A q8_0 cache is refused unless divergence may be spent, and then its divergence is measured."""
    engine = FakeEngine(lambda kind, s, n, d: (0.5 if s.cache_type == "q8_0" else 1) * steady(kind, s, n, d))
    without = plan(tmp_path, engine, LONG_PROMPT)
    allowed = plan(tmp_path, engine, replace(LONG_PROMPT, max_kld=0.5))

    assert any("q8_0" in refusal.what for refusal in without.plan.refused)
    assert "q8_0" == allowed.chosen.settings.cache_type
    assert 0.0 == allowed.chosen.estimate.kld.value  # the fake's logits do not depend on the cache


def test_frontier_is_a_frontier():
    """Along the frontier time grows and memory falls."""
    rates = _tuned(FakeEngine(hidden_kernel), _tried(), LONG_PROMPT)
    verdict = choose.choose(question(LONG_PROMPT, rates), _tried())
    points = [
        (c.estimate.total_seconds.value, c.memory.total_bytes) for c in choose.frontier(verdict.fitting)
    ]

    assert points == sorted(points)
    assert [m for _, m in points] == sorted((m for _, m in points), reverse=True)


def _tried():
    asked = question(LONG_PROMPT)
    return candidates.singles(asked.default, asked.model, asked.machine.cores, asked.traits, LONG_PROMPT)[0]


def _tuned(engine: FakeEngine, tried, workload: Workload) -> Rates:
    sessions = tune.Sessions(
        engine,
        Path(__file__),
        together=True,
        repacks=True,
        start_seconds=1,
        check_weights=False,
        warm_up=False,
    )
    with sessions:
        return tune.tune(sessions, Rates("1"), tried, workload, seconds=60)


def _pace(factors):
    def pace(kind, s, tokens, depth):
        names = (
            s.prefill_repack if kind == "prefill" else s.repack,
            s.flash_attention == "off",
            s.threads == 1 if kind == "decode" else s.prefill_threads == 1,
        )
        chosen = factors[:4] if kind == "prefill" else factors[4:]
        factor = chosen[3]
        for on, value in zip(names, chosen, strict=False):
            factor *= value if on else 1.0
        return factor * tokens * (0.001 if kind == "prefill" else 0.01)

    return pace


def _truth(pace, s, prompt, answer):
    return pace("prefill", s, prompt, 0) + pace("decode", s, answer, prompt)
