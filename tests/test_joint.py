"""Types and settings chosen together: against brute force, under limits, and with a reason for what was left out."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from penjing import codesign
from penjing.cost.passes import CHECKS, Passes
from penjing.cost.variants import SMALL_BATCH
from penjing.drafting import Habit
from penjing.engines.fake import FakeEngine
from penjing.finalists import Entry
from penjing.formats import BY_NAME
from penjing.plan import Drafting
from penjing.planner import question_for
from penjing.quality import menu, stock
from penjing.quality.allocate import Choice
from penjing.search import explain, guesses, joint
from penjing.search.task import Layout, Task
from penjing.workload import Workload

import pass_worlds as world  # isort: skip
from worlds import machine  # isort: skip

MODEL = world.shapes(layers=2)
RATES = world.rates(MODEL, together=(1, 4), checks=CHECKS)
# guesses that are right most of the time, that never are, and that are for one kind of prompts
REPEATS = Habit(Drafting("ngram", 4, 2), {"edit": {0: 0.1, 4: 0.3}, "extract": {0: 0.3, 4: 0.2}})
NOVEL = Habit(Drafting("ngram", 8, 2), {"chat": {8: 1.0}})
UNEVEN = Habit(Drafting("ngram", 4, 2), {"chat": {4: 1.0}, "edit": {0: 0.05, 4: 0.2}})
LONG_PROMPT, LONG_ANSWER = Workload(2000, 50), Workload(50, 1000)


class KnownEngine(FakeEngine):
    """The fake engine with the traits of the known world."""

    def traits(self, isa):
        return world.TRAITS


def items(kinds=world.KINDS):
    """Every matrix with a divergence that falls by four with each bit, and matters more in early layers."""
    found = []
    for t in MODEL.tensors:
        if not stock.is_quantized(t):
            continue
        weight = t.n_weights / 1e7 / (1 + (t.layer or 0))
        klds = {kind: weight * 4.0 ** (4 - BY_NAME[kind].bits_per_weight) for kind in kinds}
        found.append(menu.item(t, klds))
    return tuple(found)


def task(workload: Workload, *, budget=None, kinds=world.KINDS, habits=()) -> Task:
    question = question_for(MODEL, machine(memory_bytes=2**33), workload, KnownEngine())
    question = replace(question, budget_bytes=budget or question.budget_bytes)
    return Task(question, items(kinds), Passes(MODEL, RATES, world.TRAITS, habits), workload.users)


def layouts(question):
    """Every build and layout, with the default's other knobs."""
    return [
        replace(question.default, build=build, prefill_repack=first, repack=then, mapped=not (first and then))
        for build, first, then in product(world.TRAITS.builds, (False, True), (False, True))
    ]


def with_caches(question):
    """All of these with either type of the cache."""
    natives = [s for s in layouts(question) if s.build == "native"]  # with which other caches are timed
    return [*layouts(question), *(replace(s, cache_type="q8_0") for s in natives)]


def total(found):
    return found.chosen.estimate.total_seconds.value


def test_nothing_is_faster_within_the_limit():
    """Over all layouts and, for a few open matrices, all types: brute force finds nothing better."""
    asked = task(replace(LONG_PROMPT, max_kld=0.02), kinds=("q4_0", "q6_K"))
    few = asked.items[1:7]
    closed = tuple(replace(i, choices=tuple(c for c in i.choices if c.type == "q6_K")) for i in asked.items)
    opened = tuple(next((f for f in few if f.names == c.names), c) for c in closed)
    asked = Task(asked.question, opened, asked.passes)
    (best, *_), _ = joint.search(asked, layouts(asked.question))

    least = float("inf")
    for one in layouts(asked.question):
        menus = joint.priced(asked, Layout.of(one))
        for chosen in product(*(i.choices for i in menus)):
            if sum(c.kld for c in chosen) <= 0.02:
                least = min(least, sum(c.seconds for c in chosen))
    assert best.allocation.seconds <= least * (1 + 2e-3)


@given(st.floats(0.001, 0.2), st.floats(1.0, 3.0))
@settings(max_examples=15, deadline=None)
def test_a_looser_limit_is_never_worse(kld, factor):
    tight, loose = (task(replace(LONG_ANSWER, max_kld=k)) for k in (kld, kld * factor))
    (first, *_), _ = joint.search(tight, layouts(tight.question))
    (second, *_), _ = joint.search(loose, layouts(loose.question))
    assert total(second) <= total(first) * (1 + 2e-3)


