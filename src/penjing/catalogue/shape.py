"""The dimensions of a model: enough to write down every tensor, small enough to type in by hand.

A `Shape` is what a catalogue entry holds, and what the `config.json` of a known family is turned
into. The TOML form has the same names; each struct below is one table of it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from penjing.model import AttentionKind

Count = Annotated[int, Meta(ge=0, le=2**24)]
Width = Annotated[int, Meta(ge=1, le=2**24)]
LayerCount = Annotated[int, Meta(ge=1, le=512)]

Norms = Literal["none", "head", "all"]
Biases = Literal["none", "qkv", "all"]


class Grouped(Struct, frozen=True, forbid_unknown_fields=True):
    """Attention with its own keys and values per group of heads (GQA; MHA and MQA are its ends).

    norm: RMS norm of queries and keys, over each head or over all heads at once.
    bias: on the query, key and value projections (`qkv`), or on the output projection too (`all`).
    gated: the query projection carries an output gate, and so is twice as wide.
    sinks: one learned logit for each head. window_tokens: what the layers with a window can see.
    """

    heads: Width
    kv_heads: Width
    head_width: Width
    norm: Norms = "none"
    bias: Biases = "none"
    gated: bool = False
    sinks: bool = False
    window_tokens: Width | None = None


class Latent(Struct, frozen=True, forbid_unknown_fields=True):
    """Multi-head latent attention (MLA): a latent of `kv_rank` and one rotary key are all that is cached.

    q_rank: None where queries are projected in one step.
    """

    heads: Width
    kv_rank: Width
    rope_width: Width
    nope_width: Width
    value_width: Width
    q_rank: Width | None = None


class Recurrent(Struct, frozen=True, forbid_unknown_fields=True):
    """A gated delta net in the layers that have no cache: heads, their widths, taps of its convolution."""

    key_heads: Width
    value_heads: Width
    key_width: Width
    value_width: Width
    taps: Width = 4

    @property
    def channels(self) -> int:
        """Elements of queries, keys and values together, which the convolution runs over."""
        return 2 * self.key_heads * self.key_width + self.value_heads * self.value_width

    @property
    def state_bytes(self) -> int:
        """Fixed memory of one sequence in one layer, F32: the last inputs of the convolution, the state."""
        convolution = (self.taps - 1) * self.channels
        return 4 * (convolution + self.value_heads * self.key_width * self.value_width)


class Experts(Struct, frozen=True, forbid_unknown_fields=True):
    """A mixture of experts in place of the dense feed-forward network.

    hidden: of one routed expert. shared_hidden: of all shared experts together, 0 for none.
    shared_gate: a learned gate on the shared expert. router_bias: one number per expert.
    bias: on the experts' own projections. type: in which the makers publish the experts, if not in 16 bits.
    """

    count: Width
    used: Width
    hidden: Width
    shared_hidden: Count = 0
    shared_gate: bool = False
    router_bias: bool = False
    bias: bool = False
    type: Literal["mxfp4"] | None = None


class Shape(Struct, frozen=True, forbid_unknown_fields=True):
    """The dimensions of a model, and where they were read.

    weights: how many there are, counted independently of this package, as a check; None if unknown.
    hidden: of the dense feed-forward network; of the first `dense_layers` layers where there are experts.
    full_every: every n-th layer attends to everything; the others have a window, or are recurrent.
    kinds: the kind of every layer, where `full_every` cannot say it.
    layer_norms: RMS norms of one layer, those of queries, keys and latents not counted.
    Draft heads (MTP) and the parts for pictures and sound are left out.
    """

    name: str
    architecture: str
    source: str
    layers: LayerCount
    width: Width
    vocabulary: Width
    context_tokens: Annotated[int, Meta(ge=1, le=2**31)]
    tied: bool
    grouped: Grouped | None = None
    latent: Latent | None = None
    recurrent: Recurrent | None = None
    hidden: Width | None = None
    experts: Experts | None = None
    dense_layers: Count = 0
    full_every: Width = 1
    kinds: tuple[AttentionKind, ...] = ()
    layer_norms: Width = 2
    repository: str = ""
    weights: int | None = None

    def __post_init__(self) -> None:
        for wrong, why in self._faults():
            if wrong:
                raise ValueError(why)

    def _faults(self) -> tuple[tuple[bool, str], ...]:
        one_attention = (self.grouped is None) != (self.latent is None)
        windows = self.grouped is not None and self.grouped.window_tokens is not None
        few_experts = self.experts is not None and not 1 <= self.experts.used <= self.experts.count
        told = not self.kinds or len(self.kinds) == self.layers
        return (
            (not one_attention, "needs one of the tables `grouped` and `latent`"),
            (self.experts is None and self.hidden is None, "needs `hidden` or the table `experts`"),
            (few_experts, "`experts.used` must be between 1 and `experts.count`"),
            (self.dense_layers > self.layers, "`dense_layers` exceeds `layers`"),
            (self.dense_layers > 0 and self.hidden is None, "`dense_layers` need `hidden`"),
            (not told, f"there are {len(self.kinds)} `kinds` for {self.layers} layers"),
            ("window" in self.layer_kinds and not windows, "a window needs `grouped.window_tokens`"),
            ("recurrent" in self.kinds and not self.recurrent, "`recurrent` layers need that table"),
        )

    @property
    def layer_kinds(self) -> tuple[AttentionKind, ...]:
        """How each layer mixes tokens, the first layer first."""
        if self.kinds:
            return self.kinds
        full: AttentionKind = "latent" if self.latent else "full"
        other: AttentionKind = "recurrent" if self.recurrent else "window"
        return tuple(full if (i + 1) % self.full_every == 0 else other for i in range(self.layers))
