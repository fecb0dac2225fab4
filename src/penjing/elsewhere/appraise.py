"""What each of many ways would give, all at once, and which keep the limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from penjing.cost import anywhere, constants, estimates
from penjing.cost.cases import Array, Cases, cases
from penjing.cost.shapes import Shapes
from penjing.cost.ways import Job, Phase, Way
from penjing.elsewhere.hardware import Hardware
from penjing.elsewhere.plan import FarChosen, FarEstimates, Placement, Prices
from penjing.figures import Estimate
from penjing.model import Model
from penjing.workload import Workload

ENGINES = {"serving": "vLLM, SGLang or alike", "llama": "llama.cpp", "cpu": "llama.cpp"}
USABLE = 0.9  # of a device's memory, for weights and cache: the default of vLLM, SGLang and TensorRT-LLM
_BUFFERS = 0.5e9  # bytes on each device: activations, and what the engine itself takes
Plan = tuple[Hardware, Way]


@dataclass(frozen=True)
class Appraised:
    """Ways with their figures, as arrays of shape (plans,). `needed` and `room` in bytes over all devices in use."""

    plans: Sequence[Plan]
    workload: Workload
    cases: Cases
    prefill: estimates.Rates
    decode: estimates.Rates
    served: estimates.Rates
    first: Array
    each: Array
    needed: Array
    room: Array
    sequences: Array

    @property
    def fits(self) -> Array:
        """Weights and the caches of all users lie in the memory, and in that behind it."""
        fits: Array = (self.needed <= self.room) & (self.sequences >= self.workload.users)
        return fits

    @property
    def total(self) -> Array:
        """Seconds of one user's request while the others are served."""
        total: Array = self.first + self.workload.answer_tokens * self.each
        return total

    @property
    def within(self) -> Array:
        """Fits, and keeps the limits on time."""
        w = self.workload
        first = np.inf if w.max_first_token_seconds is None else w.max_first_token_seconds
        each = np.inf if w.min_decode_tokens_per_s is None else 1 / w.min_decode_tokens_per_s
        within: Array = self.fits & (self.first <= first) & (self.each <= each)
        return within


def appraised(plans: Sequence[Plan], shapes: Shapes, workload: Workload) -> Appraised:
    """Every plan with its figures, all of one kind of hardware."""
    prompt, answer, users = workload.prompt_tokens, workload.answer_tokens, workload.users
    many = users > 1
    flow = Job("in_flight", users, prompt_tokens=prompt, output_tokens=answer, loaded=many, served=many)
    flows = _cases(plans, shapes, flow)
    k, hardware = constants.shipped(), plans[0][0]
    prefill, faster = _rates(_as(flows, sequences=1, output=0), "prefill", hardware)
    decode, quicker = _rates(_as(flows, sequences=users, depth=prompt, output=answer), "decode", hardware)
    served, _ = _rates(flows, "in_flight", hardware)
    first = anywhere.loaded_first_seconds(flows, k) / faster if many else prompt / prefill.value
    each = anywhere.loaded_token_seconds(flows, k) / quicker if many else 1 / decode.value
    needed, room, sequences = _memory_of(flows, plans, workload)
    return Appraised(plans, workload, flows, prefill, decode, served, first, each, needed, room, sequences)


def _rates(c: Cases, phase: Phase, hardware: Hardware) -> tuple[estimates.Rates, Array]:
    """Rates of the plans, and the factors in them that runs on the device gave."""
    plain = estimates.rates(c, phase, hardware.level)
    if not hardware.runs:
        return plain, np.ones(len(c))
    found = estimates.corrected(c, phase, plain, hardware.runs)
    return found, found.value / plain.value


def _cases(plans: Sequence[Plan], shapes: Shapes, job: Job) -> Cases:
    """The arrays of all plans. Most differ only in how they are spread, so that few rows are computed one by one."""
    rows: dict[tuple[object, ...], tuple[int, Hardware, Way]] = {}
    index = []
    for hardware, way in plans:
        key = id(hardware), way.engine, way.weights.name, way.host_routed, way.host_dense, way.on_disk
        index.append(rows.setdefault(key, (len(rows), hardware, way))[0])
    c = cases([(h.device, shapes, way, job) for _, h, way in rows.values()]).take(np.array(index))
    spread = np.array([(w.tensor, w.pipeline, w.data, w.split) for _, w in plans], float).T
    names = ("tensor", "pipeline", "data", "split")
    return dataclasses.replace(c, **dict(zip(names, spread, strict=True)))


def _as(flows: Cases, **changed: float) -> Cases:
    """The same plans, alone and in the engine's own process, with other numbers."""
    every = {"loaded": 0.0, "served": 0.0, **changed}
    return dataclasses.replace(flows, **{name: np.full(len(flows), value) for name, value in every.items()})


def _memory_of(c: Cases, plans: Sequence[Plan], workload: Workload) -> tuple[Array, Array, Array]:
    """Bytes that a replica needs and has, and how many users fit; infinite where weights exceed the host's memory."""
    weights, cache, devices = _bytes(c, workload)
    room = USABLE * c.memory * devices - _BUFFERS * devices
    sequences = np.floor(np.maximum(room - weights, 0.0) / np.maximum(cache, 1.0)) * c.data
    needed = weights + cache * np.ceil(workload.users / c.data)
    behind = np.array([np.inf if way.on_disk else h.host_bytes for h, way in plans])
    carried = c.routed_bytes * c.host_routed + c.dense_bytes * c.host_dense
    return np.where(carried > behind, np.inf, needed), room, sequences