def test_the_work_decides_layout_and_types():
    """In this world repacked weights are quick alone and slow in batches; q6_K and q4_K are made for batches."""
    found = {}
    for name, workload in (("prompt", LONG_PROMPT), ("answer", LONG_ANSWER)):
        asked = task(replace(workload, max_kld=0.3))
        (best, *_), refused = joint.search(asked, layouts(asked.question))
        found[name] = best
        assert best.layout.build == "native"
        assert any("whatever the types" in r.why for r in refused)
        told = " ".join(explain.notes(asked, best))
        assert "the prompt takes" in told
    prompt, answer = found["prompt"], found["answer"]
    assert not prompt.layout.prefill_repack and _repacked(prompt)
    assert answer.layout.repack and answer.layout.prefill_repack


def _repacked(found):
    """Matrices whose type has a repacked layout."""
    return sum(kind in world.TRAITS.repacked_types for kind in found.allocation.types.values())


@pytest.mark.parametrize("users", [1, 4])
@pytest.mark.parametrize("guessed", [False, True])
def test_what_was_composed_is_what_is_promised(users, guessed):
    """The estimate of the winner is the sum of its products and the rest that no type changes, others' prompts too."""
    asked = task(replace(LONG_PROMPT, max_kld=0.05, users=users), habits=[REPEATS] if guessed else [])
    proposed = layouts(asked.question)[:1]
    if guessed:
        proposed = [replace(proposed[0], drafting=REPEATS.drafting, sequences=1)]
        asked = replace(asked, together=1)
    (best, *_), _ = joint.search(asked, proposed)
    menus = joint.priced(asked, best.layout)
    rest = joint._rest(asked, menus, best.chosen.settings)
    assert total(best) == pytest.approx(best.allocation.seconds + rest.total, rel=1e-6)
    assert best.chosen.estimate.kld.value == pytest.approx(best.allocation.kld)
    assert best.chosen.estimate.total_seconds.source == "fitted"


def test_limits_are_kept_or_refused():
    """Memory, first token and decode speed are kept where that is possible, at a price; else nothing is found."""
    free = task(replace(LONG_ANSWER, max_kld=0.3))
    (best, *_), _ = joint.search(free, layouts(free.question))
    first = best.chosen.estimate.first_token_seconds.value
    speed = best.chosen.estimate.decode_tokens_per_s.value
    sooner = task(replace(LONG_ANSWER, max_kld=0.3, max_first_token_seconds=1.001 * first))
    (kept, *_), _ = joint.search(sooner, layouts(sooner.question))
    assert kept.chosen.estimate.first_token_seconds.value <= 1.001 * first
    assert total(kept) >= total(best) * (1 - 2e-3)
    same = task(replace(LONG_ANSWER, max_kld=0.3, min_decode_tokens_per_s=0.999 * speed))
    (kept, *_), _ = joint.search(same, layouts(same.question))
    assert kept.chosen.estimate.decode_tokens_per_s.value >= 0.999 * speed
    for change in ({"max_first_token_seconds": first / 100}, {"min_decode_tokens_per_s": speed * 100}):
        asked = task(replace(LONG_ANSWER, max_kld=0.3, **change))
        found, refused = joint.search(asked, layouts(asked.question))
        assert not found and refused
        assert "--max-kld" in explain.nearest(asked, layouts(asked.question))
    tight = task(replace(LONG_PROMPT, max_kld=0.3), budget=best.chosen.memory.total_bytes - 100_000)
    for kept in joint.search(tight, layouts(tight.question))[0]:
        assert kept.chosen.memory.total_bytes <= tight.question.budget_bytes


@given(st.floats(0.0, 0.4))
@settings(max_examples=15, deadline=None)
def test_a_smaller_cache_is_paid_from_the_same_limit(cost):
    """Types and cache keep the limit together, and a choice more is never worse."""
    asked = task(replace(LONG_ANSWER, max_kld=0.3))
    priced = replace(asked, cache_kld=cost)
    found, _ = joint.search(priced, with_caches(asked.question))
    for one in found:
        quantized = one.chosen.settings.cache_type == "q8_0"
        kld = one.chosen.estimate.kld.value
        assert kld == pytest.approx(one.allocation.kld + (cost if quantized else 0.0)) and kld <= 0.3 + 1e-9
    (usual, *_), _ = joint.search(asked, layouts(asked.question))
    assert total(found[0]) <= total(usual) * (1 + 2e-3)


