"""The few numbers that are fitted: shares of datasheet figures by class, floors, and how sure they are.

They live in `data/anywhere.toml`, which `bench/fit_machines.py` writes. None belongs to a device: each is shared by a
class of devices, engines, formats or links.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

import numpy as np

from penjing.cost.cases import ENGINES, KERNELS, LINKS, MAKERS, MEMORIES, PATHS

Array = np.ndarray

# the classes of each array of constants; the others are single numbers
CLASSES: Mapping[str, tuple[str, ...]] = {
    "read_memory": MEMORIES,
    "read_engine": ENGINES,
    "read_kernel": KERNELS,
    "compute_maker": MAKERS,
    "compute_engine": ENGINES,
    "compute_kernel": tuple(f"{path} {kernel}" for path in PATHS for kernel in KERNELS),
    "tile": ENGINES,
    "activation": ENGINES,
    "attention_read": ENGINES,
    "attention_compute": ENGINES,
    "launch": ENGINES,
    "launch_maker": MAKERS,
    "step": ENGINES,
    "sequence": ENGINES,
    "progress": ENGINES,
    "latency": LINKS,
    "link": LINKS,
}


@dataclass(frozen=True)
class Constants:
    """Shares, floors and rates; all above 0.

    Units:
        read_memory, read_engine, read_kernel: factors of the share of the datasheet's bandwidth that weights reach.
        compute_maker, compute_engine, compute_kernel: factors of the share of its rate that products reach.
        strain: how much of the rate is lost with operations per joule (an exponent). wide: factor for HBM in llama.cpp.
        progress: of engines in compute, factor per year. fusion: of launches, divisor per year.
        tile: tokens that products are padded by. blend: 1 less than the exponent that joins memory and compute.
        activation: bytes between kernels for each token, layer and element of the width.
        attention_read, attention_compute, attention_plain: factors of the shares in attention; the last without fusion.
        launch: seconds for each layer; launch_maker: factor of it; routed_launch: how many more a layer of experts has.
        step: seconds for each pass. sequence: seconds for each token that is drawn.
        routed_read, routed_compute: factors of the shares in routed experts.
        latency: seconds of an exchange between two. link: share of the link's rate. overlap: of stages that overlap.
        host_read, host_compute, host_link: shares on the host. thread_bandwidth: bytes per second of a
            thread. thread_compute: exponent of the share of cores.
        request, stream: seconds that a server spends on a request and on a token. tail: of the longest answer.
    """

    read_memory: Array
    read_engine: Array
    read_kernel: Array
    compute_maker: Array
    compute_engine: Array
    compute_kernel: Array
    tile: Array
    activation: Array
    attention_read: Array
    attention_compute: Array
    launch: Array
    launch_maker: Array
    step: Array
    sequence: Array
    progress: Array
    latency: Array
    link: Array
    blend: float
    strain: float
    wide: float
    fusion: float
    attention_plain: float
    routed_read: float
    routed_compute: float
    routed_launch: float
    host_read: float
    host_compute: float
    host_link: float
    thread_bandwidth: float
    thread_compute: float
    overlap: float
    request: float
    stream: float
    tail: float


def names() -> tuple[tuple[str, str], ...]:
    """All constants in order, each as (array, class); the class of a single number is empty."""
    return tuple((f.name, kind) for f in fields(Constants) for kind in CLASSES.get(f.name, ("",)))


def from_vector(values: Array) -> Constants:
    """The constants from as many numbers as there are `names`."""
    found: dict[str, Any] = {}
    start = 0
    for f in fields(Constants):
        size = len(CLASSES.get(f.name, ("",)))
        part = values[start : start + size]
        found[f.name] = _shaped(f.name, part) if f.name in CLASSES else float(part[0])
        start += size
    return Constants(**found)


def _shaped(name: str, values: Array) -> Array:
    return values.reshape(len(PATHS), len(KERNELS)) if name == "compute_kernel" else values


@functools.cache
def document() -> dict[str, Any]:
    """What the data file holds: `constants`, their relative `errors`, and `intervals`."""
    return tomllib.loads((resources.files("penjing") / "data" / "anywhere.toml").read_text("utf-8"))


@functools.cache
def shipped() -> Constants:
    """The constants that were fitted to the measurements in the repository."""
    return from_vector(vector(document()["constants"]))


def vector(table: Mapping[str, Any]) -> Array:
    """The numbers of a table that has the form of the data file, in the order of `names`."""
    return np.array([table[array][kind] if kind else table[array] for array, kind in names()], dtype=float)
