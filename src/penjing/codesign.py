"""A plan in which number formats are open: types and settings are chosen together, and the best few are timed.

A candidate is timed before it is built: a file with its types and random weights runs at the same speed (`slices`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from penjing import pass_rates, slices
from penjing.build import check_room
from penjing.cost import speed
from penjing.cost.passes import STEPS, Passes
from penjing.costs import menu_of
from penjing.engines.base import Engine, Session
from penjing.errors import UsageError
from penjing.gguf.header import Header
from penjing.gguf.writer import frame_of
from penjing.model import Model
from penjing.plan import Chosen, Plan, Refusal, Settings
from penjing.progress import bar
from penjing.quality import menu, stock
from penjing.quality.allocate import Allocation, Item
from penjing.quality.sensitivity import Sensitivity
from penjing.quantize.native import Native
from penjing.quantize.tensors import Tensors
from penjing.rates import Kind, Knobs, PassRates, Rates
from penjing.search import candidates, choose, explain, joint
from penjing.search.choose import Question
from penjing.search.joint import Found, Task
from penjing.sensitivities import model_hash

Say = Callable[[str], None]
_FINALISTS, _ROUNDS = 3, 2
_LONGEST_PROMPT, _DEEPEST = 512, 2048  # tokens that are timed of a finalist
_LEAST_GAIN = 0.01  # of the total time, to leave what everybody has
_SLOW_BITS = 4.0  # formats below are slow, and timed only where the limit leaves nothing else
_AMPLE_BITS = 5.5  # per weight, of the memory that there is
_NO_SLICE = frozenset({"mxfp4", "nvfp4"})


class Source(Struct, frozen=True):
    """The model that is to be stored in other types, and what each type would cost each of its matrices."""

    header: Header
    model: Model
    items: tuple[Item, ...]

    @classmethod
    def of(
        cls, header: Header, model: Model, sensitivity: Sensitivity, native: Native, budget_bytes: int | None
    ) -> Source:
        """With all formats that are not slow, and those below where the memory leaves no room for others."""
        room = 8 * budget_bytes / model.n_weights if budget_bytes else _AMPLE_BITS
        least = _SLOW_BITS if room >= _AMPLE_BITS else 0.0
        items = menu_of(
            Tensors(header, native), native, model, sensitivity,
            refined=sensitivity.source == "measured", least_bits=least, source_hash=model_hash(header),
        )  # fmt: skip
        return cls(header, model, tuple(items))


def is_open(model: Model) -> bool:
    """Its weights are as they were trained, so that other types can be chosen for them."""
    return not menu.needs_warning(model)


class _Entry(Struct, frozen=True):
    """Types and settings that compete, and their figures."""

    name: str
    allocation: Allocation
    chosen: Chosen


def rates_for(
    source: Source, question: Question, engine: Engine, native: Native, *, fresh: bool = False
) -> PassRates:
    """Rates of every type on the menu, and of those that matrices have now."""
    kinds = dict.fromkeys(c.type for item in source.items for c in item.choices)
    sliced = [kind for kind in kinds if kind not in _NO_SLICE]
    threads = candidates.thread_counts(question.machine.cores)
    return pass_rates.measured(
        source.header, source.model, sliced, question.machine, engine, threads, native,
        together=(question.workload.users,), fresh=fresh,
    )  # fmt: skip


def plan(
    source: Source, question: Question, engine: Engine, native: Native, *, fresh: bool = False, say: Say
) -> Plan:
    """The types and settings with the least time for the workload within its limits.

    Raises:
        UsageError: no types keep all limits; says which come nearest.
    """
    rates = rates_for(source, question, engine, native, fresh=fresh)
    passes = Passes(source.model, rates, question.traits)
    task = Task(question, source.items, passes, question.workload.users)
    found, refused = joint.search(task, settings_for(task))
    if not found:
        raise _refuse(task, refused)
    baseline = _baseline(task)
    entries = [*(_Entry(_name(task, f), f.allocation, f.chosen) for f in found[:_FINALISTS]), baseline]
    say(f"timing {len(entries)} ways to store and run it, with random weights")
    timed = _timed(task, source.header, entries, engine, native)
    best = min(timed[:-1], key=lambda e: _total(e.chosen))
    if _total(best.chosen) > (1 - _LEAST_GAIN) * _total(timed[-1].chosen) and _within(task, timed[-1]):
        best = timed[-1]
    winner = next((f for f in found if f.allocation == best.allocation), found[0])
    lost = [Refusal(e.name, explain.slower(e.chosen, best.chosen)) for e in timed if e is not best]
    others = [Refusal(_name(task, f), explain.slower(f.chosen, best.chosen)) for f in found[_FINALISTS:]]
    return Plan(
        model=source.model.name,
        machine=question.machine.name,
        workload=question.workload,
        chosen=replace(
            best.chosen,
            why=explain.why(best.name, best.chosen, timed[-1].chosen),
            types=best.allocation.types,
        ),
        default=replace(timed[-1].chosen, why=timed[-1].name),
        frontier=tuple(explain.frontier(task, winner)),
        refused=(*lost, *others, *refused, *explain.ready_made(task, winner)),
        notes=tuple(explain.notes(task, winner)),
    )


def settings_for(task: Task) -> list[Settings]:
    """Every combination of the knobs that may be worth it."""
    question = task.question
    tried, _ = candidates.singles(
        question.default,
        task.model,
        question.machine.cores,
        question.traits,
        replace(question.workload, max_kld=None),
    )
    tried += [candidates.relaid(s, repack) for s in tried[:1] for repack in (False, True)]
    return list(dict.fromkeys(candidates.combinations(question.default, tried, repacks=True)))


def _name(task: Task, found: Found) -> str:
    types = explain.show_types(task.model, found.allocation.types)
    return f"{types}; {choose.describe(found.chosen.settings, task.question.default)}"


def _baseline(task: Task) -> _Entry:
    """What anybody can have: the stock mix that is fastest under the engine's default, of those within the limit.

    The source as it is, if there is none.
    """
    limit = task.question.workload.max_kld or 0.0
    mixes = {name: stock.mix(task.model, name, importance=True) for name in stock.MIXES}
    within = {n: a for n, a in menu.priced(task.items, mixes).items() if a.kld <= limit}
    kept = {t: c.type for item in task.items for t in item.names for c in item.choices if c.kld == 0.0}
    every = within or menu.priced(task.items, {"the source": kept})
    entries = [
        _Entry(f"{name}, the engine's default", a, _default_chosen(task, a)) for name, a in every.items()
    ]
    return min(entries, key=lambda e: _total(e.chosen))


def _default_chosen(task: Task, allocation: Allocation) -> Chosen:
    default = task.question.default
    question = joint.typed(task, allocation.types, [default])
    chosen = choose.appraise(question, default)
    return replace(chosen, estimate=replace(chosen.estimate, kld=joint.kld_estimate(allocation.kld)))


def _within(task: Task, entry: _Entry) -> bool:
    limit = task.question.workload.max_kld
    question = replace(task.question, workload=replace(task.question.workload, max_kld=None))
    return (limit is None or entry.allocation.kld <= limit) and not choose.why_not(question, entry.chosen)


# ---- the best few, timed ---------------------------------------------------------------------------


def _timed(
    task: Task, header: Header, entries: Sequence[_Entry], engine: Engine, native: Native
) -> list[_Entry]:
    """The entries with figures that were corrected by timing each as a whole, in turn."""
    samples: dict[tuple[int, Kind], list[float]] = {}
    with _files(task, header, entries, native) as files, bar("timing", _ROUNDS * len(entries)) as shown:
        for _ in range(_ROUNDS):
            for i, (entry, file) in enumerate(zip(entries, files, strict=True)):
                with engine.open(file, _roomy(entry.chosen.settings)) as session:
                    for kind in ("prefill", "decode"):
                        samples.setdefault((i, kind), []).append(_sample(task, session, kind))
                shown.advance(1)
    return [
        _corrected(task, entry, {kind: median(s) for (n, kind), s in samples.items() if n == i})
        for i, entry in enumerate(entries)
    ]


@contextmanager
def _files(task: Task, header: Header, entries: Sequence[_Entry], native: Native) -> Iterator[list[Path]]:
    """A file with random weights for each entry; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="penjing-finalists-") as folder:
        check_room(Path(folder), sum(frame_of(header, e.allocation.types, {}).n_bytes for e in entries))
        files = [Path(folder) / f"{i}.gguf" for i in range(len(entries))]
        for entry, file in zip(entries, files, strict=True):
            slices.write(
                header, entry.allocation.types, len(task.model.layers), task.model.vocabulary, file, native
            )
        yield files


