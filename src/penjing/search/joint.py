"""Types of all matrices and settings of the engine, chosen together.

What is few is enumerated: build, layout of the weights for each phase, type of the cache, and with each of these the
most promising way of guessing ahead (`search.guesses`). HiGHS finds the types with the least time for the workload
under the limits; bytes, divergence and seconds of products add over the matrices, and what a quantized cache costs in
divergence is taken from the limit. Other settings (flash attention, threads, micro-batch) do not depend on types, and
are chosen after. A combination whose least conceivable time exceeds what was found already is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from penjing.cost import speed
from penjing.cost.memory import predict_memory
from penjing.errors import DoesNotFit
from penjing.model import Tensor
from penjing.plan import Chosen, Refusal, Settings
from penjing.quality import menu
from penjing.quality.allocate import Allocation, Choice, Item, Limits, least_seconds
from penjing.search import choose, guesses
from penjing.search.choose import Question
from penjing.search.task import Found, Layout, Task

_NEAR = 0.05  # of a total: what flash attention or micro-batches seem to gain below this is not believed
# that do not depend on types, and are chosen after them
KNOBS = ("flash_attention", "micro_batch", "threads", "prefill_threads")
_CACHE_SHARE = 0.05  # of the memory, from which on a smaller cache may pay by the room it leaves
_DOUBT = 0.08  # of composed times: what could be nearer than this is not left out


def search(task: Task, proposed: Iterable[Settings]) -> tuple[list[Found], list[Refusal]]:
    """What is best for each layout, the fastest first, and why other layouts were left out."""
    groups: dict[Layout, list[Settings]] = {}
    for settings in proposed:
        groups.setdefault(Layout.of(settings), []).append(settings)
    menus = {layout: priced(task, layout) for layout in groups}
    bounds = {
        layout: _least(menus[layout]) + _rest(task, menus[layout], groups[layout][0]).total
        for layout in groups
    }
    found: list[Found] = []
    refused: list[Refusal] = []
    for layout in sorted(groups, key=lambda one: (bounds[one], one)):
        best = min((choose.total_seconds(f.chosen) for f in found), default=float("inf"))
        what = choose.describe(groups[layout][0], task.question.default)
        if bounds[layout] > best * (1 + _DOUBT):
            why = f"at least {bounds[layout]:.3g} s for the workload whatever the types, the chosen {best:.3g} s"
            refused.append(Refusal(what, why))
            continue
        try:
            found.append(solved(task, layout, menus[layout], groups[layout]))
        except DoesNotFit as error:
            refused.append(Refusal(what, str(error)))
    return sorted(found, key=lambda f: choose.total_seconds(f.chosen)), refused


def priced(task: Task, layout: Layout) -> list[Item]:
    """The items with the seconds that each choice adds to one request; choices that were never timed are left out."""
    items = []
    for item, tensors in task.multiplied():
        choices = [c for choice in item.choices if (c := _timed(task, layout, tensors, choice)) is not None]
        items.append(replace(item, choices=tuple(choices)))
    return items


def _timed(task: Task, layout: Layout, tensors: Sequence[Tensor], choice: Choice) -> Choice | None:
    workload, passes = task.question.workload, task.passes
    step = passes.step(layout.drafting, task.together)
    prefill = decode = 0.0
    for tensor in tensors:
        try:
            prefill += passes.for_prompt(tensor, choice.type, layout.for_prompt, workload.prompt_tokens)
            decode += workload.answer_tokens * passes.for_token(tensor, choice.type, layout.for_answer, step)
        except KeyError:
            return None
    decode += (task.together - 1) * prefill  # others' prompts, that the answer waits for
    return replace(choice, prefill_seconds=prefill, decode_seconds=decode)


def solved(task: Task, layout: Layout, items: Sequence[Item], group: Sequence[Settings]) -> Found:
    """The types with the least time under the limits, and the best settings of the group with them.

    Raises:
        DoesNotFit: nothing keeps the limits, or some kind of prompt suffers from guesses.
    """
    limits = limits_of(task, items, group[0])
    allocation = least_seconds(items, limits)
    if why := guesses.objection(task, layout, allocation):
        raise DoesNotFit(why)
    return Found(layout, allocation, limits, appraised(task, allocation, group))


def appraised(task: Task, allocation: Allocation, group: Sequence[Settings]) -> Chosen:
    """The best of the settings for given types.

    Raises:
        DoesNotFit: none of them keeps the limits.
    """
    question = typed(task, allocation.types, group)
    verdict = choose.choose(question, group)
    fitting = [c for c in verdict.fitting if c.settings in group]
    if not fitting:
        raise DoesNotFit("; ".join(sorted({r.why for r in verdict.refused})))
    best = _plainest(fitting, task.question.default)
    estimate = replace(best.estimate, kld=task.kld(allocation, best.settings))
    return replace(best, estimate=estimate, is_default=False)


def _plainest(fitting: Sequence[Chosen], default: Settings) -> Chosen:
    """Of those that are as fast as composed times can tell, the one that leaves most knobs as they are."""
    least = min(map(choose.total_seconds, fitting))
    near = [c for c in fitting if choose.total_seconds(c) <= (1 + _NEAR) * least]

    def turned(chosen: Chosen) -> int:
        return sum(getattr(chosen.settings, name) != getattr(default, name) for name in KNOBS)

    return min(near, key=lambda c: (turned(c), choose.total_seconds(c)))


def typed(task: Task, types: dict[str, str], wanted: Sequence[Settings]) -> Question:
    """The question for the model in these types, with its composed rates."""
    model = menu.retyped(task.model, types)
    rates = replace(task.passes.rates(model, [task.question.default, *wanted]), cache_kld=task.cache_kld)
    workload = replace(task.question.workload, max_kld=None)  # kept by the types
    return replace(task.question, model=model, workload=workload, rates=rates)


class Rest(Struct, frozen=True):
    """Seconds that do not depend on the types that are open: attention, drawing, what lies between products."""

    prefill: float
    decode: float

    @property
    def total(self) -> float:
        return self.prefill + self.decode


def _rest(task: Task, items: Sequence[Item], settings: Settings) -> Rest:
    workload = task.question.workload
    first = [item.choices[0] for item in items]
    types = {name: c.type for item, c in zip(items, first, strict=True) for name in item.names}
    rates = typed(task, types, [settings]).rates
    assert rates is not None
    found = speed.request(rates, settings, workload.prompt_tokens, workload.answer_tokens)
    assert found is not None
    return Rest(
        max(0.0, found.prefill.value - sum(c.prefill_seconds for c in first)),
        max(0.0, found.decode.value - sum(c.decode_seconds for c in first)),
    )


def limits_of(task: Task, items: Sequence[Item], settings: Settings) -> Limits:
    """What the workload and the memory leave for the open types."""
    workload, rest = task.question.workload, _rest(task, items, settings)
    first, rate = workload.max_first_token_seconds, workload.min_decode_tokens_per_s
    kld = None if workload.max_kld is None else workload.max_kld - task.kld_of_cache(settings)
    return Limits(
        n_bytes=_room(task, items, settings),
        kld=kld,
        prefill_seconds=None if first is None else first - rest.prefill,
        decode_seconds=None if rate is None else workload.answer_tokens / rate - rest.decode,
    )


def _room(task: Task, items: Sequence[Item], settings: Settings) -> float | None:
    """Bytes that the open tensors may take: what the budget leaves beside all else, and half of it for two layouts."""
    question = task.question
    if question.budget_bytes is None:
        return None
    memory = predict_memory(task.model, settings, question.traits)
    beside = memory.cache_bytes + memory.compute_bytes + memory.base_bytes
    chosen = {name for item in items for name in item.names}
    fixed = sum(t.n_bytes for t in task.model.tensors if t.name not in chosen)
    return (question.budget_bytes - beside) / (2 if settings.split else 1) - fixed


def _least(items: Sequence[Item]) -> float:
    """Seconds below which no types come."""
    return sum(min(c.seconds for c in item.choices) for item in items)


def cache_may_pay(task: Task) -> bool:
    """A q8_0 cache leaves room that is short, or is the faster one here; it costs quality in any case."""
    question = task.question
    usual = replace(question.default, build=question.traits.builds[-1])  # with which other caches are timed
    small = replace(usual, cache_type="q8_0")
    room = question.budget_bytes or float("inf")
    if predict_memory(task.model, usual, question.traits).cache_bytes > _CACHE_SHARE * room:
        return True
    if not task.passes.measured.know(small):
        return False
    items = priced(task, Layout.of(usual))
    return _rest(task, items, small).total < (1 - _NEAR) * _rest(task, items, usual).total
