"""What each freedom is worth: from the engine as it is installed to types and settings chosen together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penjing.codesign import Source, default_chosen, name_of, settings_for, task_for
from penjing.engines.base import Engine
from penjing.errors import UsageError
from penjing.finalists import Entry, timed
from penjing.plan import Settings
from penjing.quality import menu
from penjing.quality.allocate import Allocation, least_bytes
from penjing.quantize.native import Native
from penjing.search import choose, guesses, joint
from penjing.search.choose import Question
from penjing.search.task import Layout, Task

Say = Callable[[str], None]
STOCK = "Q4_K_M"
STEPS = ("engine's default", "best flags", "best stock types", "one after the other", "together")
_NOISE = 0.01  # of a total: less is no difference


def ablate(
    source: Source, question: Question, engine: Engine, native: Native, *, fresh: bool = False, say: Say
) -> list[Entry]:
    """Five ways to store and run the model, timed in turn on files with random weights; in the order of `STEPS`.

    The stock mix of the first two is within the limit on the divergence or not; all others are.

    Raises:
        UsageError: nothing keeps all limits.
    """
    task = task_for(source, question, engine, native, fresh=fresh)
    found, refused = joint.search(task, settings_for(task))
    if not found:
        raise UsageError("; ".join(r.why for r in refused), hint="a looser limit: `--max-kld 0.1`")
    together = Entry(f"{STEPS[4]}, {name_of(task, found[0])}", found[0].allocation, found[0].chosen)
    entries = [*_steps(task), together]
    say(f"timing {len(entries)} ways, in turn")
    return timed(task, source.header, entries, engine, native)


def verdict(entries: Sequence[Entry]) -> str:
    """Whether choosing together paid, in words."""
    sequential, together = (e.total_seconds for e in entries[-2:])
    if together < (1 - _NOISE) * sequential:
        return f"chosen together it takes {together / sequential:.2f} of the time of one after the other"
    return f"choosing together did not pay: {together / sequential:.2f} of the time of one after the other"


def _steps(task: Task) -> list[Entry]:
    limit = task.question.workload.max_kld
    assert limit is not None
    ready = menu.priced(task.items, menu.ready_made(task.model))
    usual = ready[STOCK]
    every = [s for s in settings_for(task) if s.cache_type == "f16"]  # types alone may use up the limit
    entries = [
        Entry(f"{STEPS[0]}, {STOCK}", usual, default_chosen(task, usual)),
        _with_best_flags(task, f"{STEPS[1]}, {STOCK}", usual, every),
    ]
    within = {name: a for name, a in ready.items() if a.kld <= limit}
    stocks = [_with_best_flags(task, f"{STEPS[2]}, {name}", a, every) for name, a in within.items()]
    entries.append(min(stocks, key=lambda e: e.total_seconds) if stocks else entries[1])
    return [*entries, _with_best_flags(task, STEPS[3], least_bytes(task.items, limit), every)]


def _with_best_flags(task: Task, name: str, allocation: Allocation, every: Sequence[Settings]) -> Entry:
    """Given types with the settings that are best for them.

    Raises:
        DoesNotFit: no settings keep the limits.
    """
    layouts = {Layout.of(s) for s in every}
    harmless = {layout for layout in layouts if not guesses.objection(task, layout, allocation)}
    chosen = joint.appraised(task, allocation, [s for s in every if Layout.of(s) in harmless])
    how = choose.describe(chosen.settings, task.question.default)
    return Entry(f"{name}, {how}", allocation, chosen)
