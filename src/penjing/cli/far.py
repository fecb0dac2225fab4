"""What the commands on described hardware share: options into nouns, and tables."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penjing.cli import show
from penjing.errors import BadFile, UsageError
from penjing.units import show_bytes, show_number, show_seconds

if TYPE_CHECKING:
    from penjing.elsewhere.answers import Ranked
    from penjing.elsewhere.hardware import Hardware
    from penjing.elsewhere.plan import FarChosen, FarPlan, Prices
    from penjing.figures import Estimate


COUNTS = (1, 2, 4, 8)  # devices of a kind, in a ranked list


def prices(args: argparse.Namespace) -> Prices:
    from penjing.elsewhere.plan import Prices

    return Prices(args.price_per_hour, args.price_per_kwh)


def reader(args: argparse.Namespace) -> Callable[[str], Hardware]:
    """Hardware by its description, with what the runs that `--runs` names say about it."""
    from penjing.elsewhere import runs
    from penjing.elsewhere.hardware import hardware

    if args.runs is None:
        return hardware
    known = runs.corrections(Path(args.runs).expanduser())
    return lambda text: runs.with_runs(hardware(text), known)


def every_device(chosen_class: str | None, rules: str, read: Callable[[str], Hardware]) -> list[Hardware]:
    """Every device of the catalogue whose memory rate is known, of one class of an export rule if that is given."""
    from penjing import catalogue
    from penjing.catalogue.controls import class_of
    from penjing.cli.machines import is_in

    rule = catalogue.rules(rules) if chosen_class else None
    found = []
    for machine in catalogue.machines():
        if rule and chosen_class and not is_in(class_of(machine, rule).name, chosen_class):
            continue
        try:
            found.append(read(machine.name))
        except UsageError:  # nobody knows how fast its memory is
            continue
    return found


def inventory(path: str, read: Callable[[str], Hardware]) -> list[tuple[Hardware, int]]:
    """What a user has: names and counts in a TOML file.

    Raises:
        BadFile: it cannot be read, or a count is none.
    """
    try:
        found = tomllib.loads(Path(path).expanduser().read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"cannot read `{path}`: {error}", hint='write lines like `"RTX 4090" = 8`') from error
    have = found.get("have", found)
    if not isinstance(have, dict) or not have:
        raise BadFile(f"`{path}` names no devices", hint='write lines like `"RTX 4090" = 8`')
    for name, count in have.items():
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= 100_000:
            raise BadFile(f"`{path}` has {count} of `{name}`", hint=f'a whole number from 1: `"{name}" = 8`')
    return [(read(name), count) for name, count in have.items()]


def put_plan(p: FarPlan) -> None:
    """A plan for people."""
    w, e = p.workload, p.chosen.estimate
    users = f"{w.users} users" if w.users > 1 else "1 user"
    print(
        f"{p.model} on {p.machine}\nfor {w.prompt_tokens} prompt + {w.answer_tokens} answer tokens, {users}"
    )
    print(f"chosen: {p.chosen.engine}, {p.chosen.settings}: {p.chosen.why}")
    rows = [
        ("decode, each user", _words(e.decode_tokens_per_s, "tok/s"), p.chosen.binds["decode"]),
        ("prefill", _words(e.prefill_tokens_per_s, "tok/s"), p.chosen.binds["prefill"]),
        ("first token", _time(e.first_token_seconds), ""),
        ("between tokens", _time(e.per_token_seconds), ""),
        ("request", _time(e.total_seconds), ""),
        ("answers of all", _words(e.throughput_tokens_per_s, "tok/s"), p.chosen.binds["serving"]),
        ("memory", show_bytes(e.memory_bytes.value or 0), f"{p.chosen.settings.sequences} users at most"),
        ("power", _plain(e.watts, "W, at its limit"), ""),
        (
            "energy",
            _plain(e.joules_per_million_tokens.map(lambda j: j / 3.6e6), "kWh per million tokens"),
            "estimated",
        ),
        ("cost", _plain(e.cost_per_million_tokens, "per million tokens"), ""),
    ]
    show.put(show.table(("", "predicted", "binds"), [row for row in rows if row[1]]))
    if p.refused:
        show.put(show.table(("not chosen", "why"), [(r.what, r.why) for r in p.refused]))
    for note in p.notes:
        print(f"note: {note}")


def put_ranked(model: str, rows: Sequence[Ranked], *, most: int | None = None) -> None:
    """Hardware in the order in which it was ranked; what cannot do it is counted by reason."""
    able = [r for r in rows if r.chosen]
    shown = able[:most]
    header = (
        "machine",
        "plan",
        "request",
        "each user",
        "all",
        "users",
        "power",
        "per M tokens",
        "limited by",
    )
    if shown:
        show.put(show.table(header, [_row(r, r.chosen) for r in shown if r.chosen]))
    if len(able) > len(shown):
        print(f"and {len(able) - len(shown)} more that can; `--json` has all")
    unable: dict[str, list[str]] = {}
    for r in rows:
        if r.chosen is None:
            unable.setdefault(r.limited_by, []).append(r.machine)
    for why, names in unable.items():
        print(
            f"not {model} within the limits, {why}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        )


def _row(r: Ranked, chosen: FarChosen) -> tuple[str, ...]:
    e = chosen.estimate
    return (
        r.machine, str(chosen.settings), show_seconds(e.total_seconds.value or 0),
        _plain(e.decode_tokens_per_s, "tok/s"), _plain(e.throughput_tokens_per_s, "tok/s"),
        str(chosen.settings.sequences), _plain(e.watts, "W"), _plain(e.cost_per_million_tokens, ""), r.limited_by,
    )  # fmt: skip


def _words(estimate: Estimate, unit: str) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "unknown"
    low, high = show_number(estimate.low), show_number(estimate.high)
    return f"{show_number(estimate.value)} {unit}  ({low} to {high})"


def _time(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "unknown"
    return f"{show_seconds(estimate.value)}  ({show_seconds(estimate.low)} to {show_seconds(estimate.high)})"


def _plain(estimate: Estimate, unit: str) -> str:
    return "" if estimate.value is None else f"{show_number(estimate.value)} {unit}".strip()
