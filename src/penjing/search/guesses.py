"""Ways of guessing tokens ahead, for types that are not chosen yet.

What a way is worth depends on the types, because a pass that checks guesses costs more or less beside one without, and
the best types depend on the way. For each layout of the weights the way whose fastest conceivable types are fastest is
proposed beside none; the types are then solved for with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from msgspec.structs import replace

from penjing.cost.passes import CHECKS, Point, Way
from penjing.model import Tensor
from penjing.plan import Drafting, Settings
from penjing.quality import menu
from penjing.quality.allocate import Allocation
from penjing.search.task import Layout, Task

_MOST_LOSS = 0.02  # of the time of decode, for any one kind of prompts


def drafted(task: Task, proposed: Sequence[Settings]) -> Iterator[Settings]:
    """Those of `proposed` in which a way of guessing may pay, with the most promising one."""
    ways = {way: _most_promising(task, way) for way in {Way(s.build, s.repack) for s in proposed}}
    for settings in proposed:
        drafting = ways[Way(settings.build, settings.repack)]
        if drafting.kind != "none":
            yield replace(settings, drafting=drafting)


def objection(task: Task, layout: Layout, allocation: Allocation) -> str:
    """Why these types should not be run with these guesses; empty if nothing speaks against it."""
    if layout.drafting.kind == "none":
        return ""
    model = menu.retyped(task.model, allocation.types)
    ratios = task.passes.guess_ratios(model, layout.for_answer, layout.drafting)
    worst = max(ratios, key=lambda domain: ratios[domain])
    if ratios[worst] <= 1 + _MOST_LOSS:
        return ""
    return f"{ratios[worst]:.2f} of the time of decode for prompts of the kind `{worst}`"


def _most_promising(task: Task, way: Way) -> Drafting:
    """The way of guessing with the least time of a token, each matrix in the type that is fastest for it; or none."""
    ways = list(task.passes.habits)
    if not ways:
        return Drafting()
    counts = np.array([[task.passes.step(d).get(Point("decode", n), 0.0) for n in CHECKS] for d in ways])
    plain = np.eye(1, len(CHECKS))  # a pass over one token
    every = np.vstack([plain, counts])
    total = sum(number * (every @ seconds.T).min(axis=1) for seconds, number in _products(task, way))
    best = int(np.argmin(total))
    return ways[best - 1] if best else Drafting()


def _products(task: Task, way: Way) -> Iterator[tuple[np.ndarray, int]]:
    """Seconds of each choice and size of a pass, shape (choices, sizes), and how many items have them."""
    alike: Counter[tuple[tuple[Tensor, ...], tuple[str, ...]]] = Counter()
    for item, tensors in task.multiplied():
        shapes = tuple(replace(t, name="", layer=None) for t in tensors)
        alike[shapes, tuple(c.type for c in item.choices)] += 1
    for (shapes, kinds), number in alike.items():
        rows = [row for kind in kinds if (row := _row(task, shapes, kind, way)) is not None]
        if rows:
            yield np.array(rows), number


def _row(task: Task, tensors: Sequence[Tensor], kind: str, way: Way) -> list[float] | None:
    """Seconds of a choice by the size of the pass; None if it was never timed."""
    steps = ({Point("decode", n): 1.0} for n in CHECKS)
    try:
        return [sum(task.passes.for_token(t, kind, way, step) for t in tensors) for step in steps]
    except KeyError:
        return None
