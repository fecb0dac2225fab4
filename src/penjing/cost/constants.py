"""The few numbers that are fitted: shares of datasheet figures by class, floors, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from penjing.cost.cases import ENGINES, KERNELS, LINKS, MAKERS, MEMORIES, PATHS

Array = np.ndarray



@dataclass(frozen=True)
class Constants:
    read_memory: Array
    read_engine: Array
    read_kernel: Array
    compute_maker: Array
    compute_engine: Array
    compute_kernel: Array
    tile: Array
    attention_read: Array
    attention_compute: Array
    launch: Array
    launch_maker: Array
    step: Array
    sequence: Array
    latency: Array
    link: Array
    blend: Array
    routed_read: Array
    routed_compute: Array
    routed_launch: Array
    host_read: Array
    host_compute: Array
    host_link: Array
    thread_bandwidth: Array
    strain: Array
    fusion: Array
    activation: Array
    progress: Array
    request: Array
    stream: Array
    tail: Array
    wide: Array
    attention_plain: Array
    overlap: Array


def prior() -> dict[str, dict[str, float]]:
    return {
        "read_memory": dict(zip(MEMORIES, (0.8, 0.7, 0.88, 0.8, 0.78, 0.55, 0.75))),
        "read_engine": dict(zip(ENGINES, (1, 1, 0.8, 0.95, 1, 1, 0.8, 1))),
        "read_kernel": dict(zip(KERNELS, (1.0, 0.9, 0.85, 0.8, 0.8, 0.95, 0.9, 0.85, 0.8, 0.7))),
        "compute_maker": dict(zip(MAKERS, (0.6, 0.4, 0.35, 0.8, 0.4, 0.4, 0.5))),
        "compute_engine": dict(zip(ENGINES, (1.0, 0.9, 0.7, 1, 0.6, 1.0, 0.6, 0.7))),
        "compute_kernel": {f"{p} {q}": v for p, row in (
            ("native", (1.0, 0.85, 0.8, 0.8, 0.7, 0.8, 0.8, 0.6, 0.6, 0.4)),
            ("blocks", (0.85, 0.5, 0.5, 0.4, 0.3, 0.42, 0.45, 0.36, 0.36, 0.3)),
            ("unpacked", (1.0, 0.8, 0.8, 0.9, 0.9, 0.95, 0.95, 0.85, 0.8, 0.8)),
            ("cpu", (1.0, 0.7, 0.8, 0.6, 0.6, 0.8, 0.7, 0.6, 0.5, 0.6))) for q, v in zip(KERNELS, row)},
        "tile": dict(zip(ENGINES, (48, 48, 48, 48, 4, 4, 24, 48))),
        "attention_read": dict(zip(ENGINES, (0.8, 0.8, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5))),
        "attention_compute": dict(zip(ENGINES, (0.6, 0.6, 0.3, 0.4, 0.3, 0.3, 0.4, 0.3))),
        "launch": dict(zip(ENGINES, (25e-6, 25e-6, 500e-6, 40e-6, 30e-6, 30e-6, 60e-6, 500e-6))),
        "launch_maker": dict(zip(MAKERS, (1, 1.3, 2, 1, 2, 4, 2))),
        "step": dict(zip(ENGINES, (1.5e-3, 2e-4, 1e-3, 2e-4, 1e-4, 1e-4, 1e-3, 1e-2))),
        "sequence": dict(zip(ENGINES, (4e-6, 4e-6, 2e-5, 2e-5, 1e-4, 1e-4, 2e-5, 1e-5))),
        "latency": dict(zip(LINKS, (6e-6, 12e-6, 20e-6, 30e-6))),
        "link": dict(zip(LINKS, (0.5, 0.4, 0.4, 0.4))),
        "blend": 0.5, "routed_read": 0.85, "routed_compute": 0.75, "routed_launch": 1.0, "host_read": 0.6,
        "host_compute": 0.3, "host_link": 0.7, "thread_bandwidth": 0.5, "strain": 0.45, "fusion": 1.15, "activation": dict(zip(ENGINES, (40, 40, 120, 100, 60, 60, 60, 60))), "progress": dict(zip(ENGINES, (1.05, 1.05, 1.0, 1.1, 1.1, 1.1, 1.05, 1.0))), "request": 4e-3, "stream": 5e-5, "tail": 1.5, "wide": 0.85, "attention_plain": 0.15, "overlap": 0.9,
    }
