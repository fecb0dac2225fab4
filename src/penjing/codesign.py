"""A plan in which number formats are open: types and settings are chosen together, and the best few are timed.

A candidate is timed before it is built: a file with its types and random weights runs at the same speed (`slices`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from penjing import pass_rates, planner, store, tune
from penjing.cost.passes import CHECKS, Passes
from penjing.costs import menu_of
from penjing.drafting import Habit
from penjing.engines.base import Engine
from penjing.errors import DoesNotFit, UsageError
from penjing.finalists import Entry, timed
from penjing.gguf.header import Header
from penjing.model import Model
from penjing.plan import Chosen, Plan, Refusal, Settings
from penjing.quality import menu, stock
from penjing.quality.allocate import Allocation, Choice, Item
from penjing.quality.sensitivity import Sensitivity
from penjing.quantize.native import Native
from penjing.quantize.tensors import Tensors
from penjing.rates import PassRates
from penjing.reference import Reference
from penjing.search import candidates, choose, explain, guesses, joint
from penjing.search.choose import Question
from penjing.search.task import Found, Task
from penjing.sensitivities import model_hash
from penjing.units import show_bytes

Say = Callable[[str], None]
_FINALISTS = 3
_LEAST_GAIN = 0.01  # of the total time, to leave what everybody has
_AMPLE_BITS = 5.5  # per weight, of the memory that there is
_MOST_ROOM = 0.7  # of the memory, that the source may take where it is run
_CACHE_TOKENS = 256
_UNSTEADY = 0.2  # relative deviation of a machine's pace
# of the most that memory gave to the least; waves of 8 % up and down are usual where it is shared
_SWING = 1.35
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # without, F16 is as fast and nearer
# for weights that were trained in them; here others are nearer and faster
_LEFT_OUT = frozenset({"mxfp4", "nvfp4"})


class Source(Struct, frozen=True):
    """The model that is to be stored in other types, and what each type would cost each of its matrices.

    `habits`: how guesses went in its answers, as far as that is known; None if nothing is to be guessed ahead.
    """

    header: Header
    model: Model
    items: tuple[Item, ...]
    habits: tuple[Habit, ...] | None = None

    @classmethod
    def of(
        cls, header: Header, model: Model, sensitivity: Sensitivity, native: Native, budget_bytes: int | None
    ) -> Source:
        """With all formats that are not slow, and those below where the memory leaves no room for others."""
        room = 8 * budget_bytes / model.n_weights if budget_bytes else _AMPLE_BITS
        least = menu.SLOW_BITS if room >= _AMPLE_BITS else 0.0
        items = menu_of(
            Tensors(header, native), native, model, sensitivity,
            refined=sensitivity.source == "measured", least_bits=least, source_hash=model_hash(header),
        )  # fmt: skip
        return cls(header, model, tuple(replace(i, choices=tuple(_usual(i.choices))) for i in items))


def _usual(choices: Sequence[Choice]) -> Iterator[Choice]:
    return (c for c in choices if c.type not in _LEFT_OUT)


def is_open(model: Model) -> bool:
    """Its weights are as they were trained, so that other types can be chosen for them."""
    return not menu.needs_warning(model)


def rates_for(
    source: Source, question: Question, engine: Engine, native: Native, *, fresh: bool = False
) -> PassRates:
    """Rates of every type on the menu that may be worth it, and of those that matrices have now."""
    kinds = dict.fromkeys(c.type for item in source.items for c in item.choices)
    if not _BF16.intersection(question.machine.isa) and "bf16" not in source.model.tensor_types:
        kinds.pop("bf16", None)
    threads = candidates.thread_counts(question.machine.cores)
    return pass_rates.measured(
        source.header, source.model, list(kinds), question.machine, engine, threads, native,
        together=(question.workload.users,), checks=CHECKS if _habits(source, question) else (), fresh=fresh,
    )  # fmt: skip


def _habits(source: Source, question: Question) -> tuple[Habit, ...]:
    """What may be guessed ahead: passes over guesses of several users were never timed."""
    return source.habits or () if question.workload.users == 1 else ()


def task_for(
    source: Source, question: Question, engine: Engine, native: Native, *, fresh: bool = False
) -> Task:
    """The question with everything measured that its answer depends on."""
    rates = rates_for(source, question, engine, native, fresh=fresh)
    with Reference(source.header, source.model, rates.layers, rates.threads, engine, native) as reference:
        passes = Passes(source.model, reference.at_present(rates), question.traits, _habits(source, question))
    task = Task(question, source.items, passes, question.workload.users)
    return replace(task, cache_kld=_cache_kld(source, task, engine, fresh=fresh))


def _cache_kld(source: Source, task: Task, engine: Engine, *, fresh: bool) -> float | None:
    """What a q8_0 cache costs in divergence, measured on the source; None where it cannot pay, or not be measured."""
    question = task.question
    room = question.budget_bytes or 2 * source.model.n_bytes
    if (
        not question.workload.max_kld
        or source.model.n_bytes > _MOST_ROOM * room
        or not joint.cache_may_pay(task)
    ):
        return None
    name = f"costs/cache-{model_hash(source.header)}-{engine.version}.json"
    known = None if fresh else store.recall(name, float)
    if known is None:
        with engine.open(
            Path(source.header.files[0]), replace(question.default, context_tokens=_CACHE_TOKENS),
            start_seconds=planner.start_seconds(source.model),
        ) as session:  # fmt: skip
            known = tune.cache_kld(session, planner.sample_text(), _CACHE_TOKENS)
        store.remember(name, known)
    return known


def plan(
    source: Source, question: Question, engine: Engine, native: Native, *, fresh: bool = False, say: Say
) -> Plan:
    """The types and settings with the least time for the workload within its limits.

    Raises:
        UsageError: no types keep all limits; says which come nearest.
    """
    task = task_for(source, question, engine, native, fresh=fresh)
    proposed = settings_for(task)
    found, refused = joint.search(task, proposed)
    if not found:
        raise _refuse(task, refused)
    first = _finalists(task, found)
    say(f"timing {len(first) + 1} ways to store and run it, with random weights")
    entrants = [*(_entry(task, f) for f in first), baseline(task)]
    *entries, usual = timed(task, source.header, entrants, engine, native)
    best = _best(task, entries, usual)
    winner = next((f for f, e in zip(first, entries, strict=True) if e is best), found[0])
    lost = [_lost(e, best) for e in (*entries, usual) if e is not best]
    composed = _entry(task, winner)  # what was not timed is compared with what was composed as it was
    lost += [_lost(_entry(task, f), composed) for f in found if f not in first]
    why = explain.why(best.name, best.chosen, usual.chosen)
    return Plan(
        model=source.model.name,
        machine=question.machine.name,
        workload=question.workload,
        chosen=replace(best.chosen, why=why, types=best.allocation.types),
        default=replace(usual.chosen, why=usual.name),
        frontier=tuple(explain.frontier(task, winner)),
        refused=(
            *lost,
            *refused,
            *_unproposed(task),
            *_unguessed(source, task, proposed),
            *explain.ready_made(task, winner),
        ),
        notes=(*explain.notes(task, winner), *planner.notes(question, best.chosen), *_unsteady(task)),
    )


def _unproposed(task: Task) -> Iterator[Refusal]:
    if task.cache_kld is None:
        why = "it neither leaves room that is short nor is faster here"
        if joint.cache_may_pay(task):
            why = (
                "what it costs in quality was not measured: that takes a limit on it, and room for the source"
            )
        yield Refusal("cache type q8_0", why)


def _unguessed(source: Source, task: Task, proposed: Sequence[Settings]) -> Iterator[Refusal]:
    """Why nothing is guessed ahead, where that was not even tried."""
    if source.habits is None or any(s.drafting.kind != "none" for s in proposed):
        return
    why = f"how often guesses are right in its answers is not known: `penjing draft {source.header.files[0]}`"
    if task.together > 1:
        why = "it is for one user at a time"
    elif not source.model.can_go_back:
        why = "the model keeps a state that cannot go back"
    elif task.passes.habits:
        why = "checking guesses takes longer here than they save, whatever the types"
    yield Refusal("guessing ahead", why)


def _finalists(task: Task, found: Sequence[Found]) -> list[Found]:
    """The fastest few; one of them does without guesses, whose worth depends on the text."""
    first = list(found[:_FINALISTS])
    plain = next((f for f in found if f.layout.drafting.kind == "none"), first[-1])
    return [*(first if plain in first else [*first[:-1], plain]), *_unturned(task, first[0])]


def _unturned(task: Task, found: Found) -> Iterator[Found]:
    """The same types with the default's knobs, where others were composed: what those gain depends on the types."""
    usual = {name: getattr(task.question.default, name) for name in joint.KNOBS}
    settings = replace(found.chosen.settings, **usual)
    if settings != found.chosen.settings:
        with suppress(DoesNotFit):
            yield replace(found, chosen=joint.appraised(task, found.allocation, [settings]))