def test_a_smaller_cache_where_memory_is_short():
    """With a long context the cache is most of the memory: in q8_0 there is room for weights that keep the limit."""
    wanted = replace(LONG_ANSWER, max_kld=0.1, context_tokens=8192)
    free = task(wanted)
    assert not joint.cache_may_pay(free)  # in this world it is as fast, and memory is ample
    (usual, *_), _ = joint.search(free, layouts(free.question))
    tight = task(wanted, budget=usual.chosen.memory.total_bytes - usual.chosen.memory.cache_bytes // 4)
    assert joint.cache_may_pay(tight) and not joint.search(tight, layouts(tight.question))[0]
    (best, *_), _ = joint.search(replace(tight, cache_kld=0.01), with_caches(tight.question))
    assert best.chosen.settings.cache_type == "q8_0"
    assert best.chosen.memory.total_bytes <= tight.question.budget_bytes
    assert any(
        "0.0100 of the KL divergence" in note for note in explain.notes(replace(tight, cache_kld=0.01), best)
    )
    dear = replace(tight, cache_kld=0.2)
    assert not joint.search(dear, with_caches(tight.question))[0]


def test_users_take_each_step_together():
    """Four sequences cost more than one and less than four; the answer's time is that of all."""
    seconds = {}
    for users in (1, 4):
        asked = task(replace(LONG_ANSWER, max_kld=0.3, users=users))
        (best, *_), _ = joint.search(asked, layouts(asked.question))
        seconds[users] = best.allocation.decode_seconds
        assert best.chosen.estimate.total_seconds.source == "fitted"
        assert total(best) >= best.allocation.decode_seconds
    assert seconds[1] < seconds[4] < 4 * seconds[1]


def test_rates_of_more_builds_than_may_be_taken():
    """What was timed with the best build alone is not composed for another: micro-batches, and ways of attention."""
    every = task(replace(LONG_PROMPT, max_kld=0.05))
    traits = replace(every.question.traits, builds=("wheel",))
    fewer = replace(every, question=replace(every.question, traits=traits))
    proposed = {which: codesign.settings_for(t) for which, t in (("all", every), ("wheel", fewer))}
    found, _ = joint.search(fewer, proposed["wheel"])
    assert {f.layout.build for f in found} == {"wheel"}
    for changed in (lambda s: s.micro_batch == SMALL_BATCH, lambda s: s.flash_attention == "off"):
        assert {s.build for s in proposed["all"] if changed(s)} == {"native"}
        assert not any(map(changed, proposed["wheel"]))


def test_knobs_that_were_composed_compete_with_those_of_the_default():
    """The fastest is timed both ways where its knobs are others, and once where they are not."""
    asked = task(replace(LONG_PROMPT, max_kld=0.05))
    found, _ = joint.search(asked, codesign.settings_for(asked))
    assert len(codesign._finalists(asked, found[:1])) == 1
    turned = replace(found[0].chosen.settings, flash_attention="off", micro_batch=SMALL_BATCH)
    other = replace(found[0], chosen=replace(found[0].chosen, settings=turned))
    first, usual = codesign._finalists(asked, [other])
    assert first is other and usual.allocation == other.allocation
    assert usual.chosen.settings == found[0].chosen.settings


def test_types_that_were_never_timed_are_left_out():
    """A choice without rates is not offered; a token embedding that is only looked up takes no time."""
    asked = task(replace(LONG_PROMPT, max_kld=0.05))
    strange = tuple(replace(i, choices=(*i.choices, Choice("iq3_s", 1, 0.0))) for i in asked.items)
    menus = joint.priced(Task(asked.question, strange, asked.passes), Layout("wheel", False, False))
    assert all(c.type != "iq3_s" for item in menus for c in item.choices)
    head = next(i for i in menus if i.role == "token_embedding")
    assert all(c.decode_seconds > 0 for c in head.choices)
    output = world._tensor("output.weight", "output", world.WIDTH, world.VOCABULARY, "f16", None)
    untied = replace(MODEL, tensors=(*MODEL.tensors, output))
    apart = Task(replace(asked.question, model=untied), asked.items, asked.passes)
    looked_up = next(
        i for i in joint.priced(apart, Layout("wheel", False, False)) if i.role == "token_embedding"
    )
    assert all(c.seconds == 0 for c in looked_up.choices)


def test_the_frontier_trades_divergence_for_time():
    asked = task(replace(LONG_ANSWER, max_kld=0.02))
    (best, *_), _ = joint.search(asked, layouts(asked.question))
    points = list(explain.frontier(asked, best))
    klds = [p.estimate.kld.value for p in points]
    times = [p.estimate.total_seconds.value for p in points]
    assert len(points) > 3
    assert klds == sorted(klds, reverse=True)
    assert all(a <= b * (1 + 2e-3) for a, b in pairwise(times))


def test_every_stock_mix_is_answered():
    """Each gets its reason: too far, too large, or slower."""
    asked = task(replace(LONG_PROMPT, max_kld=0.05))
    (best, *_), _ = joint.search(asked, layouts(asked.question))
    told = {r.what: r.why for r in explain.ready_made(asked, best)}
    assert "predicted KL divergence" in told["all in q4_0"]
    assert "its products take" in told["all in q8_0"]


# --- guessing ahead ------------------------------------------------------------------------------------


def guessing(asked):
    """All layouts, and those in which guesses may pay."""
    plain = layouts(asked.question)
    return [*plain, *guesses.drafted(asked, plain)]


@given(st.floats(0.01, 1.0), st.floats(0.0, 0.5), st.floats(0.001, 0.3))
@settings(max_examples=15, deadline=None)
def test_a_way_to_guess_more_is_never_worse(alone, checked, kld):
    """And what is chosen draws a token in less time than without guesses, or without them."""
    habit = Habit(Drafting("ngram", 4, 3), {"any": {0: alone, 4: checked}})
    asked = task(replace(LONG_ANSWER, max_kld=kld), habits=[habit, REPEATS, NOVEL])
    found, _ = joint.search(asked, guessing(asked))
    (usual, *_), _ = joint.search(asked, layouts(asked.question))
    assert total(found[0]) <= total(usual) * (1 + 2e-3)
    assert all(f.chosen.estimate.kld.value <= kld + 1e-9 for f in found)


def test_the_most_promising_way_is_proposed():
    """The one under which the fastest types of all matrices take the least time; none where that is no gain."""
    asked = task(replace(LONG_ANSWER, max_kld=0.3), habits=[NOVEL, REPEATS, UNEVEN])
    for one in guesses.drafted(asked, layouts(asked.question)):
        ways = [Drafting(), *asked.passes.habits]
        least = {
            way: sum(
                min(c.decode_seconds for c in item.choices)
                for item in joint.priced(asked, Layout.of(replace(one, drafting=way)))
            )
            for way in ways
        }
        assert least[one.drafting] == pytest.approx(min(least.values()))
    hopeless = task(replace(LONG_ANSWER, max_kld=0.3), habits=[NOVEL])
    assert not list(guesses.drafted(hopeless, layouts(hopeless.question)))


def test_guesses_are_chosen_and_explained():
    """Where they are right often, answers take less time, with a wider interval, and the plan says what to prove."""
    asked = task(replace(LONG_ANSWER, max_kld=0.02), habits=[REPEATS])
    (best, *_), _ = joint.search(asked, guessing(asked))
    assert best.chosen.settings.drafting == REPEATS.drafting
    told = " ".join(explain.notes(asked, best))
    assert "(edit)" in told and "(extract)" in told and "penjing draft" in told
    (usual, *_), _ = joint.search(asked, layouts(asked.question))
    rate, plain = (f.chosen.estimate.decode_tokens_per_s for f in (best, usual))
    assert rate.value > 1.5 * plain.value
    assert (rate.high - rate.low) / rate.value > (plain.high - plain.low) / plain.value


def test_a_kind_of_prompt_that_would_suffer():
    """Guesses that pay over all kinds, and make one of them slower, are refused by name."""
    asked = task(replace(LONG_ANSWER, max_kld=0.3), habits=[UNEVEN])
    assert list(guesses.drafted(asked, layouts(asked.question)))
    found, refused = joint.search(asked, guessing(asked))
    assert all(f.chosen.settings.drafting == Drafting() for f in found)
    assert any("of the kind `chat`" in r.why and "n-grams" in r.what for r in refused)


def test_a_speed_that_only_guesses_reach():
    """It is planned with them, and the notes say that nothing else would do."""
    free = task(replace(LONG_ANSWER, max_kld=0.02), habits=[REPEATS])
    (usual, *_), _ = joint.search(free, layouts(free.question))
    wanted = 1.3 * usual.chosen.estimate.decode_tokens_per_s.value
    asked = task(replace(LONG_ANSWER, max_kld=0.02, min_decode_tokens_per_s=wanted), habits=[REPEATS])
    assert not joint.search(asked, layouts(asked.question))[0]
    (best, *_), _ = joint.search(asked, guessing(asked))
    assert best.chosen.estimate.decode_tokens_per_s.value >= wanted
    assert "without guesses no types keep the limits" in list(explain.notes(asked, best))


# --- finalists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rounds", "wins"), [((2.0, 2.1, 2.2), True), ((2.0, 3.5, 2.2), False)])
def test_a_plan_wins_in_every_round_or_not_at_all(rounds, wins):
    """The stock mix stays where something was faster only now and then; where it breaks the limit, it cannot."""
    asked = task(replace(LONG_ANSWER, max_kld=0.3))
    (best, *_), _ = joint.search(asked, layouts(asked.question))
    quick = Entry("quick", best.allocation, best.chosen, rounds)
    slow = replace(
        best.chosen.estimate, total_seconds=best.chosen.estimate.total_seconds.map(lambda s: 1.5 * s)
    )
    usual = Entry("usual", best.allocation, replace(best.chosen, estimate=slow), (3.0, 3.1, 3.2))
    assert codesign._best(asked, [quick], usual).name == ("quick" if wins else "usual")
    too_far = replace(slow, kld=slow.kld.map(lambda _: 1.0))
    beyond = replace(usual, chosen=replace(usual.chosen, estimate=too_far))
    assert codesign._best(asked, [quick], beyond).name == "quick"
