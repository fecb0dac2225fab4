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

from penjing import store
from penjing.errors import UserError
from penjing.machine import Machine
from penjing.plan import Chosen, Plan, Settings
from penjing.search.choose import describe
from penjing.units import GIB, show_bytes, show_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours stay apart for colour-blind eyes. What cannot leave memory comes first, so that what lies
# beyond the limit is the part of the weights that is read from disk.
PARTS = (
    ("engine", "base_bytes", "#8c96a3"),
    ("buffers", "compute_bytes", "#c9a227"),
    ("cache", "cache_bytes", "#d1693d"),
    ("weights in memory", "repacked_bytes", "#1f4e79"),
    ("mapped weights", "weights_bytes", "#6ea6d8"),
)
PHASES = (("first token", "#2f6f62"), ("answer", "#8fc9b4"))
INK, FAINT, LIMIT = "#24292f", "#6e7781", "#c0262d"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text that can be searched, and drawn with the reader's fonts
    "svg.hashsalt": "penjing",  # the same plan gives the same file
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],
    "font.size": 8.5,
    "hatch.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
}
FAR = 1.6  # a limit this many times the longest bar is named at the edge, or it would squeeze the bars
WIDTH_INCHES = 7.2  # 690 px


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, metavar="PLAN.json", help="what `penjing plan --json` printed")
    parser.add_argument("out", type=Path, metavar="OUT.svg", help="another ending gives another format")
    parser.add_argument("--machine", type=Path, metavar="FILE", help="what `penjing probe --json` printed")
    args = parser.parse_args(argv)
    try:
        plan = store.read_json(args.plan, Plan)
        machine = store.read_json(args.machine, Machine) if args.machine else None
    except UserError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 2
    draw(plan, limit_bytes(plan, machine), args.out)
    return 0


def limit_bytes(plan: Plan, machine: Machine | None) -> int | None:
    """The tightest of what was asked for, what is free, and what the machine or its cgroup has."""
    known = [plan.workload.memory_bytes]
    if machine is not None:
        known += [machine.memory_available_bytes, machine.usable_memory_bytes]
    return min((n for n in known if n is not None), default=None)


def shown_ways(plan: Plan) -> list[Chosen]:
    """The chosen way, the engine's default and the rest of the frontier, each once."""
    ways: dict[Settings, Chosen] = {}
    for way in (plan.chosen, plan.default, *plan.frontier):
        if way is not None:
            ways.setdefault(way.settings, way)
    return list(ways.values())