def _unsteady(task: Task) -> Iterator[str]:
    """A machine whose pace changed much while it was measured makes figures that cannot be trusted."""
    rates = task.passes.measured
    if rates.disturbed:
        yield f"{rates.disturbed} disturbed samples were thrown away: other work takes the cores"
    if rates.pace_spread > _UNSTEADY:
        yield (
            f"the machine's pace changed by {rates.pace_spread:.0%} while its rates were taken: times are unfit to "
            "rely on; try again when it is quiet, with `--fresh`"
        )
    if (memory := rates.memory_bytes_per_s) and max(memory) > _SWING * min(memory):
        yield (
            f"memory gave {show_bytes(min(memory))}/s to {show_bytes(max(memory))}/s while rates were taken: times of "
            "answers are unfit to rely on; try again when it is quiet, with `--fresh`"
        )


def _entry(task: Task, found: Found) -> Entry:
    return Entry(name_of(task, found), found.allocation, found.chosen)


def _lost(entry: Entry, best: Entry) -> Refusal:
    """The settings are its name, the types are part of the reason."""
    what, _, types = entry.name.partition(": ")
    why = explain.slower(entry.chosen, best.chosen)
    return Refusal(what, f"{why} ({types})" if types else why)


def _best(task: Task, entries: Sequence[Entry], usual: Entry) -> Entry:
    """The fastest as it was timed; the stock mix where nothing is faster in every round."""
    if not _within(task, usual):
        return min(entries, key=lambda e: e.total_seconds)
    least = (1 - _LEAST_GAIN) * usual.total_seconds
    faster = [e for e in entries if e.total_seconds <= least and e.always_faster(usual)]
    return min(faster, key=lambda e: e.total_seconds, default=usual)


