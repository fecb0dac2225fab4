"""A picture of a plan against the limits of the machine: memory on the left, time on the right.

    penjing plan model.gguf --json > plan.json
    penjing probe --json > machine.json
    python bench/picture.py plan.json plan.svg --machine machine.json

It shows the chosen way, the engine's default, and whatever else of the plan's frontier no other way beats in
both time and memory. Without the machine only a limit that was asked for (`--memory`) is known. What of the
weights stays on disk, because it exceeds the limit, is hatched. Whiskers are the interval of the prediction.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from penjing import store
from penjing.errors import UserError
from penjing.machine import Machine
from penjing.plan import Chosen, Estimates, Plan, Settings
from penjing.search.choose import describe
from penjing.units import GIB, MIB, show_bytes, show_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAPPED = "#6ea6d8"
# The colours stay apart for colour-blind eyes. What cannot leave memory comes first, so that what lies
# beyond the limit is the part of the weights that is read from disk.
PARTS = (
    ("engine", "base_bytes", "#8c96a3"),
    ("buffers", "compute_bytes", "#c9a227"),
    ("cache", "cache_bytes", "#d1693d"),
    ("weights in memory", "repacked_bytes", "#1f4e79"),
    ("mapped weights", "weights_bytes", MAPPED),
)
PHASES = (("first token", "#2f6f62"), ("answer", "#8fc9b4"))
INK, FAINT, LIMIT = "#24292f", "#6e7781", "#c0262d"
STYLE: Any = {
    "svg.fonttype": "none",  # text that can be searched, and drawn with the reader's fonts
    "svg.hashsalt": "penjing",  # the same plan gives the same file
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],
    "font.size": 8.5,
    "hatch.linewidth": 1.6,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
}
ON_DISK: dict[str, Any] = {"hatch": "/////", "edgecolor": "white", "linewidth": 0}
THICK = 0.5  # of a bar, in rows
FAR = 1.6  # a limit this many times the longest bar is named at the edge, or it would squeeze the bars
WIDTH_INCHES = 7.2  # 690 px


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, metavar="PLAN.json", help="what `penjing plan --json` printed")
    parser.add_argument("out", type=Path, metavar="OUT.svg", help="the picture")
    parser.add_argument("--machine", type=Path, metavar="FILE", help="what `penjing probe --json` printed")
    args = parser.parse_args(argv)
    try:
        plan = store.read_json(args.plan, Plan)
        machine = store.read_json(args.machine, Machine) if args.machine else None
        draw(plan, limit_bytes(plan, machine), args.out)
    except UserError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 2
    return 0


def limit_bytes(plan: Plan, machine: Machine | None) -> int | None:
    """The tightest of what was asked for, what is free, and what the machine or its cgroup has."""
    known = [plan.workload.memory_bytes]
    if machine is not None:
        known += [machine.memory_available_bytes, machine.usable_memory_bytes]
    return min((n for n in known if n is not None), default=None)


class Row(Struct, frozen=True):
    """One way to run the model: its name, how it differs from the engine's default, and whether it fits."""

    way: Chosen
    name: str
    detail: str
    fits: bool


def rows_of(plan: Plan, limit: int | None) -> list[Row]:
    """The chosen way, the engine's default and the rest of the frontier, each once."""
    home = (plan.default or plan.chosen).settings
    rows: dict[Settings, Row] = {}
    for name, way in (("chosen", plan.chosen), ("engine's default", plan.default),
                      *(("another way", way) for way in plan.frontier)):  # fmt: skip
        if way is not None:
            detail = "" if name == "engine's default" else describe(way.settings, home)
            rows.setdefault(way.settings, Row(way, name, textwrap.fill(detail, 24), fits(plan, way, limit)))
    return list(rows.values())


def fits(plan: Plan, way: Chosen, limit: int | None) -> bool:
    """All of it is within the limit or, where weights may come from disk, all that has to stay in memory."""
    from_disk = way.from_disk and plan.workload.allow_disk
    return limit is None or (way.memory.pinned_bytes if from_disk else way.memory.total_bytes) <= limit