def draw(plan: Plan, limit: int | None, out: Path) -> None:
    """Write the picture of `plan` to `out`; `limit` is in bytes, None where nobody knows one."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    ways = shown_ways(plan)
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(
            1, 2, sharey=True, figsize=(WIDTH_INCHES, 1.75 + 0.5 * len(ways)), facecolor="white"
        )
        for row, way in enumerate(ways):
            _memory_bar(left, row, way, limit)
            _time_bar(right, row, way)
        _memory_axis(left, ways, limit)
        _time_axis(right, ways)
        _name_rows(left, plan, ways)
        _title(figure, plan)
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
        pyplot.close(figure)


def _memory_bar(axes: Axes, row: int, way: Chosen, limit: int | None) -> None:
    start = 0
    for name, field, colour in PARTS:
        size = getattr(way.memory, field)
        axes.barh(row, size / GIB, left=start / GIB, height=0.5, color=colour)
        start += size
        beyond = start - (limit or start)
        if name == "mapped weights" and way.from_disk and beyond > 0:
            axes.barh(row, beyond / GIB, left=(start - beyond) / GIB, height=0.5, color="white",
                      alpha=0.55, hatch="////", edgecolor=INK, linewidth=0)  # fmt: skip
    axes.annotate(show_bytes(start), (start / GIB, row), (4, 0), textcoords="offset points", va="center")


def _time_bar(axes: Axes, row: int, way: Chosen) -> None:
    total, first = way.estimate.total_seconds, way.estimate.first_token_seconds
    if total.value is None or first.value is None or total.low is None or total.high is None:
        axes.annotate("unknown", (0, row), (4, 0), textcoords="offset points", va="center", color=FAINT)
        return
    axes.barh(row, first.value, height=0.5, color=PHASES[0][1])
    axes.barh(row, total.value - first.value, left=first.value, height=0.5, color=PHASES[1][1])
    whisker = [[total.value - total.low], [total.high - total.value]]
    axes.errorbar(total.value, row, xerr=whisker, color=INK, capsize=3, linewidth=1)
    axes.annotate(
        show_seconds(total.value), (total.high, row), (5, 0), textcoords="offset points", va="center"
    )


def _memory_axis(axes: Axes, ways: Sequence[Chosen], limit: int | None) -> None:
    longest = max(way.memory.total_bytes for way in ways)
    near = limit is not None and limit < FAR * longest
    axes.set_xlim(0, 1.25 * max(longest, limit if limit and near else 0) / GIB)
    if limit is not None:
        place: dict[str, Any] = {"ha": "center"} if near else {"ha": "right"}
        text = f"limit {show_bytes(limit)}" if near else f"limit {show_bytes(limit)} →"
        x = limit / GIB if near else axes.get_xlim()[1]
        if near:
            axes.axvline(x, color=LIMIT, linewidth=1.5)
        axes.annotate(text, (x, -0.5), (0, 3), textcoords="offset points", color=LIMIT, **place)
    _finish(axes, "memory, GiB", [(name, colour) for name, field, colour in PARTS
                                  if any(getattr(way.memory, field) for way in ways)])  # fmt: skip


def _time_axis(axes: Axes, ways: Sequence[Chosen]) -> None:
    longest = max((way.estimate.total_seconds.high or 0 for way in ways), default=0)
    axes.set_xlim(0, 1.3 * longest or 1)
    _finish(axes, "predicted time, seconds", PHASES)


def _finish(axes: Axes, label: str, legend: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    axes.set_xlabel(label)
    axes.tick_params(left=False, labelleft=False, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d0d7de")
    patches = [Patch(color=colour, label=name) for name, colour in legend]
    axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(start, -0.34), ncols=3, frameon=False,
                fontsize=7.5, handlelength=0.9, handleheight=0.9, columnspacing=1, borderpad=0)  # fmt: skip


def _name_rows(axes: Axes, plan: Plan, ways: Sequence[Chosen]) -> None:
    axes.set_ylim(len(ways) - 0.5, -0.5)  # the chosen way on top
    for row, way in enumerate(ways):
        head, detail = _name(plan, way)
        place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        lift = 1 if detail else -3
        axes.annotate(head, (0, row), (-8, lift), ha="right", weight="bold", **place)
        axes.annotate(detail, (0, row), (-8, -2), ha="right", va="top", fontsize=7.5, color=FAINT, **place)


def _name(plan: Plan, way: Chosen) -> tuple[str, str]:
    """What a row is called, and how it differs from the engine's default."""
    home = plan.default.settings if plan.default else way.settings
    detail = "" if way.settings == home else textwrap.fill(describe(way.settings, home), 24)
    if way.settings == plan.chosen.settings:
        return "chosen", detail
    return ("engine's default", "") if way.settings == home else ("on the frontier", detail)


def _title(figure: Figure, plan: Plan) -> None:
    wanted = plan.workload
    height = figure.get_figheight()
    top = 1 - 0.1 / height
    figure.text(0.02, top, f"{plan.model} on {plan.machine}", weight="bold", fontsize=9.5, va="top")
    figure.text(0.02, top - 0.21 / height, f"{wanted.prompt_tokens} prompt + {wanted.answer_tokens} answer tokens",
                color=FAINT, va="top")  # fmt: skip
    figure.subplots_adjust(left=0.2, right=0.99, top=1 - 0.68 / height, bottom=0.95 / height, wspace=0.06)


if __name__ == "__main__":
    sys.exit(main())