def settings_for(task: Task) -> list[Settings]:
    """Every combination of the knobs that may be worth it; another cache type and guesses where they are known."""
    question = task.question
    limit = question.workload.max_kld if task.cache_kld is not None else None
    tried, _ = candidates.singles(
        question.default,
        task.model,
        question.machine.cores,
        question.traits,
        replace(question.workload, max_kld=limit),
    )
    tried += [candidates.relaid(s, repack) for s in tried[:1] for repack in (False, True)]
    every = dict.fromkeys(candidates.combinations(question.default, tried, repacks=True))
    plain = [s for s in every if task.passes.measured.know(s)]
    return [*plain, *guesses.drafted(task, plain)]


def name_of(task: Task, found: Found) -> str:
    types = explain.show_types(task.model, found.allocation.types)
    return f"{choose.describe(found.chosen.settings, task.question.default)}: {types}"


def baseline(task: Task) -> Entry:
    """What anybody can have: the stock mix that is fastest under the engine's default, of those within the limit.

    The source as it is, if there is none.
    """
    limit = task.question.workload.max_kld or 0.0
    mixes = {name: stock.mix(task.model, name, importance=True) for name in stock.MIXES}
    within = {n: a for n, a in menu.priced(task.items, mixes).items() if a.kld <= limit}
    kept = {t: c.type for item in task.items for t in item.names for c in item.choices if c.kld == 0.0}
    every = within or menu.priced(task.items, {"the source": kept})
    entries = [
        Entry(f"{name}, the engine's default", a, default_chosen(task, a)) for name, a in every.items()
    ]
    return min(entries, key=lambda e: e.total_seconds)


def default_chosen(task: Task, allocation: Allocation) -> Chosen:
    default = task.question.default
    question = joint.typed(task, allocation.types, [default])
    chosen = choose.appraise(question, default)
    return replace(chosen, estimate=replace(chosen.estimate, kld=task.kld(allocation, default)))


def _within(task: Task, entry: Entry) -> bool:
    limit, kld = task.question.workload.max_kld, entry.chosen.estimate.kld.value
    question = replace(task.question, workload=replace(task.question.workload, max_kld=None))
    return (limit is None or kld is None or kld <= limit) and not choose.why_not(question, entry.chosen)


def _refuse(task: Task, refused: Sequence[Refusal]) -> UsageError:
    """No types keep all limits: what each limit alone would have to be."""
    nearest = explain.nearest(task, settings_for(task))
    reasons = "; ".join(dict.fromkeys(r.why for r in refused))
    return UsageError(f"no types for `{task.model.name}` keep all limits: {reasons}", hint=nearest)
