"""Predictions for any hardware with what is not known about them: a value, a low and a high, and what binds.

How far predictions were off on devices that the fit had not seen, is what the interval says: a share of rows in the
middle of the errors on left-out devices, by phase and class of engine. There are three levels of knowledge:

datasheet  the device's published figures alone
probe      two minutes of measuring: its bandwidth and rate replace the published ones
anchor     runs of other models on the same device: the geometric mean of their errors is taken off, shrunk towards none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace

from penjing.cost import anywhere, constants
from penjing.cost.cases import ENGINES, Array, Cases, cases
from penjing.cost.constants import Constants
from penjing.cost.device import Device
from penjing.cost.shapes import Shapes
from penjing.cost.ways import Job, Phase, Way
from penjing.figures import Estimate

Level = Literal["datasheet", "probe", "anchor"]
_BINDS = ("memory", "compute", "attention", "host", "launches", "exchanges")

# what two probes read of a datasheet's figures where both are known: streaming reads, large products
_USUAL_STREAM, _USUAL_PRODUCT = 0.87, 0.75
_ANCHOR_PRIOR = 1.0  # runs that a correction of none counts for


@dataclass(frozen=True)
class Rates:
    """Tokens per second of plans: arrays of shape (plans,). `binds` names what takes most of the time."""

    value: Array
    low: Array
    high: Array
    binds: Array


def rates(c: Cases, phase: Phase, level: Level = "datasheet", k: Constants | None = None) -> Rates:
    """Tokens per second over all devices, of prompts in prefill and of answers otherwise."""
    k = k or constants.shipped()
    value = anywhere.per_second(c, k, phase)
    low, high = _bounds(c, phase, level)
    return Rates(value, value * low, value * high, binding(c, k, phase))


def estimate(device: Device, shapes: Shapes, way: Way, job: Job, level: Level = "datasheet") -> Estimate:
    """Tokens per second of one plan."""
    found = rates(cases([(device, shapes, way, job)]), job.phase, level)
    return Estimate(float(found.value[0]), float(found.low[0]), float(found.high[0]), "fitted")


def binding(c: Cases, k: Constants, phase: Phase) -> Array:
    """What takes most of the time of the pass that matters most: one of six words for each plan.

    Where an engine may start as many sequences as fit and memory sets their number, that is what binds.
    """
    one = anywhere.main_pass(c, k, phase)
    words = np.array(_BINDS)[np.argmax([getattr(one, name) for name in _BINDS], axis=0)]
    if phase != "in_flight":
        return words
    full = anywhere.capacity(c) <= anywhere.batch_in_flight(c)
    return np.where(full & (words != "compute"), "capacity", words)


def probed(device: Device, bytes_per_s: float | None, operations_per_s: Mapping[str, float]) -> Device:
    """The device with what was measured on it in place of its datasheet.

    A probe reads less than a datasheet promises, on any device; what counts is how much more or less than usual.
    """
    if bytes_per_s:
        device = replace(device, bytes_per_s=bytes_per_s / _USUAL_STREAM)
    listed = device.operations_per_s
    found = {name: rate / _USUAL_PRODUCT for name, rate in operations_per_s.items()}
    gain = np.exp(np.mean([np.log(found[n] / listed[n]) for n in found if n in listed] or [0.0]))
    scaled = {name: rate * float(gain) for name, rate in device.operations_per_s.items()}
    return replace(device, operations_per_s=scaled | found)


def anchored(errors: Sequence[float]) -> float:
    """The factor to put on predictions, from log errors (predicted over measured) of runs on the same device."""
    return float(np.exp(-sum(errors) / (len(errors) + _ANCHOR_PRIOR)))


def corrected(c: Cases, phase: Phase, found: Rates, runs: Mapping[str, Mapping[Phase, float]]) -> Rates:
    """The rates after runs on the same device: factors by class of engine; what has none stays as it is."""
    factors = np.array([runs.get(engine, {}).get(phase, np.nan) for engine in ENGINES])[c.engine_class]
    known = np.isfinite(factors)
    value = np.where(known, found.value * factors, found.value)
    low, high = _bounds(c, phase, "anchor")
    return Rates(
        value, np.where(known, value * low, found.low), np.where(known, value * high, found.high), found.binds
    )


def _bounds(c: Cases, phase: Phase, level: Level) -> tuple[Array, Array]:
    table: Mapping[str, Any] = constants.document()["intervals"][level][phase]
    ends = np.array([table.get(engine, table["all"]) for engine in ENGINES])[c.engine_class]
    return ends[:, 0], ends[:, 1]
