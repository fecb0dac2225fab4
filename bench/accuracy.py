"""How near the cost model for any device comes, with whole devices left out of the fit.

    python bench/accuracy.py                  the table, and as the last line one JSON document
    python bench/accuracy.py --json PATH      writes the document besides

Every row is predicted by constants that were fitted without its device. Three levels: `datasheet` knows the device's
published figures alone; `probe` replaces them by what a bandwidth and a matrix test read (for the devices where such
figures are public); `anchor` takes off the mean error of two other runs on the device. Beside them stands a plain
roofline: bytes over bandwidth and operations over rate, with one constant for each, fitted on the same other devices.

Inside: the share of rows within their interval, whose width comes from the errors of yet other devices (each device's
interval is made without its own errors).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

import fit_machines
import priors
from fit_machines import PHASES, Data
from penjing.cost.cases import ENGINES, cases, maker, memory_class
from penjing.cost.estimates import probed
from penjing.table import judge, rows

Array = np.ndarray

# what a stream test (triad) and a matrix test (16384 cubed) read: Azure/AI-benchmarking-guide, Azure_Results
PROBES: dict[str, tuple[float, dict[str, float]]] = {
    "A100 SXM 80GB": (1.70e12, {"fp16": 256.5e12}),
    "H100 SXM 80GB": (2.97e12, {"fp8": 1377.3e12}),
    "H200 SXM": (4.15e12, {"fp8": 1366.3e12}),
}


def errors_of_levels(data: Data, start: Array) -> dict[str, Array]:
    """Log errors by level, NaN where a level has nothing to go on."""
    plain = np.full(len(data), np.nan)
    probe = np.full(len(data), np.nan)
    for device in np.unique(data.device):
        seen, unseen = np.where(data.device != device)[0], np.where(data.device == device)[0]
        x, _ = fit_machines.fitted(data, seen, start, 4)
        plain[unseen] = fit_machines.predictor(data, unseen)(x)
        if device in PROBES:
            probe[unseen] = _with_probe(data, unseen, *PROBES[device])(x)
    return {"datasheet": plain, "probe": probe, "anchor": fit_machines.after_anchors(data, plain)}


def _with_probe(data: Data, index: Array, bandwidth: float, rates: dict[str, float]) -> fit_machines.Errors:
    found = [replace(data.found[i], device=probed(data.found[i].device, bandwidth, rates)) for i in index]
    plans = cases([(c.device, c.shapes, c.way, c.job) for c in found])
    part = Data(
        found, plans, data.phase[index], data.measured[index], data.device[index], data.weights[index]
    )
    return fit_machines.predictor(part, np.arange(len(found)))


def roofline_errors(data: Data) -> Array:
    """Log errors of the roofline with one constant for reading and one for computing, fitted on the other devices."""
    seconds = _roofline_seconds(data)
    counted = np.exp(data.measured)
    found = np.empty(len(data))
    shares = [(a, b) for a in np.linspace(0.2, 1.0, 17) for b in np.linspace(0.1, 1.0, 19)]
    each = np.array([np.log(_work(data) / seconds(a, b) / counted) for a, b in shares])
    for device in np.unique(data.device):
        other, own = data.device != device, data.device == device
        loss = (data.weights[other] * np.abs(each[:, other])).sum(axis=1)
        found[own] = each[int(np.argmin(loss))][own]
    return found


def _work(data: Data) -> Array:
    """Tokens that the phase's rate counts."""
    c = data.plans
    b = np.nan_to_num(c.sequences, nan=64.0)
    return b * np.select([data.phase == 0, data.phase == 1], [c.prompt, 1.0], np.maximum(c.output, 1.0))


def _roofline_seconds(data: Data) -> Any:
    """Seconds as a function of both constants: active weights and the cache, nothing else."""
    c = data.plans
    b = np.nan_to_num(c.sequences, nan=64.0)
    active = c.dense + c.head + c.routed * c.experts_used / c.experts
    n_bytes = c.dense_bytes + c.head_bytes + c.routed_bytes * c.experts_used / c.experts
    cache = (c.read_bytes + c.window_read_bytes) * (np.maximum(c.depth, c.prompt) + c.output / 2)
    steps = np.select([data.phase == 0, data.phase == 1], [0.0, 1.0], c.output)
    prompts = np.where(data.phase == 1, 0.0, b * c.prompt)

    def seconds(reading: float, computing: float) -> Array:
        read, rate = c.bandwidth * reading * c.tensor, c.rate * computing * c.tensor
        step = np.maximum((n_bytes + b * cache) / read, 2 * b * active / rate)
        return steps * step + np.maximum((prompts > 0) * n_bytes / read, 2 * prompts * active / rate)

    return seconds


