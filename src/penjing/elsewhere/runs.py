"""Runs that a user has made on a device: what they say about predictions for other models on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from penjing.cost import estimates
from penjing.cost.cases import cases
from penjing.cost.ways import Phase
from penjing.elsewhere.hardware import Hardware
from penjing.errors import BadFile
from penjing.table import judge, rows
from penjing.table.resolve import Case

Corrections = Mapping[str, Mapping[str, Mapping[Phase, float]]]  # by device, class of engine and phase


def corrections(path: Path) -> Corrections:
    """Factors on predictions from a table of runs, in the columns that `penjing validate` reads.

    Raises:
        BadFile: it cannot be read, or holds no run of a known device and model.
    """
    piles = judge.resolved(rows.read(path))
    if not piles.cases:
        reasons = [u.why for u in piles.unsupported] + [f"line {m.line}, {m.why}" for m in piles.malformed]
        why = reasons[0] if reasons else "it has no rows"
        raise BadFile(f"`{path}` has no run that can be used: {why}", hint=f"penjing validate {path}")
    found: dict[str, dict[str, dict[Phase, float]]] = {}
    for phase in judge.PHASES:
        groups: dict[tuple[str, str], list[Case]] = {}
        for case in piles.cases:
            if case.job.phase == phase:
                groups.setdefault((case.device.name, case.way.engine), []).append(case)
        for (device, engine), alike in groups.items():
            factor = estimates.anchored(_errors(alike, phase))
            found.setdefault(device, {}).setdefault(engine, {})[phase] = factor
    return found


def with_runs(hardware: Hardware, known: Corrections) -> Hardware:
    """The hardware with what runs on its device say; unchanged where there are none."""
    mine = known.get(hardware.device.name)
    return replace(hardware, runs=mine) if mine else hardware


def _errors(alike: Sequence[Case], phase: Phase) -> list[float]:
    """Logarithms of predicted over measured rates."""
    predicted = estimates.rates(cases([(c.device, c.shapes, c.way, c.job) for c in alike]), phase).value
    return [float(e) for e in np.log(predicted / [judge.measured_rate(c) for c in alike])]