def draw(plan: Plan, limit: int | None, out: Path) -> None:
    """Write the picture of `plan` as SVG; `limit` is in bytes, None where nobody knows one.

    Raises:
        Unavailable: `out` cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = rows_of(plan, limit)
    with matplotlib.rc_context(STYLE), store.replacing(out) as temporary:
        height = 1.6 + 0.53 * len(rows)
        figure, (left, right) = pyplot.subplots(1, 2, sharey=True, figsize=(WIDTH_INCHES, height))
        figure.subplots_adjust(left=0.2, right=0.99, top=1 - 0.7 / height, bottom=0.85 / height, wspace=0.07)
        _memory_panel(figure, left, rows, limit)
        _time_panel(figure, right, rows)
        _name_rows(left, rows)
        _title(figure, plan)
        figure.savefig(temporary, format="svg", facecolor="white", metadata={"Date": None})
        pyplot.close(figure)


def _memory_panel(figure: Figure, axes: Axes, rows: Sequence[Row], limit: int | None) -> None:
    longest = max(row.way.memory.total_bytes for row in rows)
    near = limit is not None and limit < FAR * longest
    longest = max(longest, limit if limit and near else 0)
    unit, unit_name = (GIB, "GiB") if longest >= GIB else (MIB, "MiB")
    end = 1.25 * longest / unit
    for y, row in enumerate(rows):
        _memory_bar(axes, y, row, limit, unit)
    if limit is not None and near:
        axes.axvline(limit / unit, color=LIMIT, linewidth=1.5)
        _note(axes, f"limit {show_bytes(limit)}", (limit / unit, -0.5), (0, 3), ha="center", color=LIMIT)
    elif limit is not None:
        _note(axes, f"limit {show_bytes(limit)} →", (end, -0.5), (0, 3), ha="right", color=LIMIT)
    axes.set_xlim(0, end)
    _finish(figure, axes, f"memory, {unit_name}", _memory_keys(rows), shift=-0.14)


def _memory_keys(rows: Sequence[Row]) -> list[dict[str, Any]]:
    used = [part for part in PARTS if any(getattr(row.way.memory, part[1]) for row in rows)]
    keys: list[dict[str, Any]] = [{"color": colour, "label": name} for name, _, colour in used]
    if any(row.fits and row.way.from_disk for row in rows):
        keys.append({"facecolor": MAPPED, "label": "left on disk", **ON_DISK})
    return keys


def _memory_bar(axes: Axes, y: int, row: Row, limit: int | None, unit: int) -> None:
    start = 0
    for _, field, colour in PARTS:
        size = getattr(row.way.memory, field)
        axes.barh(y, size / unit, left=start / unit, height=THICK, color=colour)
        start += size
    if row.fits and row.way.from_disk and limit is not None:
        axes.barh(y, (start - limit) / unit, left=limit / unit, height=THICK, color=MAPPED, **ON_DISK)
    _note(axes, show_bytes(start), (start / unit, y), (4, 0), va="center")


def _time_panel(figure: Figure, axes: Axes, rows: Sequence[Row]) -> None:
    for y, row in enumerate(rows):
        if row.fits:
            _time_bar(axes, y, row.way.estimate)
        else:
            _note(axes, "does not fit", (0, y), (4, 0), va="center", color=LIMIT)
    longest = max(row.way.estimate.total_seconds.high or 0 for row in rows if row.fits)
    axes.set_xlim(0, 1.3 * longest or 1)
    keys = [{"color": colour, "label": name} for name, colour in PHASES]
    _finish(figure, axes, "predicted time, seconds", keys, shift=-0.02)


def _time_bar(axes: Axes, y: int, estimate: Estimates) -> None:
    first, total = estimate.first_token_seconds.value, estimate.total_seconds
    if first is None or total.value is None or total.low is None or total.high is None:
        _note(axes, "unknown", (0, y), (4, 0), va="center", color=FAINT)
        return
    axes.barh(y, first, height=THICK, color=PHASES[0][1])
    axes.barh(y, total.value - first, left=first, height=THICK, color=PHASES[1][1])
    whiskers = [[total.value - total.low], [total.high - total.value]]
    axes.errorbar(total.value, y, xerr=whiskers, color=INK, capsize=3, linewidth=1)
    _note(axes, show_seconds(total.value), (total.high, y), (5, 0), va="center")


def _finish(figure: Figure, axes: Axes, label: str, keys: Sequence[dict[str, Any]], shift: float) -> None:
    """Axis and legend; the legend starts `shift` widths of the panel from its left edge, under the figure."""
    from matplotlib.patches import Patch

    axes.set_xlabel(label)
    axes.tick_params(left=False, labelleft=False, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d0d7de")
    box = axes.get_position()
    figure.legend(
        handles=[Patch(**key) for key in keys],
        loc="upper left",
        bbox_to_anchor=(box.x0 + shift * box.width, 0.42 / figure.get_figheight()),
        ncols=3,
        frameon=False,
        fontsize=7.5,
        handlelength=1.1,
        handleheight=1.0,
        columnspacing=1.1,
        borderpad=0.2,
    )


def _name_rows(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the chosen way on top
    for y, row in enumerate(rows):
        lift = 4.5 * (row.detail.count("\n") + 1 if row.detail else 0) - 3  # half of what stands below it
        _note(axes, row.name, (0, y), (-8, lift), ha="right", weight="bold")
        _note(axes, row.detail, (0, y), (-8, lift - 3), ha="right", va="top", fontsize=7.5, color=FAINT)


def _title(figure: Figure, plan: Plan) -> None:
    wanted, height = plan.workload, figure.get_figheight()
    what = f"{wanted.prompt_tokens} prompt + {wanted.answer_tokens} answer tokens on {plan.machine}"
    figure.text(0.02, 1 - 0.1 / height, plan.model, weight="bold", fontsize=10, va="top")
    figure.text(0.02, 1 - 0.31 / height, what, color=FAINT, va="top")


def _note(
    axes: Axes, text: str, point: tuple[float, float], shift: tuple[float, float], **style: Any
) -> None:
    """`text` at a point of the data, moved by `shift` in points of print."""
    axes.annotate(text, point, shift, textcoords="offset points", annotation_clip=False, **style)


if __name__ == "__main__":
    sys.exit(main())
