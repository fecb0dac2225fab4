"""A table of measurements beside what the cost model says: how far off it is, and what it cannot say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from msgspec import Struct

from penjing.cost import estimates
from penjing.cost.cases import cases, maker, memory_class
from penjing.cost.estimates import Level
from penjing.cost.ways import Phase
from penjing.table.resolve import Case, Unsupported, resolve
from penjing.table.rows import Malformed, Row
from penjing.table.settings import counts_input

Array = np.ndarray
PHASES: tuple[Phase, ...] = get_args(Phase)
_WORST = 10


@dataclass(frozen=True)
class Resolved:
    """The rows of a table by what became of them."""

    cases: Sequence[Case]
    unsupported: Sequence[Unsupported]
    malformed: Sequence[Malformed]


class Verdict(Struct, frozen=True):
    """One row: what was measured and predicted, in the row's own metric, and what binds."""

    line: int
    id: str
    device: str
    model: str
    engine: str
    phase: Phase
    metric: str
    measured: float
    predicted: float
    low: float
    high: float
    binds: str

    @property
    def error(self) -> float:
        """Signed, relative to what was measured."""
        return self.predicted / self.measured - 1

    @property
    def inside(self) -> bool:
        return self.low <= self.measured <= self.high


def resolved(table: Iterable[Row | Malformed]) -> Resolved:
    """Every row of a table in one of three piles."""
    found: list[Case | Unsupported] = []
    malformed = []
    for row in table:
        if isinstance(row, Malformed):
            malformed.append(row)
        else:
            found.append(resolve(row))
    return Resolved(
        [c for c in found if isinstance(c, Case)], [u for u in found if isinstance(u, Unsupported)], malformed
    )


def is_judged(row: Row) -> bool:
    """The table stands behind the row: neither graded C (self-reported, second-hand, incomplete) nor marked as odd."""
    return row.grade != "C" and not row.odd


def measured_rate(case: Case) -> float:
    """Tokens per second over all devices, of prompts in prefill and of answers otherwise, from the row's metric."""
    row, job = case.row, case.job
    sequences = job.sequences or 1.0
    if row.metric == "TTFT_ms":
        return (1.0 if job.loaded else sequences) * job.prompt_tokens * 1000 / row.value
    if row.metric == "TPOT_ms":
        return sequences * 1000 / row.value
    share = job.output_tokens / (job.prompt_tokens + job.output_tokens) if counts_input(row) else 1.0
    times = {"tokens_per_s_per_device": float(row.count or 1), "tokens_per_s_per_user": sequences}
    return row.value * times.get(row.metric, 1.0) * share


def verdicts(found: Sequence[Case], level: Level = "datasheet") -> list[Verdict]:
    """What the model says about each row, in order."""
    by_line: dict[int, Verdict] = {}
    for phase in PHASES:
        mine = [c for c in found if c.job.phase == phase]
        if not mine:
            continue
        rates = estimates.rates(cases([(c.device, c.shapes, c.way, c.job) for c in mine]), phase, level)
        for i, case in enumerate(mine):
            ends = (rates.value[i], rates.low[i], rates.high[i])
            by_line[case.row.line] = _verdict(case, ends, str(rates.binds[i]))
    return [by_line[c.row.line] for c in found]


def _verdict(case: Case, ends: tuple[float, float, float], binds: str) -> Verdict:
    """The prediction in the row's metric: in proportion to the rate, or for a time to its inverse."""
    row, rate = case.row, measured_rate(case)
    is_time = row.metric.endswith("_ms")
    value, low, high = (row.value * (rate / end if is_time else end / rate) for end in map(float, ends))
    return Verdict(
        row.line, row.id, row.device, row.model, row.engine, case.job.phase, row.metric, row.value,
        value, min(low, high), max(low, high), binds,
    )  # fmt: skip


def report(table: Iterable[Row | Malformed], level: Level = "datasheet") -> dict[str, Any]:
    """How far predictions are off, by phase and by group; every row is counted once.

    Rows that the table itself doubts are predicted too, but their errors stand apart.
    """
    rows = resolved(table)
    found = verdicts(rows.cases, level)
    judged = [(v, c) for v, c in zip(found, rows.cases, strict=True) if is_judged(c.row)]
    doubted = [v for v, c in zip(found, rows.cases, strict=True) if not is_judged(c.row)]
    unsupported = Counter(u.why for u in rows.unsupported) + Counter({"malformed row": len(rows.malformed)})
    return {
        "level": level,
        "rows": len(found) + len(rows.unsupported) + len(rows.malformed),
        "predicted": len(found),
        "judged": len(judged),
        "unsupported": dict(unsupported.most_common()),
        "malformed": [{"line": m.line, "why": m.why} for m in rows.malformed],
        "by_phase": by_phase([v for v, _ in judged]),
        "by_group": _by_group(judged),
        "doubted_by_the_table": by_phase(doubted),
        "worst": [_as_row(v) for v in sorted((v for v, _ in judged), key=_distance, reverse=True)[:_WORST]],
        "unknown_labels": dict(Counter(_label(u) for u in rows.unsupported).most_common(50)),
    }


def _label(found: Unsupported) -> str:
    return found.row.model if "model" in found.why else found.row.device


def _distance(verdict: Verdict) -> float:
    return abs(float(np.log(verdict.predicted / verdict.measured)))


def _as_row(v: Verdict) -> dict[str, Any]:
    return {
        "line": v.line, "id": v.id, "device": v.device, "model": v.model, "engine": v.engine, "phase": v.phase,
        "metric": v.metric, "measured": v.measured, "predicted": round(v.predicted, 3), "binds": v.binds,
    }  # fmt: skip


def by_phase(found: Sequence[Verdict]) -> dict[str, dict[str, float]]:
    return {phase: summary(mine) for phase in PHASES if (mine := [v for v in found if v.phase == phase])}


def summary(found: Sequence[Verdict]) -> dict[str, float]:
    """Median, p90 and sign of the errors in percent, and the share of rows inside their interval."""
    errors = np.array([v.error for v in found]) * 100
    return {
        "rows": len(found),
        "median_abs_error_percent": round(float(np.median(np.abs(errors))), 2),
        "p90_abs_error_percent": round(float(np.quantile(np.abs(errors), 0.9)), 2),
        "median_signed_error_percent": round(float(np.median(errors)), 2),
        "inside_interval": round(float(np.mean([v.inside for v in found])), 4),
    }


def _by_group(judged: Sequence[tuple[Verdict, Case]]) -> Mapping[str, dict[str, float]]:
    """The same by class of engine, maker and memory of the device, class of format, and source."""
    groups: dict[str, list[Verdict]] = {}
    for verdict, case in judged:
        for name in _groups(case):
            groups.setdefault(name, []).append(verdict)
    return {name: summary(groups[name]) for name in sorted(groups)}


def _groups(case: Case) -> list[str]:
    phase = case.job.phase
    source = case.row.id.rsplit("-", 1)[0] if "-" in case.row.id else "unnamed"
    return [
        f"{phase}, engine {case.way.engine}",
        f"{phase}, device {maker(case.device)} {memory_class(case.device)}",
        f"{phase}, format {case.way.weights.kernel}",
        f"{phase}, source {source}",
    ]