def _roomy(settings: Settings) -> Settings:
    return replace(settings, context_tokens=max(settings.context_tokens, _DEEPEST + 256), sequences=1)


def _lengths(task: Task) -> dict[Kind, tuple[int, int]]:
    """Tokens that are timed in each phase, and how many are before them."""
    prompt = task.question.workload.prompt_tokens
    return {"prefill": (min(prompt, _LONGEST_PROMPT), 0), "decode": (STEPS, min(prompt, _DEEPEST))}


def _sample(task: Task, session: Session, kind: Kind) -> float:
    tokens, depth = _lengths(task)[kind]
    if kind == "prefill":
        return min(s.seconds for s in session.time(kind, tokens, depth, 2))
    found = session.time(kind, tokens, depth, 2, together=task.together)
    return median(s.seconds * tokens / s.tokens for s in found)


def _corrected(task: Task, entry: _Entry, measured: dict[Kind, float]) -> _Entry:
    """Composed rates, scaled in each phase by measured over predicted."""
    settings = entry.chosen.settings
    question = joint.typed(task, entry.allocation.types, [settings])
    rates, lengths = question.rates, _lengths(task)
    assert rates is not None
    (prompt, _), (steps, depth) = lengths["prefill"], lengths["decode"]
    predicted = {
        "prefill": speed.prefill_seconds(rates, settings, prompt),
        "decode": speed.decode_seconds(rates, settings, depth, steps, task.together),
    }
    factors = {kind: measured[kind] / p.value for kind, p in predicted.items() if p is not None}  # type: ignore[index]
    chosen = choose.appraise(replace(question, rates=_scaled(rates, settings, factors)), settings)
    return replace(
        entry, chosen=replace(chosen, estimate=replace(chosen.estimate, kld=entry.chosen.estimate.kld))
    )


def _scaled(rates: Rates, settings: Settings, factors: dict[str, float]) -> Rates:
    mine = {Knobs.of("prefill", settings), Knobs.of("decode", settings)}
    timings = tuple(
        replace(t, seconds=tuple(np.array(t.seconds) * factors[t.knobs.kind]), doubt=0.0)
        for t in rates.timings
        if replace(t.knobs, together=1) in mine
    )
    return replace(rates, timings=timings)


def _total(chosen: Chosen) -> float:
    value = chosen.estimate.total_seconds.value
    return float("inf") if value is None else value


def _refuse(task: Task, refused: Sequence[Refusal]) -> UsageError:
    """No types keep all limits: what each limit alone would have to be."""
    nearest = explain.nearest(task, settings_for(task))
    reasons = "; ".join(dict.fromkeys(r.why for r in refused))
    return UsageError(f"no types for `{task.model.name}` keep all limits: {reasons}", hint=nearest)