def _bytes(c: Cases, workload: Workload) -> tuple[Array, Array, Array]:
    """Of one replica: weights on its devices, the cache of one user, and how many devices it has."""
    weights = (
        c.dense_bytes * (1 - c.host_dense)
        + c.routed_bytes * (1 - c.host_routed)
        + c.head_bytes
        + c.lookup_bytes
    )
    length = float(workload.cache_tokens)
    copies = np.maximum(c.tensor / np.maximum(c.kv_heads, 1), 1)
    cache = (
        c.cache_bytes * length + c.window_cache_bytes * np.minimum(length, c.window)
    ) * copies + c.state_bytes
    return weights, cache, c.tensor * c.pipeline * c.split


def chosen(a: Appraised, i: int, model: Model, prices: Prices, why: str = "") -> FarChosen:
    """Plan number `i` in the form that is shown."""
    hardware, way = a.plans[i]
    binds = [str(r.binds[i]) for r in (a.prefill, a.decode, a.served)]
    return FarChosen(
        engine=ENGINES[way.engine],
        engine_version="",
        settings=placement(a, i),
        tensor_types=model.tensor_types,
        n_bytes=int(_weight_bytes(a.cases, i)),
        estimate=_estimates(a, i, hardware, way, prices),
        binds=dict(zip(("prefill", "decode", "serving"), binds, strict=True)),
        why=why,
    )


def _weight_bytes(c: Cases, i: int) -> float:
    return float(c.dense_bytes[i] + c.routed_bytes[i] + c.head_bytes[i] + c.lookup_bytes[i])


def placement(a: Appraised, i: int) -> Placement:
    """How plan number `i` is spread."""
    way = a.plans[i][1]
    return Placement(
        format=way.weights.name,
        cache_type="f16" if way.cache_bits == 16 else f"{way.cache_bits:g} bits",
        devices=way.devices,
        tensor=way.tensor,
        pipeline=way.pipeline,
        data=way.data,
        expert=way.expert,
        split=way.split,
        host_experts=way.host_routed,
        host_rest=way.host_dense,
        sequences=int(a.sequences[i]),
    )


def _estimates(a: Appraised, i: int, hardware: Hardware, way: Way, prices: Prices) -> FarEstimates:
    users = a.workload.users
    decode, served = _rate(a.decode, i), _rate(a.served, i)
    slow, fast = _spread(a.prefill, i), _spread(a.decode, i)
    first = _around(float(a.first[i]), slow)
    each = _around(float(a.each[i]), fast)
    watts = hardware.watts * way.devices if hardware.watts else None
    return FarEstimates(
        decode_tokens_per_s=decode.map(lambda rate: rate / users),
        prefill_tokens_per_s=_rate(a.prefill, i),
        first_token_seconds=first,
        per_token_seconds=each,
        total_seconds=first + each.map(lambda s: s * a.workload.answer_tokens),
        throughput_tokens_per_s=served,
        memory_bytes=_memory(a, i, way),
        kld=Estimate.exact(0.0, "assumed") if _is_source(way) else Estimate.unknown(),
        watts=Estimate.exact(watts, "assumed") if watts else Estimate.unknown(),
        joules_per_million_tokens=_each_million(served, watts),
        cost_per_million_tokens=_each_million(served, _money_per_s(prices, way, watts)),
    )


def _is_source(way: Way) -> bool:
    """The weights are as they were published, so that nothing is lost."""
    return way.weights.name in ("BF16", "F16") or way.weights.name.startswith("MXFP4")


def _memory(a: Appraised, i: int, way: Way) -> Estimate:
    """Of all devices in use: what is exact (weights, cache of the users), and buffers that are not."""
    total = float(a.needed[i]) * way.data + _BUFFERS * way.devices
    return Estimate(total, total - _BUFFERS * way.devices, total + _BUFFERS * way.devices, "fitted")


def _rate(r: estimates.Rates, i: int) -> Estimate:
    return Estimate(float(r.value[i]), float(r.low[i]), float(r.high[i]), "fitted")


def _spread(r: estimates.Rates, i: int) -> tuple[float, float]:
    """Low and high of a time over its value, from those of the rate."""
    return float(r.value[i] / r.high[i]), float(r.value[i] / r.low[i])


def _around(value: float, spread: tuple[float, float]) -> Estimate:
    return Estimate(value, value * spread[0], value * spread[1], "fitted")


def _each_million(rate: Estimate, per_second: float | None) -> Estimate:
    """What is spent each second, for a million tokens."""
    if per_second is None:
        return Estimate.unknown()
    return replace(rate.map(lambda r: 1e6 * per_second / r), source="assumed")


def _money_per_s(prices: Prices, way: Way, watts: float | None) -> float | None:
    if prices.per_hour is None and (prices.per_kwh is None or watts is None):
        return None
    power = (prices.per_kwh or 0.0) * (watts or 0.0) / 1000 / 3600
    return (prices.per_hour or 0.0) * way.devices / 3600 + power
