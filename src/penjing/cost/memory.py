"""Bytes of a plan by the engine's classes, before anything is loaded."""

from __future__ import annotations

from msgspec import Struct

from penjing.model import Layer, Model, Tensor
from penjing.plan import Build, Memory, Settings

# bytes per element: f16, and q8_0 with its fp16 scale for each block of 32
CACHE_ELEMENT_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
_CELLS = 256  # llama.cpp rounds the cache to this many positions
_ROWS = 8  # repacked layouts interleave 8 rows; other matrices stay as they are


class Traits(Struct, frozen=True):
    """What the cost of an engine depends on, as facts of its version and this CPU.

    Units:
        repacked_types: ggml types that have a repacked kernel on this CPU.
        builds: of the engine that can be used here.
        base_bytes: the engine itself, without a model. vocabulary_bytes: for each token of the vocabulary.
    """

    name: str
    version: str
    repacked_types: frozenset[str]
    base_bytes: int
    vocabulary_bytes: int
    builds: tuple[Build, ...] = ("wheel",)


def predict_memory(model: Model, settings: Settings, traits: Traits) -> Memory:
    """Memory by class. The cache is exact for known families; buffers are a rule, good to some 30 %."""
    copied, twice = _copied_bytes(model, traits) if settings.repack or settings.prefill_repack else (0, 0)
    private = copied if settings.mapped and not settings.split else model.n_bytes + twice
    contexts = 2 if settings.split else 1
    return Memory(
        weights_bytes=model.n_bytes if settings.mapped else 0,
        repacked_bytes=private,
        cache_bytes=contexts * cache_bytes(model, settings),
        compute_bytes=contexts * _compute_bytes(model, settings),
        base_bytes=traits.base_bytes + traits.vocabulary_bytes * model.vocabulary,
    )


def _copied_bytes(model: Model, traits: Traits) -> tuple[int, int]:
    """Bytes of repacked copies, and how much of them is an embedding that is there a second time as output.

    Rows of an embedding are looked up in the file's layout; a tied one is repacked besides, as the output matrix.
    """
    matrices = sum(t.n_bytes for t in model.tensors if is_repacked(t, traits))
    tied = next((t for t in model.tensors if model.tied and t.role == "token_embedding"), None)
    twice = tied.n_bytes if tied is not None and _has_layout(tied, traits) else 0
    return matrices + twice, twice


def is_repacked(tensor: Tensor, traits: Traits) -> bool:
    """The engine has a repacked layout for this tensor: a matrix of a repacked type, 8 rows at a time."""
    return tensor.role != "token_embedding" and _has_layout(tensor, traits)


def _has_layout(tensor: Tensor, traits: Traits) -> bool:
    rows = tensor.shape[1] if len(tensor.shape) > 1 else 0
    return tensor.type in traits.repacked_types and rows > 0 and rows % _ROWS == 0


def cache_bytes(model: Model, settings: Settings) -> int:
    """KV cache and recurrent state of all layers, in bytes."""
    element = CACHE_ELEMENT_BYTES[settings.cache_type]
    return sum(_layer_cache_bytes(layer, settings, element) for layer in model.layers)


def _layer_cache_bytes(layer: Layer, settings: Settings, element: float) -> int:
    positions = settings.context_tokens
    if layer.window_tokens is not None:
        positions = min(positions, layer.window_tokens * settings.sequences + settings.micro_batch)
    cells = -(-positions // _CELLS) * _CELLS
    state = layer.state_bytes * max(2, settings.sequences)
    return round((layer.key_width + layer.value_width) * cells * element) + state


def _compute_bytes(model: Model, settings: Settings) -> int:
    """Activations of one micro-batch in F32, the logits of a token, and without flash attention the scores."""
    feed_forward = max(
        (t.shape[1] for t in model.tensors if t.role in ("ffn_up", "ffn_gate_up", "expert_up")),
        default=4 * model.width,
    )
    heads = max((layer.heads for layer in model.layers), default=0)
    outputs = 0
    if any(t.role == "expert_up" for t in model.tensors):  # every expert has inner activations and an output
        feed_forward *= max(1, model.experts_used)
        outputs = model.experts_used * model.width
    activations = settings.micro_batch * 4 * (2 * feed_forward + 6 * model.width + outputs)
    mask = settings.micro_batch * settings.context_tokens * 4
    scores = heads * mask if settings.flash_attention == "off" else 0
    return activations + mask + scores + 2 * 4 * model.vocabulary
