"""Many plans at once, as arrays: one number for each plan in every field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np

from penjing.cost.device import Device, Link
from penjing.cost.shapes import Shapes
from penjing.cost.ways import Engine, Job, Kernel, Way

Array = np.ndarray

MEMORIES = ("hbm", "hbm_amd", "gddr", "shared", "apple", "npu", "ddr")
MAKERS = ("nvidia", "amd", "intel", "apple", "other", "npu", "cpu")
PATHS = ("native", "blocks", "unpacked", "cpu")  # of products: see `path`
ENGINES: tuple[str, ...] = get_args(Engine)
KERNELS: tuple[str, ...] = get_args(Kernel)
LINKS: tuple[str, ...] = get_args(Link)

_YEAR = 2025.0  # of builds whose year nobody tells


@dataclass(frozen=True)
class Cases:
    """Plans as arrays of shape (plans,). Fields that end in `_class` index the tuples of this module.

    Units: as in `Device`, `Shapes`, `Way` and `Job`; `bits` in bytes here (`dense_bytes` of all dense weights and so
    on), `rate` in operations per second of the products, `wide_rate` of attention.
    """

    memory_class: Array
    maker_class: Array
    path_class: Array
    engine_class: Array
    kernel_class: Array
    compute_class: Array
    launch_class: Array
    started_class: Array
    link_class: Array
    bandwidth: Array
    rate: Array
    wide_rate: Array
    strain: Array
    wide_hbm: Array
    memory: Array
    link: Array
    host_link: Array
    host_bandwidth: Array
    host_rate: Array
    width: Array
    layers: Array
    moe_layers: Array
    experts: Array
    experts_used: Array
    dense: Array
    routed: Array
    head: Array
    dense_bytes: Array
    routed_bytes: Array
    head_bytes: Array
    lookup_bytes: Array
    cache_bytes: Array
    window_cache_bytes: Array
    read_bytes: Array
    window_read_bytes: Array
    index_read_bytes: Array
    window: Array
    seen: Array
    state_bytes: Array
    attention: Array
    window_attention: Array
    latent_attention: Array
    kv_heads: Array
    tensor: Array
    pipeline: Array
    data: Array
    split: Array
    expert_ranks: Array
    host_routed: Array
    host_dense: Array
    micro_batch: Array
    most_sequences: Array
    share_of_cores: Array
    threads: Array
    disk: Array
    flash: Array
    batched: Array
    age: Array
    sequences: Array
    prompt: Array
    depth: Array
    output: Array
    requests: Array
    varied: Array
    loaded: Array
    served: Array
    absorbed: Array

    def __len__(self) -> int:
        return len(self.bandwidth)

    def take(self, index: Array) -> Cases:
        """The plans that `index` selects."""
        return Cases(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def cases(plans: Sequence[tuple[Device, Shapes, Way, Job]]) -> Cases:
    """The arrays of a list of plans."""
    rows = [_row(*plan) for plan in plans]
    whole = {f.name for f in fields(Cases) if f.name.endswith("_class")}
    return Cases(
        **{
            f.name: np.array([row[f.name] for row in rows], dtype=np.int64 if f.name in whole else np.float64)
            for f in fields(Cases)
        }
    )


def memory_class(device: Device) -> str:
    """The class of devices that reach the same share of their memory's bandwidth."""
    if device.kind in ("apple", "npu"):
        return device.kind
    return "hbm_amd" if device.memory == "hbm" and device.vendor == "amd" else device.memory


def maker(device: Device) -> str:
    """The class of devices that share their software, and so shares of the rate and times of launches."""
    if device.kind in ("apple", "npu", "cpu"):
        return device.kind
    return device.vendor


def path(device: Device, way: Way) -> str:
    """How products are computed.

    native: in units for the format, or unpacked in a fused kernel. blocks: llama.cpp multiplies blocks as integers on
    GPUs. unpacked: it turns them into 16 bits first, on Apple. cpu: integer dot products of a processor.
    """
    if way.engine in ("cpu", "cpu_tuned"):
        return "cpu"
    if way.engine != "llama":
        return "native"
    return "unpacked" if device.vendor in ("apple", "intel") else "blocks"


_LEAST_WATTS = 50.0  # below, a published power is that of light load, and not a limit


def strain(device: Device) -> float:
    """Operations of 8 bits for each joule of the power limit, relative to 1.5e12: with more, chips run below their
    clock. A rate of 8 bits that nobody lists counts as twice that of 16."""
    if device.watts is None or device.watts < _LEAST_WATTS or device.kind in ("cpu", "apple"):
        return 1.0
    listed = [device.operations_per_s.get(name, 0.0) for name in ("int8", "fp8")]
    best = max(*listed, 2 * device.rate("fp16"), 2 * device.rate("fp16_narrow"))
    return best / device.watts / 1.5e12


def arithmetic(device: Device, way: Way) -> str:
    """The format in which products are computed: that of the units which the engine's kernels use."""
    kernel, engine = way.weights.kernel, way.engine
    if engine in ("llama", "cpu", "cpu_tuned"):
        if kernel == "f16":
            return "fp16_narrow" if engine == "llama" else "fp16_vector"
        if (
            engine == "llama"
            and kernel == "fp4"
            and device.vendor == "nvidia"
            and "fp4" in device.operations_per_s
        ):
            return "fp4"
        if engine != "llama":
            return "int8_vector"
        return "int8" if device.vendor == "nvidia" else "fp16"
    if engine == "compiled" and kernel == "i4":
        return "fp16_narrow"
    if way.weights.activations and kernel == "f8":
        return "fp8"
    if way.weights.activations and kernel == "i8":
        return "int8"
    if way.weights.activations and kernel == "fp4":
        return "fp4" if "fp4" in device.operations_per_s else "fp16"
    return "fp16"


