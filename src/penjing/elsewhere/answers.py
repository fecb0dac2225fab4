"""The questions: the best plan on some hardware, hardware ranked, the least that is needed, two beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from penjing.cost.cases import Array
from penjing.cost.shapes import Shapes, shapes_of
from penjing.elsewhere.appraise import ENGINES, Appraised, appraised, chosen, placement
from penjing.elsewhere.hardware import Hardware
from penjing.elsewhere.plan import FarChosen, FarPlan, Prices
from penjing.elsewhere.ways import FEW_BITS, Wish, ways
from penjing.errors import DoesNotFit, UsageError
from penjing.model import Model
from penjing.plan import Refusal
from penjing.units import show_bytes, show_number, show_seconds
from penjing.workload import Workload

COUNTS = (1, 2, 4, 8, 16, 32, 64)
_NEAR = 0.03  # of a total: fewer devices win where times differ by less
NO_PRICES, ANY = Prices(), Wish()
_SHOWN = 12  # of what was turned down


class Asked(Struct, frozen=True):
    """What is asked of any hardware."""

    model: Model
    shapes: Shapes
    workload: Workload
    prices: Prices
    wish: Wish

    @classmethod
    def of(cls, model: Model, workload: Workload, prices: Prices = NO_PRICES, wish: Wish = ANY) -> Asked:
        return cls(model, shapes_of(model), workload, prices, wish)


class Ranked(Struct, frozen=True):
    """Hardware with its best plan; none, and why, where nothing keeps the limits."""

    machine: str
    devices: int
    chosen: FarChosen | None
    limited_by: str


def plan(asked: Asked, hardware: Hardware) -> FarPlan:
    """The way with the least time for a user's request within the limits.

    Raises:
        DoesNotFit: the model and the caches of all users exceed the memory in every way; says what would do.
        UsageError: it fits, and no way keeps the limits on time; says which comes nearest.
    """
    a = _all(asked, hardware)
    if a is None:
        raise UsageError(
            f"no engine uses {hardware.count} of `{hardware.name}`", hint=f"--on {hardware.of(1).name!r}"
        )
    best = _best(a)
    if best is None:
        raise _refuse(asked.model, hardware, a)
    others = [int(i) for i in np.lexsort((a.total, ~a.within)) if i != best]
    why = f"{show_seconds(float(a.total[best]))} for the workload; {_binds(a, best)} binds"
    return FarPlan(
        model=asked.model.name,
        machine=hardware.name,
        workload=asked.workload,
        chosen=chosen(a, best, asked.model, asked.prices, why),
        default=None,
        frontier=tuple(chosen(a, i, asked.model, asked.prices) for i in _frontier(a)),
        refused=tuple(_refused(a, best, others)),
        notes=tuple(_notes(hardware)),
    )


def ranked(asked: Asked, every: Sequence[Hardware]) -> list[Ranked]:
    """Each with its best plan, the fastest first; then those that cannot."""
    found = [best_of(asked, one) for one in every]
    return sorted(found, key=lambda r: (r.chosen is None, _seconds(r), r.devices))


def best_of(asked: Asked, one: Hardware) -> Ranked:
    """The best plan for some hardware, or what stands in the way."""
    a = _all(asked, one)
    if a is None:
        return Ranked(one.name, one.count, None, "engines that use several")
    best = _best(a)
    if best is None:
        return Ranked(one.name, one.count, None, _obstacle(a))
    return Ranked(one.name, one.count, chosen(a, best, asked.model, asked.prices), _binds(a, best))


def needed(asked: Asked, kinds: Sequence[tuple[Hardware, int]]) -> list[Ranked]:
    """The fewest of each device that keep all limits; no plan where as many as there may be do not.

    `kinds`: devices, and the most of each.
    """
    found = [_fewest(asked, kind, most) for kind, most in kinds]
    return sorted(found, key=lambda r: (r.chosen is None, r.devices, _seconds(r)))


def _fewest(asked: Asked, kind: Hardware, most: int) -> Ranked:
    """The first count that will do, else the last one."""
    # with fewer of them it did not do
    asked = replace(asked, wish=replace(asked.wish, all_devices=True, few_bits=False))
    for count in sorted({n for n in (*COUNTS, most) if n <= most}):
        one = best_of(asked, kind.of(count))
        if one.chosen is not None:
            break
    return one


def _all(asked: Asked, one: Hardware) -> Appraised | None:
    """Every way with its figures; None where no engine uses so many devices."""
    plans = [(one, way) for way in ways(one, asked.shapes, asked.model, asked.wish)]
    return appraised(plans, asked.shapes, asked.workload) if plans else None


def _best(a: Appraised) -> int | None:
    """The fastest within the limits; of those nearly as fast the one with the fewest devices."""
    good = a.within & ~_few_bits(a)
    good = good if good.any() else a.within
    if not good.any():
        return None
    total = np.where(good, a.total, np.inf)
    near = np.flatnonzero(total <= (1 + _NEAR) * total.min())
    devices = np.array([a.plans[int(i)][1].devices for i in near])
    order = np.lexsort((total[near], devices))
    return int(near[order[0]])


def _few_bits(a: Appraised) -> Array:
    """Formats in which answers suffer visibly."""
    return np.array([way.weights.bits < FEW_BITS for _, way in a.plans])


def _frontier(a: Appraised) -> list[int]:
    """Ways that no other beats in the time of a request and in throughput together."""
    found: list[int] = []
    most = -np.inf
    for i in np.argsort(np.where(a.within, a.total, np.inf)):
        if a.within[i] and a.served.value[i] > (1 + _NEAR) * most:
            found.append(int(i))
            most = a.served.value[i]
    return found


def _refused(a: Appraised, best: int, others: Sequence[int]) -> list[Refusal]:
    """Of each engine and format the fastest way that was not chosen, and why."""
    told: dict[tuple[str, str], Refusal] = {}
    for i in others:
        _, way = a.plans[i]
        key = way.engine, way.weights.name
        if key not in told:
            what = in_words(a, i)
            told[key] = Refusal(what, _why_not(a, i, best))
    return list(told.values())[:_SHOWN]


def in_words(a: Appraised, i: int) -> str:
    """A way in words."""
    return f"{ENGINES[a.plans[i][1].engine]}, {placement(a, i)}"


def _why_not(a: Appraised, i: int, best: int) -> str:
    if not a.fits[i]:
        return _too_large(a, i)
    if a.plans[i][1].weights.bits < FEW_BITS <= a.plans[best][1].weights.bits:
        return "fewer than 4 bits cost quality that is not needed here"
    if not a.within[i]:
        return f"first token after {show_seconds(float(a.first[i]))}, then {show_seconds(float(a.each[i]))} a token"
    mine, theirs = float(a.total[i]), float(a.total[best])
    if mine <= (1 + _NEAR) * theirs:
        return f"{show_seconds(mine)}: no faster, with {a.plans[i][1].devices} devices"
    return f"{show_seconds(mine)} for the workload, the chosen {show_seconds(theirs)}"


def _too_large(a: Appraised, i: int) -> str:
    if not np.isfinite(a.needed[i]):
        return "its weights exceed the memory behind the devices"
    if a.needed[i] > a.room[i]:
        return f"it needs {show_bytes(float(a.needed[i]))} on its devices, which hold {show_bytes(float(a.room[i]))}"
    return f"the memory holds {_users(int(a.sequences[i]))} at once, not {a.workload.users}"


def _obstacle(a: Appraised) -> str:
    if not a.fits.any():
        return "memory"
    w = a.workload
    fits = np.flatnonzero(a.fits)
    slow = w.max_first_token_seconds is not None and a.first[fits].min() > w.max_first_token_seconds
    nearest = int(fits[np.argmin(a.total[fits])])
    what = "first token" if slow else "time for each token"
    return f"{what}: {_binds(a, nearest)}"


def _binds(a: Appraised, i: int) -> str:
    """What binds where most of the time goes."""
    prompts = a.first[i] > a.workload.answer_tokens * a.each[i]
    return str((a.prefill if prompts else a.decode).binds[i])


def _seconds(r: Ranked) -> float:
    return float("inf") if r.chosen is None else r.chosen.estimate.total_seconds.value or float("inf")


def _refuse(model: Model, hardware: Hardware, a: Appraised) -> Exception:
    workload = a.workload
    if not a.fits.any():
        i = int(np.argmin(np.where(np.isfinite(a.needed), a.needed / np.maximum(a.room, 1.0), np.inf)))
        each = float(a.room[i]) / max(1, a.plans[i][1].devices)
        return DoesNotFit(
            f"`{model.name}` needs {show_bytes(float(a.needed[i]))} as {in_words(a, i)}, with a context of "
            f"{workload.cache_tokens} for {_users(workload.users)}; `{hardware.name}` holds "
            f"{show_bytes(float(a.room[i]))}",
            hint=f"about {max(2, -(-int(a.needed[i]) // max(1, int(each))))} of them: "
            f"penjing need {model.name!r} --users {workload.users}",
        )
    fits = np.flatnonzero(a.fits)
    i = int(fits[np.argmin(a.total[fits])])
    return UsageError(
        f"no way to run `{model.name}` on `{hardware.name}` keeps the limits: the nearest has its first token after "
        f"{show_seconds(float(a.first[i]))} and {show_number(1 / float(a.each[i]))} tok/s for each user",
        hint=f"--first-token {float(a.first[i]) * 1.1:.2g} --min-decode {0.9 / float(a.each[i]):.2g}",
    )


def _users(count: int) -> str:
    return f"{count} users" if count > 1 else "1 user"


def _notes(hardware: Hardware) -> list[str]:
    notes = [
        "figures are predicted from datasheets; the interval says how far off that was on devices left out"
    ]
    if hardware.machine.notes:
        notes += [f"{hardware.machine.name}: {note}" for note in hardware.machine.notes[:2]]
    return notes
