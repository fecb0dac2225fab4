"""Formats of weights that engines serve: their bits, the devices that can, whether a file of their own is needed."""

from __future__ import annotations

from msgspec import Struct

from penjing.cost.shapes import shapes_of
from penjing.model import Model

_END_BITS = 16.0  # embedding and output stay in 16 bits


class Format(Struct, frozen=True):
    """A format of weights.

    Units:
        bits: of a weight in the matrices of layers, its scales included; routed_bits: in routed experts.
        needs: arithmetic of which a device's datasheet must name one; empty where weights are only stored so.
        vendors: whose devices have kernels for it in the engines; empty for all.
        stored: the file must hold it already; otherwise 16-bit weights can be rounded while they are loaded.
    """

    bits: float
    routed_bits: float
    needs: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()
    stored: bool = True


_GPUS = ("NVIDIA", "AMD")

FORMATS = {
    "bf16": Format(16, 16, ("bf16",), stored=False),
    "fp16": Format(16, 16, ("fp16", "bf16"), stored=False),
    "fp8": Format(8, 8, ("fp8",), stored=False),
    "int8": Format(8, 8, ("int8",)),
    "awq": Format(4.16, 4.16, vendors=_GPUS),  # groups of 128 with a 16-bit scale and a 4-bit zero
    "gptq": Format(4.13, 4.13, vendors=_GPUS),
    "int4": Format(16, 4.5, vendors=_GPUS),  # experts alone, in groups of 32, as Kimi-K2.5 is published
    "mxfp4": Format(16, 4.25, vendors=_GPUS),  # experts alone, as gpt-oss is published
    "nvfp4": Format(4.5, 4.5, ("fp4",), vendors=("NVIDIA",)),
    "gguf": Format(0, 0),  # whatever the file holds
}

# In which makers publish a model, where that is not 16 bits; by the quantization_config of their repositories.
PUBLISHED = {
    "DeepSeek-V3": "fp8",
    "DeepSeek-R1": "fp8",
    "DeepSeek-V3.2": "fp8",
    "Kimi-K2": "fp8",
    "Kimi-K2.5": "int4",
    "MiniMax-M2": "fp8",
    "MiniMax-M2.5": "fp8",
    "MiniMax-M2.7": "fp8",
}

BLOCK = 128  # weights that share a scale, in each direction, in the FP8 that makers publish


def weights_bytes(model: Model, weight_format: str) -> tuple[float, float]:
    """Bytes of all weights outside and inside of routed experts.

    Norms and other vectors are left out: some thousandths of the whole.
    """
    shapes = shapes_of(model)
    if weight_format == "gguf":
        inside = model.n_bytes * shapes.routed / shapes.weights
        return model.n_bytes - inside, inside
    kind = FORMATS[weight_format]
    ends = (shapes.head + shapes.lookup) * _END_BITS / 8
    return shapes.dense * kind.bits / 8 + ends, shapes.routed * kind.routed_bits / 8


def cache_bytes(model: Model, tokens: int, element_bytes: float = 2.0) -> float:
    """KV cache and states of one sequence of so many tokens."""
    return sum(layer.kept_elements(tokens) * element_bytes + layer.state_bytes for layer in model.layers)


def published(model: Model) -> str:
    """The format in which a catalogue model's own repository holds its weights."""
    if any(t.type == "mxfp4" for t in model.tensors):
        return "mxfp4"
    return PUBLISHED.get(model.name, "bf16")