def _computed_as(device: Device, way: Way) -> Kernel:
    """The class of formats whose kernels compute the products: 4-bit floats without units for them are unpacked."""
    has_units = arithmetic(device, way) == "fp4" and "fp4" in device.operations_per_s
    return (
        "i4"
        if way.weights.kernel == "fp4" and way.engine != "llama" and not has_units
        else way.weights.kernel
    )


def _launched_like(device: Device, way: Way) -> str:
    """Whose times of launches count: graphs that were compiled as a whole start alike everywhere."""
    return "nvidia" if way.engine in ("graph", "compiled") else maker(device)


def _started_as(way: Way) -> Engine:
    """The class of engines that starts kernels alike: servers without graphs of their device start each from Python."""
    return way.engine if way.graphs or way.engine != "serving" else "eager"


def _row(device: Device, shapes: Shapes, way: Way, job: Job) -> dict[str, float]:
    return {
        **_classes(device, way),
        **_of_device(device, way),
        **_of_shapes(shapes),
        **_bytes(shapes, way),
        **_of_way(device, shapes, way),
        **_of_job(job),
    }


def _classes(device: Device, way: Way) -> dict[str, int]:
    return {
        "memory_class": MEMORIES.index(memory_class(device)),
        "maker_class": MAKERS.index(maker(device)),
        "path_class": PATHS.index(path(device, way)),
        "engine_class": ENGINES.index(way.engine),
        "kernel_class": KERNELS.index(way.weights.kernel),
        "compute_class": KERNELS.index(_computed_as(device, way)),
        "launch_class": MAKERS.index(_launched_like(device, way)),
        "started_class": ENGINES.index(_started_as(way)),
        "link_class": LINKS.index(device.link),
    }


def _of_device(device: Device, way: Way) -> dict[str, float]:
    return {
        "bandwidth": device.bytes_per_s,
        "rate": device.rate(arithmetic(device, way)),
        "wide_rate": device.rate("fp16"),
        "strain": strain(device),
        "wide_hbm": device.memory == "hbm" and way.engine == "llama",
        "memory": device.memory_bytes or 64e9,
        "link": device.link_bytes_per_s or (100e9 if device.link == "fabric" else 25e9),
        "host_link": device.host_link_bytes_per_s,
        "host_bandwidth": device.host_bytes_per_s or 80e9,
        "host_rate": device.host_operations_per_s or 10e12,
    }


def _of_shapes(shapes: Shapes) -> dict[str, float]:
    return {
        "width": shapes.width,
        "layers": shapes.layers,
        "moe_layers": shapes.moe_layers,
        "experts": shapes.experts,
        "experts_used": shapes.experts_used,
        "dense": shapes.dense,
        "routed": shapes.routed,
        "head": shapes.head,
        "window": shapes.window_tokens,
        "seen": shapes.seen_tokens,
        "state_bytes": shapes.state_bytes,
        "attention": shapes.attention,
        "window_attention": shapes.window_attention,
        "latent_attention": shapes.latent_attention,
        "kv_heads": shapes.kv_heads,
    }


def _bytes(shapes: Shapes, way: Way) -> dict[str, float]:
    """Of weights, as large together as the file where its size is known, and of the cache."""
    weights, element = way.weights, way.cache_bits / 8
    stored = {
        "dense_bytes": shapes.dense * weights.bits / 8,
        "routed_bytes": shapes.routed * weights.routed_bits / 8,
        "head_bytes": shapes.head * weights.end_bits / 8,
        "lookup_bytes": shapes.lookup * weights.end_bits / 8,
    }
    scale = weights.file_bytes / sum(stored.values()) if weights.file_bytes else 1.0
    return {name: n * scale for name, n in stored.items()} | {
        "cache_bytes": shapes.cache * element,
        "window_cache_bytes": shapes.window_cache * element,
        "read_bytes": shapes.read * element,
        "window_read_bytes": shapes.window_read * element,
        "index_read_bytes": shapes.index_read * element,
    }


def _of_way(device: Device, shapes: Shapes, way: Way) -> dict[str, float]:
    return {
        "tensor": way.tensor,
        "pipeline": way.pipeline,
        "data": way.data,
        "split": way.split,
        "expert_ranks": way.data if way.shared and shapes.moe_layers else 1,
        "host_routed": way.host_routed,
        "host_dense": way.host_dense,
        "micro_batch": way.micro_batch or 8192,
        "most_sequences": way.most_sequences or np.nan,
        "share_of_cores": min(1.0, way.threads / device.cores) if way.threads and device.cores else 1.0,
        "threads": way.threads or np.inf,
        "disk": way.on_disk,
        "flash": way.flash,
        "batched": way.batched,
        "age": (way.year or _YEAR) - _YEAR,
        "absorbed": way.engine in ("llama", "cpu"),
    }


def _of_job(job: Job) -> dict[str, float]:
    return {
        "sequences": job.sequences if job.sequences is not None else np.nan,
        "prompt": job.prompt_tokens,
        "depth": job.depth_tokens,
        "output": job.output_tokens,
        "requests": job.requests if job.requests is not None else np.nan,
        "varied": job.varied,
        "loaded": job.loaded,
        "served": job.served,
    }
