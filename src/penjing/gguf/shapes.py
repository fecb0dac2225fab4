"""What each layer keeps of the past, from the keys of the file: the cache that llama.cpp will make.

Sources: llama.cpp src/llama-hparams.cpp (sizes), src/llama-kv-cache.cpp (latent attention keeps no V),
src/llama-model.cpp, create_memory (layers for drafting have no cache in plain decoding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from penjing.gguf.families import Family
from penjing.gguf.keys import Keys
from penjing.model import AttentionKind, Layer

_F32_BYTES = 4

# The shapes of one layer's tensors, by the stem of their names.
Stems = Mapping[str, tuple[int, ...]]


class Heads(Struct, frozen=True):
    """Elements of one key head and one value head, in layers that see everything and in windowed ones."""

    key: int
    value: int
    window_key: int
    window_value: int


def layers_of(keys: Keys, family: Family | None, stems: Sequence[Stems]) -> tuple[Layer, ...]:
    """All layers of the file; those that only draft, at the end, are of kind `none`.

    `family` is None for an architecture we were not taught: then tensors tell what the keys do not.

    Raises:
        BadFile: head counts that do not divide, or that no cache can be made for.
    """
    n_trunk = keys.n_layers - draft_layers(keys)
    heads = keys.per_layer("attention.head_count", 0)
    kv_heads = keys.per_layer("attention.head_count_kv", heads)
    sizes = head_sizes(keys, heads[0])
    kinds = _kinds(keys, family, kv_heads[:n_trunk], stems)
    trunk = [_layer(keys, kind, heads[i], kv_heads[i], sizes) for i, kind in enumerate(kinds)]
    if family is None:
        trunk = [_from_tensors(keys, layer, names) for layer, names in zip(trunk, stems, strict=False)]
    return (*trunk, *[Layer("none")] * (keys.n_layers - n_trunk))


def draft_layers(keys: Keys) -> int:
    """How many layers at the end predict tokens ahead (MTP, `nextn`) and idle in plain decoding."""
    count = keys.number("nextn_predict_layers", 0)
    if count >= keys.n_layers:
        raise keys.bad(f"is for drafting alone: {count} of its {keys.n_layers} layers predict ahead")
    return count


def head_sizes(keys: Keys, heads: int) -> Heads:
    """The file's head sizes; without them the width divided by the heads."""
    width = keys.number("embedding_length")
    explicit = "attention.key_length" in keys and "attention.value_length" in keys
    if heads and not explicit and width % heads:
        raise keys.bad(f"has {heads} heads, which do not divide its width of {width}")
    derived = width // heads if heads else 1
    key = keys.number("attention.key_length", derived)
    value = keys.number("attention.value_length", derived)
    return Heads(
        key,
        value,
        keys.number("attention.key_length_swa", key),
        keys.number("attention.value_length_swa", value),
    )


def is_latent(keys: Keys) -> bool:
    """Whether the cache holds MLA's latents. Files from before llama.cpp had them keep whole K and V."""
    return bool(keys.number("attention.key_length_mla", 0) and keys.number("attention.value_length_mla", 0))


def state_bytes(keys: Keys) -> int:
    """Fixed memory of one recurrent layer for one sequence: convolution and state, both F32.

    After llama_hparams::n_embd_r and n_embd_s: RWKV, short convolutions (LFM2), Kimi's delta
    attention, and Mamba or gated delta nets.
    """
    width, kernel = keys.number("embedding_length"), keys.number("ssm.conv_kernel", 0)
    heads = keys.per_layer("attention.head_count", 0)[0]
    rwkv, delta, short = (keys.number(k, 0) for k in ("wkv.head_size", "kda.head_dim", "shortconv.l_cache"))
    if rwkv:
        elements = keys.number("token_shift_count", 2) * width + width * rwkv
    elif short:
        elements = width * (short - 1)
    elif delta:
        elements = 3 * (kernel - 1 if kernel else 3) * heads * delta + delta * delta * heads
    else:
        inner, state, groups = (
            keys.number(k, 0) for k in ("ssm.inner_size", "ssm.state_size", "ssm.group_count")
        )
        elements = max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner
    return elements * _F32_BYTES


def _kinds(
    keys: Keys, family: Family | None, kv_heads: Sequence[int], stems: Sequence[Stems]
) -> list[AttentionKind]:
    attends: AttentionKind = "latent" if is_latent(keys) else "full"
    windowed = _windowed(keys, family, len(kv_heads))
    recurrent = _recurrent(keys, family, kv_heads, stems)
    return [
        "recurrent" if recurrent[i] else "none" if not n_kv else "window" if windowed[i] else attends
        for i, n_kv in enumerate(kv_heads)
    ]


def _windowed(keys: Keys, family: Family | None, n_layers: int) -> Sequence[bool]:
    """Which layers see a window: as the file lists them, or all but every `period`-th.

    Many files of families without windows carry the key all the same.
    """
    taught = family.window_period if family else 0
    if (family and not taught) or not keys.number("attention.sliding_window", 0):
        return [False] * n_layers
    flags = keys.flags("attention.sliding_window_pattern")
    if flags is None and (taught or "attention.sliding_window_pattern" in keys):
        period = keys.number("attention.sliding_window_pattern", taught)
        flags = tuple(not period or i % period < period - 1 for i in range(n_layers))
    if taught and not any(flags or ()):
        raise keys.bad("has a sliding window that no layer uses, on which the engine aborts")
    return flags or [False] * n_layers


def _recurrent(
    keys: Keys, family: Family | None, kv_heads: Sequence[int], stems: Sequence[Stems]
) -> Sequence[bool]:
    if family is None:
        return [_mixes_in_time(names) and "attn_output" not in names for names in stems]
    if family.recurrent == "no_kv_heads":
        return [not n_kv for n_kv in kv_heads]
    if family.recurrent == "interval":
        interval = keys.number("full_attention_interval", 4)
        every = tuple((i + 1) % interval != 0 for i in range(len(kv_heads)))
        return keys.flags("attention.recurrent_layers") or every
    return [False] * len(kv_heads)


def _mixes_in_time(names: Stems) -> bool:
    return any(name.startswith(("ssm_", "time_mix_", "shortconv.")) for name in names)


def _layer(keys: Keys, kind: AttentionKind, heads: int, kv_heads: int, sizes: Heads) -> Layer:
    if kind == "recurrent":
        return Layer("recurrent", state_bytes=state_bytes(keys))
    if kind == "none":
        return Layer("none")
    if heads % kv_heads:
        raise keys.bad(f"has {heads} heads in a layer, which its {kv_heads} KV heads do not divide")
    if kind == "latent":
        return Layer("latent", heads, sizes.key * kv_heads)
    if kind == "window":
        window = keys.number("attention.sliding_window")
        return Layer("window", heads, sizes.window_key * kv_heads, sizes.window_value * kv_heads, window)
    return Layer("full", heads, sizes.key * kv_heads, sizes.value * kv_heads)


def _from_tensors(keys: Keys, layer: Layer, names: Stems) -> Layer:
    """For an unknown family: the cache is as wide as what the projections put out.

    A layer that has both attention and a recurrent part (Falcon H1) keeps both.
    """
    if layer.attention not in ("full", "window"):
        return layer
    key, value = names.get("attn_k", ()), names.get("attn_v", ())
    return Layer(
        layer.attention,
        layer.heads,
        key[1] if len(key) == 2 else layer.key_width,
        value[1] if len(value) == 2 else layer.value_width,
        layer.window_tokens,
        state_bytes(keys) if _mixes_in_time(names) else 0,
    )
