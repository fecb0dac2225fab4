"""`penjing validate`: a table of measurements beside what is predicted for its devices, models and settings."""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path
from typing import Any

from penjing.cli import show
from penjing.table import judge, rows

_SHIPPED = "measured-sample.csv"


def command(args: argparse.Namespace) -> int:
    path = Path(args.table) if args.table else Path(str(resources.files("penjing") / "data" / _SHIPPED))
    report = judge.report(rows.read(path))
    if args.json:
        show.document(report)
    else:
        _show(report)
    return 0


def _show(report: dict[str, Any]) -> None:
    print(f"{report['rows']} rows, {report['predicted']} predicted from datasheets alone; errors are of the "
          f"{report['judged']} that the table itself does not doubt")  # fmt: skip
    for why, count in report["unsupported"].items():
        print(f"  not predicted  {count} rows: {why}")
    for bad in report["malformed"]:
        print(f"  line {bad['line']}: {bad['why']}")
    show.put(show.table(_HEAD, [_row(name, found) for name, found in report["by_phase"].items()]))
    show.put(show.table(_HEAD, [_row(name, found) for name, found in report["by_group"].items()]))
    print("the worst misses")
    show.put(show.table(_MISS, [_miss(found) for found in report["worst"]]))


_HEAD = ("", "rows", "median error", "p90", "sign", "inside the interval")
_MISS = ("row", "device", "model", "engine", "measured", "predicted", "bound by")


def _row(name: str, found: dict[str, float]) -> tuple[str, ...]:
    errors = (found[f"{key}_error_percent"] for key in ("median_abs", "p90_abs", "median_signed"))
    middle, high, sign = errors
    inside = f"{100 * found['inside_interval']:.0f} %"
    return name, str(int(found["rows"])), f"{middle:.0f} %", f"{high:.0f} %", f"{sign:+.0f} %", inside


def _miss(found: dict[str, Any]) -> tuple[str, ...]:
    names = tuple(str(found[key])[:36] for key in ("id", "device", "model", "engine"))
    return (
        *names,
        f"{found['measured']:.4g} {found['metric']}",
        f"{found['predicted']:.4g}",
        str(found["binds"]),
    )