def inside(data: Data, errors: Array) -> Array:
    """For each row whether it lies in its interval, made from the errors of other devices."""
    found = np.zeros(len(data))
    for device in np.unique(data.device):
        own = data.device == device
        table = fit_machines.intervals(data, np.where(own, np.nan, errors))
        for i in np.where(own)[0]:
            classes = table[PHASES[data.phase[i]]]
            low, high = classes.get(ENGINES[data.plans.engine_class[i]], classes["all"])
            found[i] = low <= np.exp(-errors[i]) <= high
    return found


def summary(errors: Array, within: Array | None = None) -> dict[str, float]:
    off = np.abs(np.expm1(errors)) * 100
    found = {
        "rows": len(errors),
        "median_abs_error_percent": round(float(np.median(off)), 1),
        "p90_abs_error_percent": round(float(np.quantile(off, 0.9)), 1),
        "median_signed_error_percent": round(float(np.expm1(np.median(errors))) * 100, 1),
    }
    return found if within is None else found | {"inside_interval": round(float(within.mean()), 3)}


def document(data: Data, levels: dict[str, Array], roofline: Array) -> dict[str, Any]:
    """Everything that is printed: by phase and level, and by phase and group from the datasheet alone."""
    groups = {
        "family": [f"{maker(c.device)} {memory_class(c.device)}" for c in data.found],
        "engine": [c.way.engine for c in data.found],
        "device": list(data.device),
    }
    within = {level: inside(data, errors) for level, errors in levels.items()}
    found: dict[str, Any] = {"rows": len(data), "devices": len(set(data.device)), "by_phase": {}}
    for i, phase in enumerate(PHASES):
        rooms = {"roofline": summary(roofline[data.phase == i])}
        for level, errors in levels.items():
            here = (data.phase == i) & np.isfinite(errors)
            rooms[level] = summary(errors[here], within[level][here]) if here.any() else {"rows": 0}
        found["by_phase"][phase] = rooms
    for kind, labels in groups.items():
        found[f"by_{kind}"] = _by_label(
            data, np.array(labels), levels["datasheet"], roofline, within["datasheet"]
        )
    return found


def _by_label(data: Data, labels: Array, errors: Array, roofline: Array, within: Array) -> dict[str, Any]:
    found = {}
    for i, phase in enumerate(PHASES):
        for label in sorted(set(labels[data.phase == i])):
            here = (data.phase == i) & (labels == label)
            plain = {"roofline_median_abs_error_percent": summary(roofline[here])["median_abs_error_percent"]}
            found[f"{phase}, {label}"] = summary(errors[here], within[here]) | plain
    return found


def show(found: dict[str, Any]) -> None:
    print(f"{found['rows']} rows of {found['devices']} devices, each device left out of the fit in turn\n")
    for phase, rooms in found["by_phase"].items():
        for level, room in rooms.items():
            if room["rows"]:
                print(_line(phase, level, room))
    for kind in ("family", "engine", "device"):
        print(f"\nby {kind}, from the datasheet alone (last: the roofline's median)")
        for name, room in found[f"by_{kind}"].items():
            print(_line(*name.split(", ", 1), room), f"{room['roofline_median_abs_error_percent']:6.0f} %")


def _line(phase: str, name: str, room: dict[str, float]) -> str:
    middle, high, sign = (room[f"{key}_error_percent"] for key in ("median_abs", "p90_abs", "median_signed"))
    within = f"{100 * room['inside_interval']:4.0f} % inside" if "inside_interval" in room else ""
    return (
        f"{phase:10s} {name:28.28s} {room['rows']:5.0f} rows  median {middle:5.1f} %  p90 {high:6.1f} %"
        f"  sign {sign:+6.1f} %  {within:13s}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", type=Path)
    asked = parser.parse_args()
    data = fit_machines.load()
    start, _ = fit_machines.fitted(data, np.arange(len(data)), priors.mean(), 20)
    found = document(data, errors_of_levels(data, start), roofline_errors(data))
    piles = judge.resolved(rows.read(fit_machines.TABLE))
    found["unsupported"] = len(piles.unsupported) + len(piles.malformed)
    show(found)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1), "utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
