"""Which format for which tensor: an exact multi-choice knapsack, solved by HiGHS.

    minimise   Σ kld of the choices    or   Σ bytes         or   Σ seconds
    so that    Σ bytes ≤ limit              Σ kld ≤ limit        any of bytes, kld and seconds of a phase ≤ limits
               every tensor has exactly one choice
               no run of layers stays at the lowest format (guard)

Costs are additive, which is right for ranking and too kind at low bits. The guards keep a plan from the known
failures there; measuring the finished file decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from penjing.errors import DoesNotFit
from penjing.formats import BY_NAME
from penjing.units import show_bytes, show_number, show_seconds

_LOW_BITS = 3.5  # below it a format counts as low, and the guards watch it
_LONGEST_RUN = 4  # layers in a row that may all keep one role at the lowest of the low formats
# relative, between the plan and the best one possible; times are no better known
_GAP, _TIME_GAP = 1e-5, 1e-3
_SUMS: dict[str, tuple[str, Callable[[float], str]]] = {
    "n_bytes": ("the size of the weights", show_bytes),
    "kld": ("the KL divergence", show_number),
    "prefill_seconds": ("the time of the prompt", show_seconds),
    "decode_seconds": ("the time of the answer", show_seconds),
}


class Choice(Struct, frozen=True):
    """One format for a tensor: what it takes, and the divergence that it is predicted to add (nats per token).

    `prefill_seconds` and `decode_seconds` are its share of one request, 0 where nobody asks for time.
    """

    type: str
    n_bytes: int
    kld: float
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds


class Item(Struct, frozen=True):
    """Tensors that must share a format (usually one), with the formats that they can have."""

    names: tuple[str, ...]
    role: str
    layer: int | None
    choices: tuple[Choice, ...]


class Allocation(Struct, frozen=True):
    """One choice for every item, with the sums."""

    types: dict[str, str]
    n_bytes: int
    kld: float
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds


class Limits(Struct, frozen=True):
    """What the sums of an allocation may not exceed; None where nobody set a limit."""

    n_bytes: float | None = None
    kld: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None

    @property
    def given(self) -> dict[str, float]:
        return {name: limit for name in _SUMS if (limit := getattr(self, name)) is not None}


def least_kld(items: Sequence[Item], max_bytes: int) -> Allocation:
    """The allocation with the least predicted divergence within `max_bytes`.

    Raises:
        DoesNotFit: even the smallest formats need more.
    """
    least = sum(min(c.n_bytes for c in item.choices) for item in items)
    if least > max_bytes:
        raise DoesNotFit(
            f"the smallest possible weights take {show_bytes(least)}, the limit leaves {show_bytes(max_bytes)}",
            hint="ask for more, or take a smaller model",
        )
    return _solve(items, "kld", Limits(n_bytes=max_bytes), _GAP)


def least_bytes(items: Sequence[Item], max_kld: float) -> Allocation:
    """The smallest allocation whose predicted divergence stays within `max_kld`.

    Raises:
        DoesNotFit: even the best formats diverge more.
    """
    least = sum(min(c.kld for c in item.choices) for item in items)
    if least > max_kld:
        raise DoesNotFit(
            f"the best formats are predicted to diverge by {show_number(least)} nats per token, "
            f"the limit is {show_number(max_kld)}",
            hint=f"--max-kld {show_number(1.1 * least)}",
        )
    return _solve(items, "n_bytes", Limits(kld=max_kld), _GAP)


def least_seconds(items: Sequence[Item], limits: Limits, objective: str = "seconds") -> Allocation:
    """The allocation with the least time within the limits; `objective` may name one phase alone.

    Raises:
        DoesNotFit: there is none.
    """
    return _solve(items, objective, limits, _TIME_GAP)


def frontier(items: Sequence[Item], points: int = 24) -> list[Allocation]:
    """The best allocations for `points` sizes, evenly spaced in their logarithm, smallest first."""
    low = sum(min(c.n_bytes for c in item.choices) for item in items)
    high = sum(min(item.choices, key=lambda c: (c.kld, c.n_bytes)).n_bytes for item in items)
    found = [least_kld(items, int(size)) for size in np.ceil(np.geomspace(low, max(high, low), points))]
    return [a for i, a in enumerate(found) if i == 0 or a.n_bytes > found[i - 1].n_bytes]


def price(items: Sequence[Item], types: dict[str, str]) -> Allocation:
    """The sums of a given assignment, such as a stock mix.

    Raises:
        KeyError: it names a format that an item does not have.
    """
    chosen = [{c.type: c for c in item.choices}[types[item.names[0]]] for item in items]
    return _allocation(items, chosen)


def repriced(items: Sequence[Item], allocation: Allocation) -> Allocation:
    """The same formats with the costs of `items`."""
    by_name = {item.names[0]: {c.type: c for c in item.choices} for item in items}
    chosen = [by_name[name][kind] for name, kind in allocation.types.items()]
    return Allocation(allocation.types, sum(c.n_bytes for c in chosen), sum(c.kld for c in chosen))


def bent(items: Sequence[Item], power: float) -> list[Item]:
    """Costs to a power: below 1 large losses count for less, above 1 for more."""
    return [
        replace(item, choices=tuple(replace(c, kld=c.kld**power) for c in item.choices)) for item in items
    ]


def _allocation(items: Sequence[Item], chosen: Sequence[Choice]) -> Allocation:
    return Allocation(
        types={name: c.type for item, c in zip(items, chosen, strict=True) for name in item.names},
        **{name: sum(getattr(c, name) for c in chosen) for name in _SUMS},
    )


def _solve(items: Sequence[Item], objective: str, limits: Limits, gap: float) -> Allocation:
    """Raises DoesNotFit if nothing, or nothing that the guards leave, is within the limits."""
    import highspy

    named = (objective, *limits.given)
    flat = [(i, choice) for i, item in enumerate(items) for choice in _undominated(item.choices, named)]
    costs = np.array([getattr(c, objective) for _, c in flat], dtype=float)
    weights = [
        np.array([getattr(c, name) for _, c in flat], dtype=float) / max(limit, 1e-300)
        for name, limit in limits.given.items()
    ]
    scale = max(costs.max(), 1e-300)
    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("mip_rel_gap", gap)
    solver.setOptionValue("random_seed", 0)
    solver.passModel(_program(flat, costs / scale, weights, _runs(items, flat)))
    solver.run()
    solution = np.array(solver.getSolution().col_value)
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal or len(solution) != len(flat):
        raise _nothing_left(items, limits)
    return _allocation(items, [c for (_, c), taken in zip(flat, solution, strict=True) if taken > 0.5])


def _nothing_left(items: Sequence[Item], limits: Limits) -> DoesNotFit:
    """What no choice can reach by itself, else the guards or the limits together are to blame."""
    for name, limit in limits.given.items():
        least = sum(min(getattr(c, name) for c in item.choices) for item in items)
        if least > limit:
            what, show = _SUMS[name]
            return DoesNotFit(
                f"{what} is at least {show(least)} whatever the types, the limit leaves {show(max(0.0, limit))}",
                hint="a looser limit",
            )
    if len(limits.given) > 1:
        return DoesNotFit("no types keep all limits together", hint="a looser limit")
    return DoesNotFit(
        "no allocation keeps the limit without a long run of layers at the lowest format",
        hint="ask for a little more: `--size` or `--bpw` one percent larger",
    )


def _undominated(choices: Sequence[Choice], named: Sequence[str]) -> list[Choice]:
    """Those that no other one is as good as in all that is `named`; of equals the first."""
    values = np.array([[getattr(c, name) for name in named] for c in choices], dtype=float)
    order = np.lexsort(values.T[::-1])
    best: list[int] = []
    for i in order:
        if not best or not (values[best] <= values[i]).all(axis=1).any():
            best.append(i)
    return [choices[i] for i in best]


def _program(
    flat: Sequence[tuple[int, Choice]],
    costs: np.ndarray,
    weights: Sequence[np.ndarray],
    runs: Sequence[Sequence[int]],
) -> Any:
    """The mixed-integer program: one row for each item, one for each limit, one for each guarded run."""
    import highspy

    n_items = flat[-1][0] + 1
    rows = [[] for _ in range(n_items)]  # type: list[list[int]]
    for column, (i, _) in enumerate(flat):
        rows[i].append(column)
    indices = [*rows, *(list(range(len(flat))) for _ in weights), *map(list, runs)]
    values = [*(np.ones(len(r)) for r in rows), *weights, *(np.ones(len(r)) for r in runs)]
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(flat), len(indices)
    program.col_cost_ = costs
    program.col_lower_, program.col_upper_ = np.zeros(len(flat)), np.ones(len(flat))
    program.integrality_ = [highspy.HighsVarType.kInteger] * len(flat)
    infinity = highspy.kHighsInf
    program.row_lower_ = np.array([1.0] * n_items + [-infinity] * (len(weights) + len(runs)))
    program.row_upper_ = np.array([1.0] * (n_items + len(weights)) + [len(r) - 1.0 for r in runs])
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_ = np.cumsum([0, *map(len, indices)])
    program.a_matrix_.index_ = np.concatenate([np.asarray(r, dtype=np.int32) for r in indices])
    program.a_matrix_.value_ = np.concatenate(values)
    return program


def _runs(items: Sequence[Item], flat: Sequence[tuple[int, Choice]]) -> list[list[int]]:
    """Columns that must not all be taken: the lowest format of one role in more than `_LONGEST_RUN` layers in a row."""
    lowest: dict[str, dict[int, int]] = defaultdict(dict)
    for column, (i, choice) in enumerate(flat):
        item = items[i]
        if item.layer is None or len(item.choices) < 2 or BY_NAME[choice.type].bits_per_weight >= _LOW_BITS:
            continue
        if choice.n_bytes == min(c.n_bytes for c in item.choices):
            lowest[item.role][item.layer] = column
    runs = []
    for columns in lowest.values():
        for layer in columns:
            run = [columns[n] for n in range(layer, layer + _LONGEST_RUN + 1) if n in columns]
            if len(run) > _LONGEST_RUN:
                runs.append(run)
    return runs
