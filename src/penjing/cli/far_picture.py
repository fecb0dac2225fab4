"""A plan for described hardware as a picture: its roofline, throughput against latency, and the map of its memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from penjing.elsewhere.answers import Asked
from penjing.elsewhere.appraise import Appraised, appraised
from penjing.elsewhere.hardware import Hardware
from penjing.elsewhere.plan import FarPlan
from penjing.elsewhere.ways import ways
from penjing.errors import Unavailable
from penjing.store import replacing

if TYPE_CHECKING:
    from penjing.cost.ways import Way

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")


def draw(path: Path, asked: Asked, hardware: Hardware, plan: FarPlan) -> None:
    """Write the picture as SVG.

    Raises:
        Unavailable: there is no library to draw with, or nothing can be written there.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise Unavailable(
            "pictures of plans are drawn with matplotlib, which is not installed",
            hint="pip install 'penjing[pictures]'",
        ) from error
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    _roofline(left, asked, hardware, plan)
    _latency(middle, asked, hardware, plan)
    _memory(right, asked, hardware, plan)
    figure.suptitle(f"{plan.model} on {plan.machine}: {plan.chosen.engine}, {plan.chosen.settings}")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg")
    pyplot.close(figure)


def _chosen_way(asked: Asked, hardware: Hardware, plan: FarPlan) -> Way:
    """The way that the plan chose, as the cost model takes it."""
    s = plan.chosen.settings
    for way in ways(hardware, asked.shapes, asked.model, asked.wish):
        degrees = way.tensor, way.pipeline, way.data, way.split, way.expert, way.host_routed, way.host_dense
        if way.weights.name == s.format and degrees == (
            s.tensor, s.pipeline, s.data, s.split, s.expert, s.host_experts, s.host_rest
        ):  # fmt: skip
            return way
    raise LookupError(str(s))


def _with_users(asked: Asked, hardware: Hardware, plan: FarPlan, users: int) -> Appraised:
    workload = replace(asked.workload, users=users)
    return appraised([(hardware, _chosen_way(asked, hardware, plan))], asked.shapes, workload)


def _roofline(axes: Any, asked: Asked, hardware: Hardware, plan: FarPlan) -> None:
    """Operations a second over operations for each byte of memory, of the devices in use; the plan's points on it."""
    device, n = hardware.device, plan.chosen.settings.devices
    peak, bandwidth = n * device.rate("fp16"), n * device.bytes_per_s
    xs = np.logspace(-1, 4, 100)
    axes.loglog(xs, np.minimum(peak, xs * bandwidth) / 1e12, color="#333333", label="datasheet, 16 bits")
    weight_bytes = plan.chosen.n_bytes / asked.shapes.weights
    active = asked.shapes.active
    e = plan.chosen.estimate
    users = asked.workload.users
    points = {
        f"decode, {users} at once": (users, (e.decode_tokens_per_s.value or 0) * users),
        "prefill": (asked.workload.prompt_tokens, e.prefill_tokens_per_s.value or 0),
    }
    for colour, (name, (tokens, rate)) in zip(_COLOURS, points.items(), strict=False):
        axes.plot(2 * tokens / weight_bytes, 2 * active * rate / 1e12, "o", color=colour, label=name)
    axes.set_xlabel("operations for each byte of weights")
    axes.set_ylabel("TFLOP/s")
    axes.set_title("roofline")
    axes.legend(fontsize=8)


def _latency(axes: Any, asked: Asked, hardware: Hardware, plan: FarPlan) -> None:
    """Answers of all users together over what each of them sees, from one user to as many as fit."""
    most = max(1, plan.chosen.settings.sequences)
    batches = [b for b in _BATCHES if b <= most] or [1]
    found = [_with_users(asked, hardware, plan, b) for b in batches]
    each = np.array([1 / float(a.each[0]) for a in found])
    every = np.array([float(a.served.value[0]) for a in found])
    low = np.array([float(a.served.low[0]) for a in found])
    high = np.array([float(a.served.high[0]) for a in found])
    axes.fill_between(each, low, high, color=_COLOURS[0], alpha=0.2)
    axes.plot(each, every, "o-", color=_COLOURS[0])
    for users, x, y in zip(batches, each, every, strict=True):
        axes.annotate(str(users), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tokens per second of each user")
    axes.set_ylabel("tokens per second of all")
    axes.set_title("throughput and latency, by users at once")


def _memory(axes: Any, asked: Asked, hardware: Hardware, plan: FarPlan) -> None:
    """What lies in the memory of the devices in use, and behind them."""
    s, c = plan.chosen.settings, _with_users(asked, hardware, plan, asked.workload.users).cases
    behind = float(c.routed_bytes[0] * c.host_routed[0] + c.dense_bytes[0] * c.host_dense[0])
    weights = (plan.chosen.n_bytes - behind) * s.data
    needed = plan.chosen.estimate.memory_bytes.value or 0.0
    room = s.devices * (hardware.device.memory_bytes or 0.0)
    parts = {
        "weights": weights,
        "cache and buffers": max(0.0, needed - weights),
        "free": max(0.0, room - needed),
    }
    bottom = 0.0
    for colour, (name, n_bytes) in zip((*_COLOURS[:2], "#dddddd"), parts.items(), strict=True):
        axes.bar("devices", n_bytes / 1e9, bottom=bottom / 1e9, color=colour, label=name)
        bottom += n_bytes
    if behind:
        axes.bar("host memory", behind / 1e9, color=_COLOURS[0])
    axes.set_ylabel("GB")
    axes.set_title("memory")
    axes.legend(fontsize=8)
