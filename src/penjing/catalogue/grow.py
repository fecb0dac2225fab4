"""From a `Shape` to a `Model`: every tensor with its role, shape and bytes, named as in a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self

from msgspec import Struct

from penjing.catalogue.attention import Compressed, Grouped, Weight
from penjing.catalogue.feed_forward import dense
from penjing.catalogue.shape import Shape, Streams
from penjing.errors import UnknownName
from penjing.formats import BY_NAME
from penjing.model import AttentionKind, Layer, Model, Role, Tensor

# what a row that is no multiple of the block is stored in instead
_FALLBACK = {
    "q2_K": "iq4_nl", "q3_K": "iq4_nl", "iq4_xs": "iq4_nl", "q4_K": "q5_0", "q5_K": "q5_1", "q6_K": "q8_0",
}  # fmt: skip

_ROUTED: tuple[Role, ...] = ("expert_gate", "expert_up", "expert_down", "expert_gate_up")
_VECTORS: tuple[Role, ...] = ("norm", "bias")
_LOOKED_UP = ("token_embd.weight", "position_embd.weight", "per_layer_token_embd.weight")  # one row a token
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
    return tuple(_layer(shape, i, kind) for i, kind in enumerate(shape.layer_kinds))


def _layer(shape: Shape, i: int, kind: AttentionKind) -> Layer:
    if kind == "none":
        return Layer("none")
    if kind == "recurrent" and shape.mixer:
        return Layer("recurrent", state_bytes=shape.mixer.state_bytes)
    index = _index(shape, i)
    if shape.compressed:
        return _compressed_layer(shape.compressed, i, *index)
    if shape.latent:
        width = shape.latent.kv_rank + shape.latent.rope_width
        return Layer("latent", shape.latent.heads, width, index_width=index[0], top_tokens=index[1])
    return _grouped_layer(shape, i, kind, *index)


def _index(shape: Shape, i: int) -> tuple[int, int | None]:
    """What the indexer that chooses for a layer keeps (nothing if it is that of a layer before), and chooses."""
    indexer = shape.indexer
    unindexed = shape.compressed is not None and not shape.compressed.indexed(i)
    if indexer is None or i < indexer.skipped or unindexed:
        return 0, None
    return indexer.width if indexer.owned(i, shape.layers) else 0, indexer.top_tokens


def _compressed_layer(attention: Compressed, i: int, index_width: int, top_tokens: int | None) -> Layer:
    rate = attention.rates[i]
    return Layer(
        "compressed" if rate else "window",
        heads=attention.heads,
        key_width=attention.head_width,
        window_tokens=attention.window_tokens,
        compression=rate or 1,
        index_width=index_width,
        top_tokens=top_tokens,
    )


def _grouped_layer(
    shape: Shape, i: int, kind: AttentionKind, index_width: int, top_tokens: int | None
) -> Layer:
    attention = _attention(shape, kind)
    key, value = attention.key_width, 0 if attention.shared_kv else attention.key_width
    window = attention.window_tokens if kind == "window" else None
    if not shape.own_kv(i):
        return Layer(kind, attention.heads, window_tokens=window, borrowed_width=key + value)
    return Layer(kind, attention.heads, key, value, window, index_width=index_width, top_tokens=top_tokens)


def _attention(shape: Shape, kind: AttentionKind) -> Grouped:
    attention = shape.window if kind == "window" and shape.window else shape.grouped
    assert attention is not None  # the shape has one of its attentions
    return attention


def _tensors(shape: Shape, types: Types) -> Iterator[Tensor]:
    for name, role, sizes in _ends(shape):
        yield _tensor(name, role, sizes, types, None, 1 / sizes[1] if name in _LOOKED_UP else 1.0)
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
    yield from _norm(shape, "output_norm")
    if not shape.tied:
        yield "output.weight", "output", (shape.width, shape.vocabulary)
    if shape.output_bias:
        yield "output.bias", "bias", (shape.vocabulary,)
    if shape.positions:
        yield "position_embd.weight", "other", (shape.width, shape.positions)
    if shape.embedding_norm:
        yield from _norm(shape, "token_embd_norm")
    if inner := shape.layer_embedding:
        yield "per_layer_token_embd.weight", "other", (shape.layers * inner, shape.vocabulary)
        yield "per_layer_model_proj.weight", "other", (shape.width, shape.layers * inner)
        yield "per_layer_proj_norm.weight", "norm", (inner,)
    if shape.streams and shape.streams.head:
        yield from _stream_head(shape.streams, shape.width)


def _layer_weights(shape: Shape, layer: int, kind: AttentionKind) -> Iterator[Weight]:
    for name in _NORM_NAMES[: shape.layer_norms]:
        yield from _norm(shape, name)
    yield from _mixing(shape, layer, kind)
    if shape.sub_norms and shape.grouped and shape.hidden:
        yield "attn_sub_norm.weight", "norm", (shape.grouped.query_width,)
        yield "ffn_sub_norm.weight", "norm", (shape.hidden,)
    if shape.experts and shape.has_experts(layer):
        yield from shape.experts.weights(shape.width)
    if shape.hidden and shape.has_dense(layer):
        hidden = shape.hidden if shape.own_kv(layer) else shape.borrowing_hidden or shape.hidden
        yield from dense(shape.width, hidden, shape.ffn_gate, shape.ffn_bias)
    if inner := shape.layer_embedding:
        yield "inp_gate.weight", "other", (shape.width, inner)
        yield "proj.weight", "other", (inner, shape.width)
        yield "post_norm.weight", "norm", (shape.width,)
    if shape.streams:
        yield from _stream_mixers(shape.streams, shape.width)


_NORM_NAMES = (
    "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm",
    "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2",
)  # fmt: skip


def _norm(shape: Shape, name: str) -> Iterator[Weight]:
    yield f"{name}.weight", "norm", (shape.width,)
    if shape.norm_bias:
        yield f"{name}.bias", "bias", (shape.width,)


def _mixing(shape: Shape, layer: int, kind: AttentionKind) -> Iterator[Weight]:
    """The tensors with which a layer mixes tokens."""
    if kind == "none":
        return
    if kind == "recurrent" and shape.mixer:
        yield from shape.mixer.weights(shape.width)
    elif shape.compressed:
        yield from _compressed(shape, shape.compressed, layer)
    else:
        if shape.latent:
            yield from shape.latent.weights(shape.width)
        else:
            yield from _attention(shape, kind).weights(shape.width, shape.own_kv(layer))
        if shape.indexer and shape.indexer.owned(layer, shape.layers):
            yield from shape.indexer.weights(shape.width, shape.latent.q_rank if shape.latent else None)


def _compressed(shape: Shape, attention: Compressed, layer: int) -> Iterator[Weight]:
    yield from attention.weights(shape.width, layer)
    if shape.indexer and attention.indexed(layer):
        rate = attention.rates[layer]
        yield from shape.indexer.compressed_weights(shape.width, attention.q_rank, rate)


def _stream_mixers(streams: Streams, width: int) -> Iterator[Weight]:
    """How attention and network of a layer read from the streams and write back."""
    n = streams.count
    outputs = (2 + n) * n if streams.combine else 2 * n
    for half in ("attn", "ffn"):
        yield f"{half}_streams.weight", "other", (n * width, outputs)
        yield f"{half}_streams.bias", "bias", (outputs,)
        yield f"{half}_streams.scale", "norm", (3 if streams.combine else 2,)


def _stream_head(streams: Streams, width: int) -> Iterator[Weight]:
    yield "output_streams.weight", "other", (streams.count * width, streams.count)
    yield "output_streams.bias", "bias", (streams.count,)
    yield "output_streams.scale", "norm", (1,)
