"""Contradictions inside a file on which the engine would abort, or our figures would be wrong.

The conditions are the assertions of llama.cpp: load_hparams (src/llama-model.cpp) and
rope (ggml/src/ggml-cpu/ops.cpp).
"""

from __future__ import annotations

from collections.abc import Sequence

from penjing.gguf.cursor import printable
from penjing.gguf.families import Family, Place
from penjing.gguf.header import Header, TensorInfo
from penjing.gguf.keys import Keys
from penjing.gguf.shapes import head_sizes, is_latent
from penjing.model import Layer

_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")


def check_experts(keys: Keys, family: Family | None) -> tuple[int, tuple[int, ...]]:
    """The number of routed experts, and how many of them a token uses in each layer."""
    experts = keys.number("expert_count", 0)
    used = keys.per_layer("expert_used_count", 0)
    if family and family.ignore_experts and experts <= 1:
        return 0, (0,) * keys.n_layers
    most = max(used)
    if most > experts or (experts and not most):
        raise keys.bad(f"uses {most} of {experts} experts, which is impossible")
    groups, used_groups = keys.number("expert_group_count", 0), keys.number("expert_group_used_count", 0)
    if groups and groups >= experts:
        raise keys.bad(f"has {groups} groups of experts, but {experts} experts")
    if groups > 1 and (experts % groups or not 0 < used_groups < groups):
        raise keys.bad(f"uses {used_groups} of {groups} groups of {experts} experts, which is impossible")
    return experts, used


def check_heads(keys: Keys, header: Header, family: Family | None) -> None:
    """Attention heads and their rotary dimensions, as the engine asserts them of the family."""
    scaling = header.metadata.get(f"{keys.architecture}.rope.scaling.type", "linear")
    if scaling not in _ROPE_SCALINGS:
        known = ", ".join(_ROPE_SCALINGS)
        raise keys.bad(f"scales its rotary positions by `{printable(str(scaling))}`, known: {known}")
    if family is None:
        return
    for key in ("attention.head_count", *family.needs):
        if not keys.per_layer(key, 0)[0]:
            raise keys.bad(f"has no `{keys.architecture}.{key}`, it must be at least 1")
    sizes = head_sizes(keys, keys.per_layer("attention.head_count")[0])
    _check_rotary(keys, family, sizes.key)
    if family.heads != "any" and sizes.key != sizes.value:
        raise keys.bad(f"has key heads of {sizes.key} and value heads of {sizes.value}, they must be equal")
    groups, steps = keys.number("ssm.group_count", 0), keys.number("ssm.time_step_rank", 0)
    if family.recurrent == "interval" and (not groups or not steps or steps % groups):
        raise keys.bad(f"has delta nets of {groups} key heads, which do not divide their {steps} value heads")


def _check_rotary(keys: Keys, family: Family, head: int) -> None:
    rotary = keys.number("rope.dimension_count", head)
    if rotary % 2 or rotary > head or (family.heads == "whole" and rotary < head):
        wanted = "all of it" if family.heads == "whole" else "an even part"
        raise keys.bad(f"rotates {rotary} dimensions of a key head of {head}, it must be {wanted}")
    inner = keys.number("attention.key_length_mla", 0)
    if is_latent(keys) and inner <= rotary:
        raise keys.bad(f"rotates {rotary} dimensions of a decompressed head of {inner}, which leaves none")


def check_shapes(
    keys: Keys,
    family: Family | None,
    layers: Sequence[Layer],
    tensors: Sequence[TensorInfo],
    places: Sequence[Place],
    vocabulary: int,
) -> None:
    """The tensors that our figures rest on are as large as the keys say (known families only)."""
    if family is None:
        return
    if not any(tensor.name == "token_embd.weight" for tensor in tensors):
        raise keys.bad("lacks the tensor `token_embd.weight`, which every model of its family has")
    width, experts = keys.number("embedding_length"), keys.number("expert_count", 0)
    for tensor, place in zip(tensors, places, strict=True):
        layer = layers[place.layer] if place.layer is not None else None
        if place.is_bias:
            continue
        if place.stem in ("token_embd", "output"):
            _expect(keys, tensor, (width, vocabulary))
        elif place.stem.endswith("_exps"):
            _expect(keys, tensor, (None, None, experts))
        elif layer and layer.attention in ("full", "window") and place.stem in ("attn_k", "attn_v"):
            _expect(keys, tensor, (width, layer.key_width if place.stem == "attn_k" else layer.value_width))


def _expect(keys: Keys, tensor: TensorInfo, shape: tuple[int | None, ...]) -> None:
    """`tensor` has `shape`; None stands for any size."""
    if len(tensor.shape) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
    ):
        return
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    raise keys.bad(f"has `{tensor.name}` of shape {tensor.shape}, but its keys ask for ({wanted})")
