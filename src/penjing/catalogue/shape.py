"""The dimensions of a model: enough to write down every tensor, small enough to type in by hand.

A `Shape` is what a catalogue entry holds, and what the `config.json` of a known family is turned
into. The TOML form has the same names; each struct of `attention`, `mixers` and `feed_forward` is one
table of it.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from penjing.catalogue.attention import Compressed, Count, Grouped, Indexer, Latent, Width
from penjing.catalogue.feed_forward import Experts
from penjing.catalogue.mixers import KimiDelta, Lightning, Mamba, Mixer, Recurrent
from penjing.model import AttentionKind

LayerCount = Annotated[int, Meta(ge=1, le=512)]

_LETTERS: dict[str, AttentionKind] = {"M": "recurrent", "*": "full", "E": "none", "-": "none"}


class Streams(Struct, frozen=True, forbid_unknown_fields=True):
    """Several residual streams that every half layer reads from and writes to (hyper-connections).

    combine: the streams are mixed with each other too. head: a learned sum at the end.
    """

    count: Width
    combine: bool = True
    head: bool = True


class Shape(Struct, frozen=True, forbid_unknown_fields=True):
    """The dimensions of a model, and where they were read.

    weights: how many there are, counted independently of this package, as a check; None if unknown.
    hidden: of the dense feed-forward network; of the first `dense_layers` layers where there are experts.
    full_every: every n-th layer attends to everything; the others have a window, or keep a state.
    kinds: the kind of every layer, where `full_every` cannot say it. pattern: the same in letters, for
    models whose layers are a mixer or a feed-forward network, not both: M state, * attention, E experts,
    - dense.
    window: attention of the layers with a window, where it has another form than `grouped`.
    kv_every, kv_layers: only every n-th layer, only the first so many, make keys and values; the others use
    those of a layer before. borrowing_hidden: `hidden` of those others, where it differs.
    layer_norms: norms of one layer, those of queries, keys and latents not counted. norm_bias: with a bias
    (LayerNorm). sub_norms: two more, before the output projection of attention and of the network.
    positions: rows of a learned table of positions, 0 for none.
    layer_embedding: width of a second embedding, of which each layer gets its own part.
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
    window: Grouped | None = None
    latent: Latent | None = None
    compressed: Compressed | None = None
    indexer: Indexer | None = None
    recurrent: Recurrent | None = None
    lightning: Lightning | None = None
    kimi_delta: KimiDelta | None = None
    mamba: Mamba | None = None
    hidden: Width | None = None
    ffn_gate: bool = True
    ffn_bias: bool = False
    experts: Experts | None = None
    streams: Streams | None = None
    dense_layers: Count = 0
    full_every: Width = 1
    kinds: tuple[AttentionKind, ...] = ()
    pattern: str = ""
    kv_every: Width = 1
    kv_layers: Width | None = None
    borrowing_hidden: Width | None = None
    layer_norms: Width = 2
    norm_bias: bool = False
    sub_norms: bool = False
    positions: Count = 0
    embedding_norm: bool = False
    output_bias: bool = False
    layer_embedding: Width | None = None
    repository: str = ""
    weights: int | None = None

    def __post_init__(self) -> None:
        for wrong, why in self._faults():
            if wrong:
                raise ValueError(why)

    def _faults(self) -> tuple[tuple[bool, str], ...]:
        one_attention = sum(part is not None for part in (self.grouped, self.latent, self.compressed)) == 1
        few_experts = self.experts is not None and not 1 <= self.experts.used <= self.experts.count
        odd = sorted(set(self.pattern) - _LETTERS.keys())
        told = next((n for n in self._told() if n != self.layers), None)
        return (
            (not one_attention, "needs one of the tables `grouped` and `latent` (or `compressed`)"),
            (self.experts is None and self.hidden is None, "needs `hidden` or the table `experts`"),
            (few_experts, "`experts.used` must be between 1 and `experts.count`"),
            (self.dense_layers > self.layers, "`dense_layers` exceeds `layers`"),
            (self.dense_layers > 0 and self.hidden is None, "`dense_layers` need `hidden`"),
            (bool(odd), f"`pattern` has {odd}, expected letters of {' '.join(_LETTERS)}"),
            (told is not None, f"there are {told} `kinds` for {self.layers} layers"),
            (
                "window" in self.layer_kinds and not self._sees_windows,
                "a window needs `grouped.window_tokens`",
            ),
            ("recurrent" in self.layer_kinds and not self.mixer, "`recurrent` layers need that table"),
            (
                "E" in self.pattern and self.experts is None,
                "`pattern` has E, and there is no table `experts`",
            ),
            ("-" in self.pattern and self.hidden is None, "`pattern` has -, and there is no `hidden`"),
        )

    def _told(self) -> tuple[int, ...]:
        """How many layers each description of all layers has."""
        rates = self.compressed.rates if self.compressed else ()
        return tuple(len(told) for told in (self.kinds, self.pattern, rates) if told)

    @property
    def _sees_windows(self) -> bool:
        if self.compressed:
            return True
        attention = self.window or self.grouped
        return attention is not None and attention.window_tokens is not None

    @property
    def mixer(self) -> Mixer | None:
        """What the layers without a cache are made of."""
        return self.recurrent or self.lightning or self.kimi_delta or self.mamba

    @property
    def layer_kinds(self) -> tuple[AttentionKind, ...]:
        """How each layer mixes tokens, the first layer first."""
        if self.kinds:
            return self.kinds
        if self.pattern:
            return tuple(_LETTERS.get(letter, "none") for letter in self.pattern)
        if self.compressed:
            return tuple("compressed" if rate else "window" for rate in self.compressed.rates)
        full: AttentionKind = "latent" if self.latent else "full"
        other: AttentionKind = "recurrent" if self.mixer else "window"
        return tuple(full if (i + 1) % self.full_every == 0 else other for i in range(self.layers))

    def own_kv(self, layer: int) -> bool:
        """The layer makes keys and values of its own."""
        return layer % self.kv_every == 0 and (self.kv_layers is None or layer < self.kv_layers)

    def has_experts(self, layer: int) -> bool:
        if self.experts is None or (self.pattern and self.pattern[layer] != "E"):
            return False
        return layer >= self.dense_layers and (layer + 1) % self.experts.every == 0

    def has_dense(self, layer: int) -> bool:
        """The layer has a network for all tokens: those without experts, and those with both."""
        if self.hidden is None or (self.pattern and self.pattern[layer] != "-"):
            return False
        return not self.has_experts(layer) or (self.experts is not None and self.experts.beside_dense)
