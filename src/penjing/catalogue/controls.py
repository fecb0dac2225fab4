"""The figures that export rules ask for, and the class of a machine by the numbers of a rule.

    TPP = 2 x MacTOPS x bits of the operands = dense operations per second x bits / 1e12, the largest over formats
    performance density = TPP / area of the logic dies in mm2

Definitions: 3A090 of the US Commerce Control List, technical notes (88 FR 73458). Rules are files, dated and
editable (`data/rules/`). Nothing here is legal advice, and every verdict says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct

from penjing.figures import Figure, Source
from penjing.machine import Machine

NOT_LEGAL_ADVICE = "not legal advice"

_BITS = {"fp64": 64, "fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}

Limit = Annotated[float, Meta(ge=0)]


class Terms(Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers that must all hold: at least `_from`, less than `_below`.

    kinds: beginnings of a machine's `kind`, of which one must fit; none asks for no kind.
    """

    name: str = ""
    tpp_from: Limit | None = None
    tpp_below: Limit | None = None
    density_from: Limit | None = None
    density_below: Limit | None = None
    memory_bytes_per_s_from: Limit | None = None
    memory_bytes_per_s_below: Limit | None = None
    kinds: tuple[str, ...] = ()


class Rules(Struct, frozen=True, forbid_unknown_fields=True):
    """A dated rule: the first of `classes` whose terms hold is the answer, else `otherwise`.

    scope: where given, one of these must hold too, else the answer is `out_of_scope`.
    """

    name: str
    title: str
    in_force: str
    sources: tuple[str, ...]
    classes: tuple[Terms, ...]
    otherwise: str
    captured: str = ""
    scope: tuple[Terms, ...] = ()
    out_of_scope: str = "not in scope"
    notes: tuple[str, ...] = ()


class Verdict(Struct, frozen=True):
    """The class of a machine by the numbers of a rule; `missing` names figures without which it is open."""

    rules: str
    name: str
    tpp: Figure
    performance_density: Figure
    missing: tuple[str, ...] = ()
    note: str = NOT_LEGAL_ADVICE


def total_processing_performance(machine: Machine) -> Figure:
    """TPP of one device. Its source is `assumed` where the rate behind it is.

    Left out: formats without a length of operands, and rates with sparsity (the rule counts dense ones).
    """
    known = [
        (c.operations_per_s.value * _BITS[c.format] / 1e12, c)
        for c in machine.compute
        if c.format in _BITS and c.operations_per_s.value is not None
    ]
    if not known:
        return Figure(None, "assumed", "no dense rate is known")
    value, compute = max(known, key=lambda pair: pair[0])
    return Figure(value, compute.operations_per_s.source, f"{compute.format} x {_BITS[compute.format]} bits")


def performance_density(machine: Machine) -> Figure:
    """TPP per mm2 of logic; unknown where the area is."""
    tpp, area = total_processing_performance(machine), machine.die_area_mm2
    if tpp.value is None or area is None or area.value is None:
        return Figure(None, "assumed", "TPP or die area is unknown")
    source: Source = "assumed" if "assumed" in (tpp.source, area.source) else "datasheet"
    return Figure(tpp.value / area.value, source, f"TPP / {area.value:g} mm2")


def class_of(machine: Machine, rules: Rules) -> Verdict:
    """Where the numbers of a machine put it under a rule. Not legal advice."""
    tpp, density = total_processing_performance(machine), performance_density(machine)
    name, missing = _decide(machine, rules)
    if missing:
        name = f"needs {' and '.join(missing)}"
    return Verdict(rules.name, name, tpp, density, missing)


def _decide(machine: Machine, rules: Rules) -> tuple[str, tuple[str, ...]]:
    """The answer, or the figures that it hangs on."""
    if rules.scope:
        within, missing = _first(machine, rules.scope)
        if within is None:
            return rules.out_of_scope, missing
    found, missing = _first(machine, rules.classes)
    return (found.name, ()) if found else (rules.otherwise, missing)


def _first(machine: Machine, choices: Iterable[Terms]) -> tuple[Terms | None, tuple[str, ...]]:
    """The first that surely holds; without one, what is missing for those that may hold."""
    missing: dict[str, None] = {}
    for terms in choices:
        open_ends = _missing(machine, terms)
        if open_ends == ():
            return terms, ()
        missing |= dict.fromkeys(open_ends or ())
    return None, tuple(missing)


def _missing(machine: Machine, terms: Terms) -> tuple[str, ...] | None:
    """What must be known to say that the terms hold: nothing where they do; None where they do not."""
    if terms.kinds and not machine.kind.startswith(terms.kinds):
        return None
    rate = machine.tiers[0].read_bytes_per_s if machine.tiers else Figure(None, "assumed")
    tpp = total_processing_performance(machine)
    tests = (
        ("rates", tpp, terms.tpp_from, terms.tpp_below),
        (
            "rates" if tpp.value is None else "die area",
            performance_density(machine),
            terms.density_from,
            terms.density_below,
        ),
        ("memory bandwidth", rate, terms.memory_bytes_per_s_from, terms.memory_bytes_per_s_below),
    )
    asked = [
        (what, figure.value, low, high) for what, figure, low, high in tests if (low, high) != (None, None)
    ]
    if any(value is not None and not _within(value, low, high) for _, value, low, high in asked):
        return None
    return tuple(dict.fromkeys(what for what, value, _, _ in asked if value is None))


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value < high)
