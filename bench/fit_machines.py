"""Fit the constants of the cost model for any device to the measurements in bench/data, and write them to the package.

    python bench/fit_machines.py            fits, leaves each device out in turn, writes src/penjing/data/anywhere.toml
    python bench/fit_machines.py --check    only says how far the file in the package is from what would be written

Rows graded A and B that are not marked as odd take part, as far as device and model are known. A group of many rows
(one device, source and phase) weighs less for each of them, because its errors are alike.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

import priors
import robust
from penjing.cost import anywhere
from penjing.cost.cases import ENGINES, Cases, cases
from penjing.cost.constants import CLASSES, from_vector, names
from penjing.cost.estimates import anchored
from penjing.cost.ways import Phase
from penjing.table import judge, rows
from penjing.table.resolve import Case

Array = np.ndarray
TABLE = Path(__file__).parent / "data" / "measured.csv"
SHIPPED = Path(__file__).parents[1] / "src" / "penjing" / "data" / "anywhere.toml"
PHASES: tuple[Phase, ...] = get_args(Phase)
INSIDE = 0.9  # share of errors on left-out devices that an interval spans, so that 80 % are inside on others
_FEW_ROWS, _FEW_DEVICES = 40, 4  # below which a class of engines takes the interval of all


@dataclass(frozen=True)
class Data:
    """Rows to fit, as arrays. measured: log tokens per second."""

    found: Sequence[Case]
    plans: Cases
    phase: Array
    measured: Array
    device: Array
    weights: Array

    def __len__(self) -> int:
        return len(self.measured)


def load(path: Path = TABLE) -> Data:
    """The rows of a table that are fit for fitting: judged, and resolved."""
    found = [c for c in judge.resolved(rows.read(path)).cases if judge.is_judged(c.row)]
    kinds = [(c.device.name, c.row.id.rsplit("-", 1)[0], c.job.phase) for c in found]
    sizes = Counter(kinds)
    weights = np.array([sizes[kind] ** -0.2 for kind in kinds])
    return Data(
        found,
        cases([(c.device, c.shapes, c.way, c.job) for c in found]),
        np.array([PHASES.index(c.job.phase) for c in found]),
        np.log([judge.measured_rate(c) for c in found]),
        np.array([c.device.name for c in found]),
        weights / weights.mean(),
    )


Errors = Callable[[Array], Array]  # log errors of rows, by the logarithms of the constants


def predictor(data: Data, index: Array) -> Errors:
    """Log errors of the rows that `index` selects, as a function of the logarithms of the constants."""
    parts = [(p, np.where(data.phase[index] == i)[0]) for i, p in enumerate(PHASES)]
    plans = [(p, at, data.plans.take(index[at])) for p, at in parts if len(at)]
    measured = data.measured[index]

    def errors(x: Array) -> Array:
        k, found = from_vector(np.exp(x)), np.empty(len(index))
        for phase, at, c in plans:
            found[at] = np.log(np.maximum(anywhere.per_second(c, k, phase), 1e-9))
        return found - measured

    return errors


def fitted(data: Data, index: Array, start: Array, rounds: int) -> tuple[Array, Array]:
    """The constants by these rows, as logarithms, and their covariance.

    Groups have no offsets of their own here: with them (deviation 0.2) priors of classes with few groups won over
    rows, and errors on left-out devices grew at the 90th percentile.
    """
    problem = robust.Problem(predictor(data, index), data.weights[index], priors.mean(), priors.deviation())
    return robust.fit(problem, start, rounds)


def left_out(data: Data, start: Array) -> Array:
    """Log error of every row, with constants fitted to the rows of all other devices."""
    found = np.empty(len(data))
    for device in np.unique(data.device):
        seen, unseen = np.where(data.device != device)[0], np.where(data.device == device)[0]
        x, _ = fitted(data, seen, start, 4)
        found[unseen] = predictor(data, unseen)(x)
    return found


def after_anchors(data: Data, errors: Array, runs: int = 2) -> Array:
    """Log errors after taking off the mean of `runs` others of the same device and phase, of other models if there are
    such; NaN where there is no other run."""
    found = np.full(len(errors), np.nan)
    model = np.array([c.shapes.name for c in data.found])
    generator = np.random.default_rng(0)
    for i in range(len(errors)):
        alike = (data.device == data.device[i]) & (data.phase == data.phase[i])
        alike &= data.plans.engine_class == data.plans.engine_class[i]
        alike[i] = False
        others = np.where(alike & (model != model[i]))[0]
        others = others if len(others) else np.where(alike)[0]
        if len(others):
            chosen = generator.choice(others, min(runs, len(others)), replace=False)
            found[i] = errors[i] + np.log(anchored(errors[chosen]))
    return found


def interval(errors: Array) -> list[float]:
    """Factors on a prediction between which the measured value lies, for the share `INSIDE` of these errors."""
    low, high = np.quantile(-errors, [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
    return [round(float(np.exp(low)), 3), round(float(np.exp(high)), 3)]


def intervals(data: Data, errors: Array) -> dict[str, dict[str, list[float]]]:
    """By phase and class of engine, where enough rows and devices show it; and of all together."""
    found: dict[str, dict[str, list[float]]] = {}
    for i, phase in enumerate(PHASES):
        here = (data.phase == i) & np.isfinite(errors)
        found[phase] = {"all": interval(errors[here])}
        for j, engine in enumerate(ENGINES):
            mine = here & (data.plans.engine_class == j)
            if mine.sum() >= _FEW_ROWS and len(set(data.device[mine])) >= _FEW_DEVICES:
                found[phase][engine] = interval(errors[mine])
    return found


def document(
    x: Array, covariance: Array, levels: dict[str, dict[str, dict[str, list[float]]]], note: str
) -> str:
    """The data file of the package, as text."""
    lines = [
        f"# Written by bench/fit_machines.py from bench/data/measured.csv: {note}",
        "# `errors` are relative.",
        "",
    ]
    errors = np.sqrt(np.diag(covariance))
    for title, values in (("constants", np.exp(x)), ("errors", errors)):
        lines += _table(title, values)
    for level, phases in levels.items():
        for phase, classes in phases.items():
            lines += [
                f"[intervals.{level}.{phase}]",
                *(f"{name} = {ends}" for name, ends in classes.items()),
                "",
            ]
    return "\n".join(lines)


def _table(title: str, values: Array) -> list[str]:
    number = {name: f"{value:.4g}" for name, value in zip(names(), values, strict=True)}
    lines = [f"[{title}]", *(f"{array} = {text}" for (array, kind), text in number.items() if not kind), ""]
    for array, classes in CLASSES.items():
        lines += [f"[{title}.{array}]", *(f'"{kind}" = {number[array, kind]}' for kind in classes), ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    started, data = time.time(), load()
    x, covariance = fitted(data, np.arange(len(data)), priors.mean(), 20)
    errors = left_out(data, x)
    plain, anchor = intervals(data, errors), intervals(data, after_anchors(data, errors))
    levels = {"datasheet": plain, "probe": plain, "anchor": anchor}
    note = f"{len(data)} rows, {len(set(data.device))} devices"
    text = document(x, covariance, levels, note)
    for i, phase in enumerate(PHASES):
        off = np.abs(np.expm1(errors[data.phase == i])) * 100
        middle, high = np.median(off), np.quantile(off, 0.9)
        print(f"{phase:10s} {len(off):5d} rows, left out: median {middle:.1f} %, p90 {high:.0f} %")
    if asked.check:
        print("the same" if SHIPPED.read_text("utf-8") == text else "the file in the package differs")
    else:
        SHIPPED.write_text(text, "utf-8")
    print(f"{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
