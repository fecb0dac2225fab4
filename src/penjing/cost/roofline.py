"""Speed from a datasheet or a probe, where nothing was timed: bytes over bandwidth, operations over peak.

The efficiencies are assumptions with a wide interval: one constant cannot be right for every engine
and size. `penjing plan` on this computer replaces them by timings.
"""

from __future__ import annotations

from penjing.cost.memory import CACHE_ELEMENT_BYTES
from penjing.figures import Estimate
from penjing.machine import Machine, Tier
from penjing.model import Model

_READ = (0.65, 0.35, 0.95)  # share of the peak bandwidth that decode reaches: value, low, high
_COMPUTE = (0.40, 0.15, 0.80)  # share of the peak arithmetic that prefill reaches
_FORMATS = ("bf16", "fp16", "int8", "fp32")


def decode_bytes(model: Model, depth_tokens: float, cache_type: str = "f16") -> float:
    """Bytes that one generated token reads: active weights, and the cache of all layers.

    Left out: activations, and what a recurrent layer keeps (both small).
    """
    element = CACHE_ELEMENT_BYTES[cache_type]
    seen = sum(
        (layer.key_width + layer.value_width)
        * min(depth_tokens, layer.window_tokens or depth_tokens)
        * element
        for layer in model.layers
    )
    return model.active_bytes + seen


def main_tier(machine: Machine) -> Tier | None:
    """Where weights live when they fit: VRAM of an accelerator, else DRAM."""
    return machine.tier("VRAM") or machine.tier("DRAM")


def decode_rate(model: Model, machine: Machine, depth_tokens: float, cache_type: str = "f16") -> Estimate:
    """Tokens per second of one sequence."""
    tier = main_tier(machine)
    if tier is None or tier.read_bytes_per_s.value is None:
        return Estimate.unknown()
    peak = tier.read_bytes_per_s.value / decode_bytes(model, depth_tokens, cache_type)
    return Estimate(peak * _READ[0], peak * _READ[1], peak * _READ[2], "assumed")


def prefill_rate(model: Model, machine: Machine) -> Estimate:
    """Tokens per second of a long prompt: 2 operations for each active weight."""
    peaks = {c.format: c.operations_per_s.value for c in machine.compute}
    peak = next((peaks[f] for f in _FORMATS if peaks.get(f)), None)
    if peak is None:
        return Estimate.unknown()
    rate = peak / (2 * model.active_weights)
    return Estimate(rate * _COMPUTE[0], rate * _COMPUTE[1], rate * _COMPUTE[2], "assumed")


def disk_decode_rate(model: Model, disk: Tier, room_bytes: int) -> Estimate:
    """Tokens per second when the weights exceed `room_bytes`, the memory left for them.

    Decode reads all weights in turn, which is the worst order for a cache that drops what was used
    longest ago: every token then reads everything again. At best only what does not fit is read, at
    the sequential rate; at worst everything, at the rate of random 128 KiB reads.
    """
    sequential = disk.read_bytes_per_s.value
    if sequential is None:
        return Estimate.unknown()
    random = disk.random_read_bytes_per_s.value if disk.random_read_bytes_per_s else None
    missing = max(model.active_bytes - max(room_bytes, 0), 0.05 * model.active_bytes)
    slowest = min(sequential, random or sequential)
    return Estimate(
        sequential / model.active_bytes, 0.5 * slowest / model.active_bytes, sequential / missing, "assumed"
    )
