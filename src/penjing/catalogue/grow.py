"""From a `Shape` to a `Model`: every tensor with its role, shape and bytes, named as in a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self

from msgspec import Struct

from penjing.catalogue.shape import Experts, Grouped, Latent, Recurrent, Shape
from penjing.errors import UnknownName
from penjing.formats import BY_NAME
from penjing.model import AttentionKind, Layer, Model, Role, Tensor

Weight = tuple[str, Role, tuple[int, ...]]  # name within its layer, role, shape (row length first)

# what a row that is no multiple of the block is stored in instead
_FALLBACK = {
    "q2_K": "iq4_nl", "q3_K": "iq4_nl", "iq4_xs": "iq4_nl", "q4_K": "q5_0", "q5_K": "q5_1", "q6_K": "q8_0",
}  # fmt: skip

_ROUTED: tuple[Role, ...] = ("expert_gate", "expert_up", "expert_down", "expert_gate_up")
_VECTORS: tuple[Role, ...] = ("norm", "bias")
_SHORTEST_ROW = 32


class Types(Struct, frozen=True):
    """The type of each class of tensors: `ends` are embedding and output, `vectors` norms and the like."""

    matrices: str = "f16"
    experts: str = "f16"
    ends: str = "f16"
    vectors: str = "f32"
    router: str = "f32"

    @classmethod
    def all(cls, name: str) -> Self:
        """One type for all matrices; raises UnknownName for a type that is none."""
        known = {kind.lower(): kind for kind in BY_NAME}
        if name.lower() not in known:
            raise UnknownName(f"`{name}` is not a type of weights", hint=f"one of {', '.join(BY_NAME)}")
        kind = known[name.lower()]
        return cls(matrices=kind, experts=kind, ends=kind)

    def of(self, role: Role, sizes: tuple[int, ...]) -> str:
        """The type of a tensor: vectors and rows shorter than any block are not quantized."""
        if role in _VECTORS or len(sizes) == 1 or sizes[0] < _SHORTEST_ROW:
            return self.vectors
        kind = self._by_class(role)
        while sizes[0] % _block(kind)[0]:
            kind = _FALLBACK.get(kind, "f16")
        return kind

    def _by_class(self, role: Role) -> str:
        if role in _ROUTED:
            return self.experts
        if role in ("token_embedding", "output"):
            return self.ends
        return self.router if role in ("router", "shared_router") else self.matrices


def _block(kind: str) -> tuple[int, int]:
    """Weights in one block of a type, and its bytes; FP8 is of safetensors, all others are of ggml."""
    if kind == "f8_e4m3":
        return 1, 1
    return BY_NAME[kind].block_weights, BY_NAME[kind].block_bytes


def grow(shape: Shape, types: Types | None = None) -> Model:
    """The model of that shape. `types` None means f16, experts in the type their makers publish."""
    published = shape.experts.type if shape.experts else None
    types = types or Types(experts=published or "f16")
    return Model(
        name=shape.name,
        architecture=shape.architecture,
        known_family=True,
        source=f"catalogue: {shape.source}",
        width=shape.width,
        vocabulary=shape.vocabulary,
        context_tokens=shape.context_tokens,
        layers=layers_of(shape),
        tensors=tuple(_tensors(shape, types)),
        experts=shape.experts.count if shape.experts else 0,
        experts_used=shape.experts.used if shape.experts else 0,
    )


def layers_of(shape: Shape) -> tuple[Layer, ...]:
    """What every layer keeps of the past."""
    return tuple(_layer(shape, kind) for kind in shape.layer_kinds)


def _layer(shape: Shape, kind: AttentionKind) -> Layer:
    if kind == "recurrent" and shape.recurrent:
        return Layer("recurrent", state_bytes=shape.recurrent.state_bytes)
    if shape.latent:
        return Layer("latent", shape.latent.heads, shape.latent.kv_rank + shape.latent.rope_width, 0)
    assert shape.grouped is not None  # the shape has one of the two
    width = shape.grouped.kv_heads * shape.grouped.head_width
    window = shape.grouped.window_tokens if kind == "window" else None
    return Layer(kind, shape.grouped.heads, width, width, window)


def _tensors(shape: Shape, types: Types) -> Iterator[Tensor]:
    for name, role, sizes in _ends(shape):
        share = 1 / shape.vocabulary if role == "token_embedding" else 1.0
        yield _tensor(name, role, sizes, types, None, share)
    routed_share = shape.experts.used / shape.experts.count if shape.experts else 1.0
    for layer, kind in enumerate(shape.layer_kinds):
        for name, role, sizes in _layer_weights(shape, layer, kind):
            share = routed_share if "_exps." in name else 1.0
            yield _tensor(f"blk.{layer}.{name}", role, sizes, types, layer, share)


def _tensor(
    name: str, role: Role, sizes: tuple[int, ...], types: Types, layer: int | None, share: float
) -> Tensor:
    kind = types.of(role, sizes)
    block_weights, block_bytes = _block(kind)
    return Tensor(name, role, sizes, kind, math.prod(sizes) // block_weights * block_bytes, layer, share)


def _ends(shape: Shape) -> Iterator[Weight]:
    yield "token_embd.weight", "token_embedding", (shape.width, shape.vocabulary)
    yield "output_norm.weight", "norm", (shape.width,)
    if not shape.tied:
        yield "output.weight", "output", (shape.width, shape.vocabulary)


def _layer_weights(shape: Shape, layer: int, kind: AttentionKind) -> Iterator[Weight]:
    for i in range(shape.layer_norms):
        yield f"{_NORM_NAMES[i]}.weight", "norm", (shape.width,)
    if kind == "recurrent" and shape.recurrent:
        yield from _recurrent(shape.recurrent, shape.width)
    elif shape.latent:
        yield from _latent(shape.latent, shape.width)
    elif shape.grouped:
        yield from _grouped(shape.grouped, shape.width)
    if shape.experts and layer >= shape.dense_layers:
        yield from _experts(shape.experts, shape.width)
    elif shape.hidden:
        yield from _dense(shape.hidden, shape.width)


_NORM_NAMES = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")


def _grouped(attention: Grouped, width: int) -> Iterator[Weight]:
    query, key = attention.heads * attention.head_width, attention.kv_heads * attention.head_width
    gated_query = 2 * query if attention.gated else query
    yield "attn_q.weight", "attention_q", (width, gated_query)
    yield "attn_k.weight", "attention_k", (width, key)
    yield "attn_v.weight", "attention_v", (width, key)
    yield "attn_output.weight", "attention_output", (query, width)
    if attention.bias != "none":
        yield "attn_q.bias", "bias", (gated_query,)
        yield "attn_k.bias", "bias", (key,)
        yield "attn_v.bias", "bias", (key,)
    if attention.bias == "all":
        yield "attn_output.bias", "bias", (width,)
    if attention.norm != "none":
        each = attention.norm == "head"
        yield "attn_q_norm.weight", "norm", (attention.head_width if each else query,)
        yield "attn_k_norm.weight", "norm", (attention.head_width if each else key,)
    if attention.sinks:
        yield "attn_sinks.weight", "bias", (attention.heads,)


def _latent(attention: Latent, width: int) -> Iterator[Weight]:
    query = attention.heads * (attention.nope_width + attention.rope_width)
    if attention.q_rank:
        yield "attn_q_a.weight", "latent_q_down", (width, attention.q_rank)
        yield "attn_q_a_norm.weight", "norm", (attention.q_rank,)
        yield "attn_q_b.weight", "latent_q_up", (attention.q_rank, query)
    else:
        yield "attn_q.weight", "attention_q", (width, query)
    yield "attn_kv_a_mqa.weight", "latent_kv_down", (width, attention.kv_rank + attention.rope_width)
    yield "attn_kv_a_norm.weight", "norm", (attention.kv_rank,)
    yield "attn_k_b.weight", "latent_k_up", (attention.nope_width, attention.kv_rank, attention.heads)
    yield "attn_v_b.weight", "latent_v_up", (attention.kv_rank, attention.value_width, attention.heads)
    yield "attn_output.weight", "attention_output", (attention.heads * attention.value_width, width)


def _recurrent(net: Recurrent, width: int) -> Iterator[Weight]:
    value = net.value_heads * net.value_width
    yield "attn_qkv.weight", "attention_qkv", (width, net.channels)
    yield "attn_gate.weight", "attention_gate", (width, value)
    yield "ssm_beta.weight", "recurrent", (width, net.value_heads)
    yield "ssm_alpha.weight", "recurrent", (width, net.value_heads)
    yield "ssm_out.weight", "recurrent", (value, width)
    yield "ssm_conv1d.weight", "recurrent", (net.taps, net.channels)
    yield "ssm_a", "recurrent", (net.value_heads,)
    yield "ssm_dt.bias", "bias", (net.value_heads,)
    yield "ssm_norm.weight", "norm", (net.value_width,)


def _dense(hidden: int, width: int) -> Iterator[Weight]:
    yield "ffn_gate.weight", "ffn_gate", (width, hidden)
    yield "ffn_up.weight", "ffn_up", (width, hidden)
    yield "ffn_down.weight", "ffn_down", (hidden, width)


def _experts(experts: Experts, width: int) -> Iterator[Weight]:
    count, hidden, shared = experts.count, experts.hidden, experts.shared_hidden
    yield "ffn_gate_inp.weight", "router", (width, count)
    yield "ffn_gate_exps.weight", "expert_gate", (width, hidden, count)
    yield "ffn_up_exps.weight", "expert_up", (width, hidden, count)
    yield "ffn_down_exps.weight", "expert_down", (hidden, width, count)
    if experts.router_bias:
        yield "exp_probs_b.bias", "bias", (count,)
    if experts.bias:
        yield "ffn_gate_exps.bias", "bias", (hidden, count)
        yield "ffn_up_exps.bias", "bias", (hidden, count)
        yield "ffn_down_exps.bias", "bias", (width, count)
    if shared:
        yield "ffn_gate_shexp.weight", "shared_gate", (width, shared)
        yield "ffn_up_shexp.weight", "shared_up", (width, shared)
        yield "ffn_down_shexp.weight", "shared_down", (shared, width)
    if experts.shared_gate:
        yield "ffn_gate_inp_shexp.weight", "shared_router", (width,)
