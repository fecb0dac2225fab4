"""What a pass over a model reads and computes, as sums over its tensors and layers.

A pass takes n tokens. Weights outside the routed experts are read once; of the E experts, each token asks for k,
and under uniform routing a pass of n tokens touches E·(1 − (1 − k/E)ⁿ) of them. Attention reads the cache of every
position that a layer sees, and multiplies with it twice: for the scores, and for what they weigh.
"""

from __future__ import annotations

from msgspec import Struct

from penjing.model import Layer, Model, Tensor

_ROUTED = ("expert_gate", "expert_up", "expert_down", "expert_gate_up")
_NO_PRODUCT = ("token_embedding", "norm", "bias", "draft")


class Shapes(Struct, frozen=True):
    """Sums over a model.

    Units:
        dense, routed: weights of the layers outside and inside of routed experts. head: of the output matrix.
        lookup: weights that are only looked up (an embedding that is not the output matrix too).
        cache, window_cache: cached elements per token of layers that keep everything, and of layers with a window.
        attention, window_attention: width of queries plus width of outputs, over the heads and those layers:
            the multiply-adds for each pair of a token and a position that it sees.
        latent_attention: the same in decode with latent attention, where heads multiply with the latent itself.
        seen_tokens: most positions that layers without a window look at (sparse attention).
        state_bytes: fixed memory per sequence of recurrent layers.
        kv_heads: over which a cache can be split.
    """

    name: str
    width: float
    vocabulary: float
    layers: float
    dense: float
    head: float
    lookup: float = 0.0
    routed: float = 0.0
    moe_layers: float = 0.0
    experts: float = 1.0
    experts_used: float = 1.0
    cache: float = 0.0
    window_cache: float = 0.0
    window_tokens: float = 1e9
    attention: float = 0.0
    window_attention: float = 0.0
    latent_attention: float = 0.0
    seen_tokens: float = 1e9
    state_bytes: float = 0.0
    kv_heads: float = 8.0

    @property
    def weights(self) -> float:
        return self.dense + self.head + self.lookup + self.routed

    @property
    def active(self) -> float:
        """Weights that one token is multiplied with."""
        return self.dense + self.head + self.routed * self.experts_used / self.experts


def shapes_of(model: Model) -> Shapes:
    """The sums of a model."""
    routed = [t for t in model.tensors if t.role in _ROUTED and len(t.shape) > 2]
    products = [t for t in model.tensors if t.role not in _NO_PRODUCT and t.layer is not None]
    embedding = sum(t.n_weights for t in model.tensors if t.role == "token_embedding")
    head = sum(t.n_weights for t in model.tensors if t.role == "output")
    inside = float(sum(t.n_weights for t in routed))
    full = [layer for layer in model.layers if layer.window_tokens is None]
    near = [layer for layer in model.layers if layer.window_tokens is not None]
    pairs = _pair_widths(model)
    return Shapes(
        name=model.name,
        width=model.width,
        vocabulary=model.vocabulary,
        layers=len(model.layers),
        dense=sum(t.n_weights for t in products) - inside,
        head=head or embedding,
        lookup=embedding if head else 0.0,
        routed=inside,
        moe_layers=len({t.layer for t in routed}),
        experts=max(1, model.experts),
        experts_used=max(1, model.experts_used),
        cache=sum(layer.key_width + layer.value_width for layer in full),
        window_cache=sum(layer.key_width + layer.value_width for layer in near),
        window_tokens=max((layer.window_tokens or 0 for layer in near), default=1e9),
        attention=sum(w for layer, w in zip(model.layers, pairs, strict=True) if layer.window_tokens is None),
        window_attention=sum(w for layer, w in zip(model.layers, pairs, strict=True) if layer.window_tokens),
        latent_attention=sum(2 * la.heads * la.key_width for la in model.layers if la.attention == "latent"),
        state_bytes=sum(layer.state_bytes for layer in model.layers),
    )


def _pair_widths(model: Model) -> list[float]:
    """Of each layer: queries' plus outputs' width over all heads, 0 where it has no cache."""
    outputs: dict[int, Tensor] = {
        t.layer: t for t in model.tensors if t.role == "attention_output" and t.layer is not None
    }
    return [_pair_width(layer, outputs.get(i)) for i, layer in enumerate(model.layers)]


def _pair_width(layer: Layer, output: Tensor | None) -> float:
    """With grouped attention both widths are that of the output projection's input; with latent attention queries
    carry a rotary part besides, which adds half of the width again in the models that have it."""
    if not layer.key_width or output is None:
        return 0.0
    return output.shape[0] * (2.5 if layer.attention == "latent" else 2.0)
