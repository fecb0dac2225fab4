"""How tokens look at each other: what each kind of attention is made of, and its tensors.

Names and orders of tensors are those of GGUF files; a shape has the row length (input width) first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta, Struct

from penjing.model import Role

Count = Annotated[int, Meta(ge=0, le=2**24)]
Width = Annotated[int, Meta(ge=1, le=2**24)]
Norms = Literal["none", "head", "all"]
Biases = Literal["none", "qkv", "all"]
Weight = tuple[str, Role, tuple[int, ...]]  # name within its layer, role, shape (row length first)


class Grouped(Struct, frozen=True, forbid_unknown_fields=True):
    """Attention with its own keys and values per group of heads (GQA; MHA and MQA are its ends).

    norm: RMS norm of queries and keys, over each head or over all heads at once.
    bias: on the query, key and value projections (`qkv`), or on the output projection too (`all`).
    gated: the query projection carries an output gate, and so is twice as wide.
    sinks: one learned logit for each head. window_tokens: what the layers with a window can see.
    shared_kv: one projection gives keys and values, and is cached once.
    """

    heads: Width
    kv_heads: Width
    head_width: Width
    norm: Norms = "none"
    bias: Biases = "none"
    gated: bool = False
    sinks: bool = False
    window_tokens: Width | None = None
    shared_kv: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_width

    def weights(self, width: int, own_kv: bool = True) -> Iterator[Weight]:
        """The tensors of one layer; without `own_kv` it uses keys and values of a layer before it."""
        yield from self._projections(width, own_kv)
        yield from self._biases(width, own_kv)
        if self.norm != "none":
            each = self.norm == "head"
            yield "attn_q_norm.weight", "norm", (self.head_width if each else self.query_width,)
            if own_kv:
                yield "attn_k_norm.weight", "norm", (self.head_width if each else self.key_width,)
        if self.sinks:
            yield "attn_sinks.weight", "bias", (self.heads,)

    def _projections(self, width: int, own_kv: bool) -> Iterator[Weight]:
        yield "attn_q.weight", "attention_q", (width, self._gated_query)
        if own_kv:
            yield "attn_k.weight", "attention_k", (width, self.key_width)
        if own_kv and not self.shared_kv:
            yield "attn_v.weight", "attention_v", (width, self.key_width)
        yield "attn_output.weight", "attention_output", (self.query_width, width)

    def _biases(self, width: int, own_kv: bool) -> Iterator[Weight]:
        if self.bias != "none":
            yield "attn_q.bias", "bias", (self._gated_query,)
        if self.bias != "none" and own_kv:
            yield "attn_k.bias", "bias", (self.key_width,)
            yield "attn_v.bias", "bias", (self.key_width,)
        if self.bias == "all":
            yield "attn_output.bias", "bias", (width,)

    @property
    def _gated_query(self) -> int:
        return 2 * self.query_width if self.gated else self.query_width


class Latent(Struct, frozen=True, forbid_unknown_fields=True):
    """Multi-head latent attention (MLA): a latent of `kv_rank` and one rotary key are all that is cached.

    q_rank: None where queries are projected in one step.
    gated: a gate on the output of every head. sinks: one learned logit for each head.
    """

    heads: Width
    kv_rank: Width
    rope_width: Count
    nope_width: Width
    value_width: Width
    q_rank: Width | None = None
    gated: bool = False
    sinks: bool = False

    def weights(self, width: int) -> Iterator[Weight]:
        query, output = self.heads * (self.nope_width + self.rope_width), self.heads * self.value_width
        if self.q_rank:
            yield "attn_q_a.weight", "latent_q_down", (width, self.q_rank)
            yield "attn_q_a_norm.weight", "norm", (self.q_rank,)
            yield "attn_q_b.weight", "latent_q_up", (self.q_rank, query)
        else:
            yield "attn_q.weight", "attention_q", (width, query)
        yield "attn_kv_a_mqa.weight", "latent_kv_down", (width, self.kv_rank + self.rope_width)
        yield "attn_kv_a_norm.weight", "norm", (self.kv_rank,)
        yield "attn_k_b.weight", "latent_k_up", (self.nope_width, self.kv_rank, self.heads)
        yield "attn_v_b.weight", "latent_v_up", (self.kv_rank, self.value_width, self.heads)
        yield "attn_output.weight", "attention_output", (output, width)
        if self.gated:
            yield "attn_gate.weight", "attention_gate", (width, output)
        if self.sinks:
            yield "attn_sinks.weight", "bias", (self.heads,)


class Compressed(Struct, frozen=True, forbid_unknown_fields=True):
    """Attention to the last `window_tokens`, and to a cache that holds one entry for many tokens (DeepSeek-V4).

    One head of keys, which are the values too, serves all queries; the output is projected by groups.
    rates: for each layer, how many tokens share one entry; 0 for a layer with its window alone.
    An indexer picks among the entries where the rate is the smallest.
    """

    heads: Width
    head_width: Width
    q_rank: Width
    output_groups: Width
    output_rank: Width
    window_tokens: Width
    rates: tuple[Count, ...]

    def indexed(self, layer: int) -> bool:
        """The layer has so many entries that an indexer picks among them."""
        return self.rates[layer] > 0 and self.rates[layer] == min(rate for rate in self.rates if rate)

    def weights(self, width: int, layer: int) -> Iterator[Weight]:
        query, outputs = self.heads * self.head_width, self.output_groups * self.output_rank
        yield "attn_q_a.weight", "latent_q_down", (width, self.q_rank)
        yield "attn_q_a_norm.weight", "norm", (self.q_rank,)
        yield "attn_q_b.weight", "latent_q_up", (self.q_rank, query)
        yield "attn_kv.weight", "latent_kv_down", (width, self.head_width)
        yield "attn_kv_norm.weight", "norm", (self.head_width,)
        yield "attn_output_a.weight", "attention_output", (query // self.output_groups, outputs)
        yield "attn_output_b.weight", "attention_output", (outputs, width)
        yield "attn_sinks.weight", "bias", (self.heads,)
        if rate := self.rates[layer]:
            # overlapping entries of the finer rate are twice as wide
            inner = self.head_width * (2 if self.indexed(layer) else 1)
            yield from _compressor("attn_compressor", width, inner, self.head_width, rate)


class Indexer(Struct, frozen=True, forbid_unknown_fields=True):
    """A small attention that picks what the large one reads: the `top_tokens` of the past (DSA, MSA).

    owners: how many layers have one, spread evenly; the others use the choice of the layer before.
            None for all layers after the first `skipped`.
    pool: entries of its own cache that are pooled into one; 0 for none.
    """

    heads: Width
    width: Width
    top_tokens: Width
    owners: Width | None = None
    skipped: Count = 0
    pool: Count = 0

    def owned(self, layer: int, layers: int) -> bool:
        owners = layers if self.owners is None else self.owners
        return layer >= self.skipped and (layer + 1) * owners // layers > layer * owners // layers

    def weights(self, width: int, q_rank: int | None) -> Iterator[Weight]:
        """Its tensors: over a latent query with a weight per head, or over the input with two norms."""
        yield "indexer.attn_q.weight", "attention_q", (q_rank or width, self.heads * self.width)
        yield "indexer.attn_k.weight", "attention_k", (width, self.width)
        yield "indexer.k_norm.weight", "norm", (self.width,)
        if q_rank:
            yield "indexer.k_norm.bias", "bias", (self.width,)
            yield "indexer.proj.weight", "other", (width, self.heads)
        else:
            yield "indexer.q_norm.weight", "norm", (self.width,)
        if self.pool:
            yield "indexer.pool_gate.weight", "other", (width, self.width)
            yield "indexer.pool_ape", "other", (self.width, self.pool)

    def compressed_weights(self, width: int, q_rank: int, rate: int) -> Iterator[Weight]:
        """Its tensors where it works on entries of `rate` tokens, compressed for it alone."""
        yield "indexer.attn_q.weight", "attention_q", (q_rank, self.heads * self.width)
        yield "indexer.proj.weight", "other", (width, self.heads)
        yield from _compressor("indexer.compressor", width, 2 * self.width, self.width, rate)


def _compressor(name: str, width: int, inner: int, normed: int, rate: int) -> Iterator[Weight]:
    yield f"{name}_kv.weight", "other", (width, inner)
    yield f"{name}_gate.weight", "other", (width, inner)
    yield f"{name}_ape", "other", (inner, rate)
    yield f"{name}_norm.weight", "norm", (normed,)
