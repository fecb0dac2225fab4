"""Ways to cut a model over devices: which degrees of parallelism its shapes allow, and what each device then holds."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from penjing.launch.asked import Asked, Fleet
from penjing.launch.formats import BLOCK
from penjing.model import Layer, Model

MEMORY_SHARE = 0.9


class Parts(Struct, frozen=True):
    """Degrees of parallelism."""

    tensor: int
    pipeline: int
    data: int = 1

    @property
    def replica(self) -> int:
        return self.tensor * self.pipeline


class Load(Struct, frozen=True):
    """What has to lie in memory, and how it can be cut.

    Units:
        dense, routed: bytes of weights. cache: bytes of one sequence of the context.
        kv_heads: the fewest in any layer that caches; 1 where all heads share one cache.
    """

    name: str
    dense: float
    routed: float
    cache: float
    layers: int
    kv_heads: int
    apart: bool  # experts whole, over tensor and data parallel devices

    def device_bytes(self, parts: Parts) -> float:
        """Of the fullest device: the stage with most layers."""
        stage = -(-self.layers // parts.pipeline) / self.layers
        experts = parts.tensor * (parts.data if self.apart else 1)
        weights = self.dense / parts.tensor + self.routed / experts
        return stage * (weights + self.cache / min(parts.tensor, self.kv_heads))


def smallest(model: Model, load: Load, there: Fleet, asked: Asked) -> Parts | None:
    """The fewest devices that hold the model, of them the fewest stages."""
    budget = MEMORY_SHARE * there.memory_bytes
    usable = there.devices // (asked.data_parallel or 1)
    able = [
        parts
        for parts in _candidates(model, there, asked, usable)
        if load.device_bytes(replace(parts, data=asked.data_parallel or 1)) <= budget
    ]
    return min(able, key=lambda parts: (parts.replica, parts.pipeline), default=None)


def _candidates(model: Model, there: Fleet, asked: Asked, usable: int) -> Iterator[Parts]:
    """Every TP and PP that the rule allows on so many devices."""
    free = [t for t in powers(there.per_node) if not splits(model, t, asked.expert_parallel)]
    for tensor in [asked.tensor_parallel] if asked.tensor_parallel else free:
        most = min(usable // tensor, len(model.layers))
        stages = {*powers(most), usable // tensor} if tensor <= usable else set()
        for pipeline in [asked.pipeline_parallel] if asked.pipeline_parallel else sorted(stages):
            parts = Parts(tensor, pipeline)
            if 0 < pipeline <= most and _even(parts, there.per_node):
                yield parts


def _even(parts: Parts, per_node: int) -> bool:
    """A replica that spans nodes has whole stages on each, or stages of whole nodes."""
    if parts.replica <= per_node:
        return True
    nodes = -(-parts.replica // per_node)
    return parts.pipeline % nodes == 0 or (parts.tensor % per_node == 0 and parts.replica % nodes == 0)


def powers(most: int) -> list[int]:
    return [2**i for i in range(max(0, most).bit_length()) if 2**i <= most]


def kv_heads(layer: Layer, query_width: int) -> int:
    """KV heads of a layer: its keys are so wide as that many of its heads; 1 if all share one."""
    if layer.attention not in ("full", "window") or not (layer.heads and layer.key_width and query_width):
        return 1
    return max(1, round(layer.key_width * layer.heads / query_width))


def splits(model: Model, tensor: int, apart: bool = False) -> str:
    """Why a model cannot be split over so many devices; empty if it can. Whole experts need not be split."""
    widths = {t.layer: t.shape[0] for t in model.tensors if t.role == "attention_output"}
    for i, layer in enumerate(model.layers):
        heads = kv_heads(layer, widths.get(i, 0))
        if layer.heads % tensor:
            return f"{layer.heads} heads"
        if layer.heads and heads % tensor and tensor % heads:
            return f"{heads} KV heads"
    for t in model.tensors:
        if t.role in ("ffn_up", "ffn_gate_up", "shared_up") and t.shape[1] % tensor:
            return f"a feed-forward network of width {t.shape[1]}"
        if not apart and t.role == "expert_up" and t.shape[1] % tensor:
            return f"experts of width {t.shape[1]}"
    return ""


def cuts_blocks(model: Model, tensor: int) -> bool:
    """A slice of an expert would cut through FP8 blocks that share a scale, which engines refuse."""
    return any(t.shape[1] // tensor % BLOCK for t in model.tensors if t.role == "expert_up")
