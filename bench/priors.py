"""What the constants of the cost model are expected to be before any row is seen, and how far from it they may go.

Values are what is known of hardware and engines in general: memory is read at some 80 % of its datasheet, dense
products reach half of theirs, a kernel starts in microseconds. They matter for classes that few devices show.
"""

from __future__ import annotations

import numpy as np

from penjing.cost.cases import ENGINES, KERNELS, LINKS, MAKERS, MEMORIES
from penjing.cost.constants import names, vector

Array = np.ndarray


def _by(classes: tuple[str, ...], *values: float) -> dict[str, float]:
    return dict(zip(classes, values, strict=True))


_COMPUTE = {  # by how products are computed; the classes of formats in the order of KERNELS
    "native": (1.0, 0.85, 0.8, 0.8, 0.7, 0.8, 0.8, 0.6, 0.6, 0.4),
    "blocks": (0.85, 0.5, 0.5, 0.4, 0.3, 0.42, 0.45, 0.36, 0.36, 0.3),
    "unpacked": (1.0, 0.8, 0.8, 0.9, 0.9, 0.95, 0.95, 0.85, 0.8, 0.8),
    "cpu": (1.0, 0.7, 0.8, 0.6, 0.6, 0.8, 0.7, 0.6, 0.35, 0.8),
}

PRIOR = {
    "read_memory": _by(MEMORIES, 0.8, 0.65, 0.9, 0.95, 0.8, 0.55, 0.8),
    "read_engine": _by(ENGINES, 1, 1, 0.8, 0.95, 1, 1, 0.8, 1),
    "read_kernel": _by(KERNELS, 1.0, 0.9, 0.85, 0.8, 0.8, 0.95, 0.9, 0.85, 0.8, 0.7),
    "compute_maker": _by(MAKERS, 0.6, 0.55, 0.35, 0.8, 0.4, 0.4, 0.5),
    "compute_engine": _by(ENGINES, 1.0, 0.9, 0.7, 1, 0.6, 1.0, 0.6, 0.7),
    "compute_kernel": {
        f"{path} {kernel}": value
        for path, row in _COMPUTE.items()
        for kernel, value in zip(KERNELS, row, strict=True)
    },
    "tile": _by(ENGINES, 48, 48, 48, 48, 4, 4, 24, 48),
    "activation": _by(ENGINES, 40, 40, 120, 100, 60, 60, 60, 60),
    "attention_read": _by(ENGINES, 0.8, 0.8, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
    "attention_compute": _by(ENGINES, 0.6, 0.6, 0.3, 0.4, 0.12, 0.5, 0.4, 0.3),
    "launch": _by(ENGINES, 25e-6, 25e-6, 500e-6, 40e-6, 30e-6, 30e-6, 60e-6, 500e-6),
    "launch_maker": _by(MAKERS, 1, 1.3, 2, 1, 2, 2.5, 2),
    "step": _by(ENGINES, 1.5e-3, 2e-4, 1e-3, 2e-4, 1e-4, 1e-4, 1e-3, 1e-2),
    "sequence": _by(ENGINES, 4e-6, 4e-6, 2e-5, 2e-5, 1e-4, 1e-4, 2e-5, 1e-5),
    "progress": _by(ENGINES, 1.05, 1.05, 1.0, 1.1, 1.1, 1.1, 1.05, 1.0),
    "latency": _by(LINKS, 6e-6, 12e-6, 20e-6, 30e-6),
    "link": _by(LINKS, 0.5, 0.4, 0.4, 0.4),
    "blend": 0.5,
    "strain": 0.75,
    "wide": 0.85,
    "fusion": 1.15,
    "attention_plain": 0.15,
    "routed_read": 0.85,
    "routed_compute": 0.75,
    "routed_launch": 1.0,
    "host_read": 0.6,
    "host_compute": 0.3,
    "host_link": 0.7,
    "thread_bandwidth": 12e9,
    "thread_compute": 0.85,
    "overlap": 0.9,
    "request": 4e-3,
    "stream": 5e-5,
    "tail": 1.0,
}

# relative deviation (of the logarithm), by the beginning of the name; the first that fits counts
_DEVIATION = (
    ("read_memory", 0.07), ("read_", 0.12), ("compute_kernel", 0.15), ("compute_", 0.3), ("tile", 0.5),
    ("activation", 0.4),
    ("attention", 0.5), ("launch_maker npu", 0.5), ("launch_maker", 0.25), ("launch", 0.6), ("step", 0.8),
    ("sequence", 0.5),
    ("progress", 0.02), ("latency", 0.4), ("link", 0.3), ("blend", 0.5), ("strain", 0.3), ("wide", 0.4),
    ("fusion", 0.1), ("routed", 0.3), ("host", 0.4), ("thread_bandwidth", 0.4), ("thread", 0.1),
    ("overlap", 0.1), ("request", 0.6), ("stream", 0.8), ("tail", 0.3),
)  # fmt: skip


def mean() -> Array:
    """Logarithms of the expected values, in the order of `names`."""
    return np.log(vector(PRIOR))


def deviation() -> Array:
    """How far the logarithms may be from them: one standard deviation."""
    return np.array(
        [
            next(size for start, size in _DEVIATION if f"{array} {kind}".startswith(start))
            for array, kind in names()
        ]
    )
