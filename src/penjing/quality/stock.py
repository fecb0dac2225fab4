"""What llama.cpp's own `llama-quantize` would store: its mixes and its fallbacks, for comparison.

Read in src/llama-quant.cpp of llama.cpp 0.6.0-dev; tests/peer compares the outcome with the real quantizer. Its
exceptions for Falcon and for GLM 5 (`glm5-next`) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from penjing.formats import BY_NAME
from penjing.model import Model, Tensor

MIXES = {
    "Q8_0": "q8_0", "Q6_K": "q6_K", "Q5_K_M": "q5_K", "Q4_K_M": "q4_K", "IQ4_XS": "iq4_xs",
    "Q3_K_M": "q3_K", "Q2_K": "q2_K",
}  # fmt: skip
# Values of `general.file_type` (llama_ftype in llama.h).
FILE_TYPES = {
    "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12,
    "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
_FALLBACK = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_0", "q2_K", "q3_K", "tq1_0", "tq2_0"), "q4_0"),
    "q4_K": "q5_0",
    "q5_K": "q5_1",
    "q6_K": "q8_0",
}
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid|altup|laurel|per_layer_model_proj|ssm_conv1d"
    r"|shortconv\.conv|indexer\.[kq]_proj|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)"
    r"|attn_rel_b|position_embd|token_types"
)
# Where llama.cpp sees "70B", by architecture: so many layers. A llama must share keys between heads, too.
_LAYERS_OF_70B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


def is_quantized(tensor: Tensor) -> bool:
    """llama.cpp would quantize it: a matrix of weights that is no norm, router or convolution."""
    dimensions = [size for size in tensor.shape[1:] if size > 1]
    return bool(dimensions) and tensor.name.endswith("weight") and not _KEPT.search(tensor.name)


def fallback(kind: str, columns: int) -> str:
    """The type that rows of `columns` weights get where `kind` has larger blocks; F16 where nothing fits."""
    if columns % BY_NAME[kind].block_weights:
        kind = _FALLBACK.get(kind, "f16")
    return kind if columns % BY_NAME[kind].block_weights == 0 else "f16"


def uniform(model: Model, kind: str) -> dict[str, str]:
    """Every matrix in one type, or what it falls back to: `llama-quantize --pure`."""
    return {t.name: fallback(kind, t.shape[0]) for t in model.tensors if is_quantized(t)}


def mix(model: Model, name: str, *, importance: bool = False) -> dict[str, str]:
    """The type of every matrix in a stock mix. `importance`: an importance matrix is given.

    Raises:
        KeyError: no such mix.
    """
    matrices = [t for t in model.tensors if is_quantized(t)]
    values, downs = (_ranks(t for t in matrices if _category(t) == kind) for kind in ("value", "down"))
    rules = _Mix(name, MIXES[name], importance, model, _sharing(model), values, downs)
    return {t.name: fallback(_type(rules, t), t.shape[0]) for t in matrices}


class _Mix(Struct, frozen=True):
    """A mix for one model; `values` and `downs` tell which of its kind a matrix is, in the quantizer's order."""

    name: str
    base: str
    importance: bool
    model: Model
    sharing: float
    values: dict[str, int]
    downs: dict[str, int]


def _ranks(tensors: Iterable[Tensor]) -> dict[str, int]:
    ordered = sorted(tensors, key=lambda t: (t.layer if t.layer is not None else -1, t.name))
    return {t.name: i for i, t in enumerate(ordered)}


def _sharing(model: Model) -> float:
    """Query heads for each KV head, as the file says of the first layer.

    Hybrids that we were taught give one count for all layers, also where the first keeps no keys.
    """
    inputs = {t.layer: t.shape[0] for t in model.tensors if t.role == "attention_output"}
    for i, layer in enumerate(model.layers if model.known_family else model.layers[:1]):
        if layer.value_width and i in inputs:
            return inputs[i] / layer.value_width
    return next((float(layer.heads) for layer in model.layers[:1] if layer.attention == "latent"), 1.0)


def _category(tensor: Tensor) -> str:
    name = tensor.name
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    if any(part in name for part in ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")):
        return "value"
    if "attn_output.weight" in name:
        return "attention_output"
    return "down" if "ffn_down" in name else "other"


def _type(mix: _Mix, tensor: Tensor) -> str:
    category, few_experts = _category(tensor), mix.model.experts == 8
    if category == "output" or (category == "embedding" and mix.model.tied):
        return _output_type(tensor, mix.base)
    if category == "value":
        return "q8_0" if few_experts else _value_type(mix, mix.values[tensor.name])
    if few_experts and "attn_k.weight" in tensor.name:
        return "q8_0"
    if category == "down":
        return _down_type(mix, (tensor.layer or 0) if mix.model.experts > 1 else mix.downs[tensor.name])
    if category == "attention_output" and few_experts:
        return "q5_K" if mix.name in ("Q2_K", "Q3_K_M", "Q4_K_M", "IQ4_XS") else mix.base
    if category == "attention_output":
        return {"Q2_K": "q3_K", "Q3_K_M": "q4_K"}.get(mix.name, mix.base)
    return mix.base


def _output_type(tensor: Tensor, base: str) -> str:
    if tensor.shape[0] % BY_NAME[base].block_weights:
        return "q8_0"
    return base if base == "q8_0" else "q6_K"


def _value_type(mix: _Mix, rank: int) -> str:
    kind = mix.base
    if mix.name == "Q2_K":
        kind = "q4_K" if mix.sharing >= 4 else "q3_K"
    elif mix.name == "Q3_K_M":
        kind = "q5_K" if rank < 2 else "q4_K"
    elif mix.name == "IQ4_XS" and mix.sharing >= 4:
        kind = "q5_K"
    elif mix.name in ("Q4_K_M", "Q5_K_M") and _more_bits(rank, len(mix.values)):
        kind = "q6_K"
    return "q5_K" if kind in ("q3_K", "q4_K") and _is_70b(mix) else kind


def _is_70b(mix: _Mix) -> bool:
    architecture = mix.model.architecture
    if architecture == "llama" and mix.sharing == 1:
        return False
    return len(mix.model.layers) == _LAYERS_OF_70B.get(architecture)


def _down_type(mix: _Mix, place: int) -> str:
    n_layers = len(mix.model.layers)
    if mix.name == "Q2_K":
        return "q3_K"
    if mix.name == "Q3_K_M":
        return "q5_K" if place < n_layers // 16 else "q4_K"
    if mix.name in ("Q4_K_M", "Q5_K_M") and _more_bits(place, n_layers):
        return "q6_K"
    return "q5_K" if mix.name == "IQ4_XS" and place < n_layers // 8 and not mix.importance else mix.base


def _more_bits(i: int, n: int) -> bool:
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
