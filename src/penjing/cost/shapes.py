"""What a pass over a model reads and computes, as sums over its tensors and layers.

A pass takes n tokens. Weights outside the routed experts are read once; of the E experts, each token asks for k,
and under uniform routing a pass of n tokens touches E·(1 − (1 − k/E)ⁿ) of them. Attention reads the cache of every
position that a layer sees, and multiplies with it twice: for the scores, and for what they weigh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from msgspec import Struct

from penjing.model import Layer, Model

_ROUTED = ("expert_gate", "expert_up", "expert_down", "expert_gate_up")
_NO_PRODUCT = ("token_embedding", "norm", "bias", "draft", "other")
_FAR = 1e9  # tokens: no limit


class Shapes(Struct, frozen=True):
    """Sums over a model.

    Units:
        dense, routed: weights of the layers outside and inside of routed experts. head: of the output matrix.
        lookup: weights that are only looked up (an embedding that is not the output matrix too).
        cache, window_cache: elements kept per token by layers that keep everything, and by layers with a window.
        read, window_read: elements per token that those layers read; index_read: that choosing what to read takes.
        attention, window_attention: multiply-adds for each pair of a token and a position that it sees.
        latent_attention: the same where heads multiply with the latent itself (decode with latent attention).
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
    read: float = 0.0
    window_read: float = 0.0
    index_read: float = 0.0
    window_tokens: float = _FAR
    attention: float = 0.0
    window_attention: float = 0.0
    latent_attention: float = 0.0
    seen_tokens: float = _FAR
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
    products = sum(t.n_weights for t in model.tensors if t.role not in _NO_PRODUCT and t.layer is not None)
    embedding = sum(t.n_weights for t in model.tensors if t.role == "token_embedding")
    head = sum(t.n_weights for t in model.tensors if t.role == "output")
    other = sum(t.n_weights for t in model.tensors if t.role == "other")
    inside = sum(t.n_weights for t in routed)
    return Shapes(
        name=model.name,
        width=model.width,
        vocabulary=model.vocabulary,
        layers=len(model.layers),
        dense=products - inside,
        head=head or embedding,
        lookup=(embedding if head else 0) + other,
        routed=inside,
        moe_layers=len({t.layer for t in routed}),
        experts=max(1, model.experts),
        experts_used=max(1, model.experts_used),
        **_cache_sums(model),
    )


def _cache_sums(model: Model) -> dict[str, float]:
    """What depends on how layers keep and see the past."""
    near = [layer.attention == "window" for layer in model.layers]
    pairs = _pair_widths(model)
    sums = {
        "cache": _total(model, near, False, _kept),
        "window_cache": _total(model, near, True, _kept),
        "read": _total(model, near, False, _read),
        "window_read": _total(model, near, True, _read),
        "index_read": sum(layer.index_width / layer.compression for layer in model.layers),
        "attention": sum(w for w, is_near in zip(pairs, near, strict=True) if not is_near),
        "window_attention": sum(w for w, is_near in zip(pairs, near, strict=True) if is_near),
        "latent_attention": sum(
            2.0 * la.heads * la.key_width for la in model.layers if la.attention == "latent"
        ),
        "state_bytes": sum(layer.state_bytes for layer in model.layers),
        "kv_heads": _kv_heads(model),
    }
    windows = [
        layer.window_tokens for layer in model.layers if layer.attention == "window" and layer.window_tokens
    ]
    chosen = [layer.top_tokens * layer.compression for layer in model.layers if layer.top_tokens]
    return sums | {
        "window_tokens": float(max(windows, default=_FAR)),
        "seen_tokens": float(max(chosen, default=_FAR)),
    }


def _total(model: Model, near: list[bool], wanted: bool, of: Callable[[Layer], float]) -> float:
    return sum(of(layer) for layer, is_near in zip(model.layers, near, strict=True) if is_near == wanted)


def _kept(layer: Layer) -> float:
    return (layer.key_width + layer.value_width + layer.index_width) / layer.compression


def _read(layer: Layer) -> float:
    return (layer.key_width + layer.value_width + layer.borrowed_width) / layer.compression


def _kv_heads(model: Model) -> float:
    """Heads of keys: as many as fit of the width of one query head; latent attention has a single one."""
    for i, layer in enumerate(model.layers):
        if layer.attention in ("latent", "compressed"):
            return 1.0
        if layer.key_width and layer.heads and (output := _width(model, i, "attention_output", 0)):
            return max(1.0, round(layer.key_width / (output / layer.heads)))
    return 8.0


def _pair_widths(model: Model) -> list[float]:
    """Of each layer: queries' plus outputs' width over all heads, 0 where it sees no past.

    Outputs are as wide as the input of their projection. Queries are as wide with grouped attention; with latent
    attention they carry a rotary part besides, and their own projection tells.
    """
    found: list[float] = []
    for i, layer in enumerate(model.layers):
        output = _width(model, i, "attention_output", 0)
        own = _width(model, i, "latent_q_up", 1) or _width(model, i, "attention_q", 1)
        query = own if layer.attention == "latent" else output
        sees = layer.key_width or layer.borrowed_width
        found.append((query + output) / layer.compression if sees else 0.0)
    return found


def _width(model: Model, layer: int, role: str, axis: int) -> float:
    return _widths(model).get((layer, role), (0.0, 0.0))[axis]


@functools.lru_cache(maxsize=256)
def _widths(model: Model) -> dict[tuple[int, str], tuple[float, float]]:
    return {
        (t.layer, t.role): (float(t.shape[0]), float(t.shape[1]))
        for t in model.tensors
        if t.layer is not None and len(t.shape) == 2
    }
