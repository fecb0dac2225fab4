"""What penjing has been taught about model families: tensor names, and which layers are of which kind.

Facts from llama.cpp: src/llama-arch.cpp (names), src/models/*.cpp (layouts). The names are shared by
all families; a family adds only what its files do not say.
"""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

from penjing.model import Role


class Family(Struct, frozen=True):
    """What sets a family apart from the plain transformer.

    Units:
        heads: what the engine asserts of them: `equal`: keys are as wide as values; `whole`: that, and
            a key is rotated as a whole; `any`: nothing.
        needs: keys without which, or with 0 in which, the engine aborts.
        window_period: every so many layers one sees everything, the others a window; 0 for no windows.
            A file can override it with a number or a list.
        recurrent: how the layers without a KV cache are told: `interval` (all but every n-th, 4 where
            the file does not say), `no_kv_heads` (those with 0 KV heads).
        roles: tensors that do another job here than elsewhere.
        ignore_experts: the engine takes an expert count of 0 or 1 for none.
    """

    heads: Literal["any", "equal", "whole"] = "any"
    needs: tuple[str, ...] = ()
    window_period: int = 0
    recurrent: Literal["", "interval", "no_kv_heads"] = ""
    roles: dict[str, Role] = {}
    ignore_experts: bool = False


_PLAIN = Family(heads="whole")
_DELTA_NET = Family(heads="equal", recurrent="interval")

FAMILIES = {
    "llama": _PLAIN,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "qwen3moe": _PLAIN,
    "qwen3next": _DELTA_NET,
    "qwen35": _DELTA_NET,
    "qwen35moe": _DELTA_NET,
    "glm4": Family(heads="equal", roles={"ffn_up": "ffn_gate_up"}),
    "glm4moe": Family(heads="equal", needs=("expert_count",)),
    "minimax-m2": Family(heads="equal", needs=("expert_gating_func",)),
    "hunyuan-dense": Family(heads="whole", ignore_experts=True),
    "hunyuan-moe": _PLAIN,
    "ernie4_5": _PLAIN,
    "ernie4_5-moe": Family(heads="whole", needs=("interleave_moe_layer_step",)),
    "deepseek2": Family(),  # V2, V3, R1, Kimi K2
    "gpt-oss": Family(window_period=2),
    "gemma3": Family(window_period=6),
    "kimi-linear": Family(recurrent="no_kv_heads", needs=("expert_gating_func",)),
}

_ROLES: dict[str, Role] = {
    "token_embd": "token_embedding",
    "output": "output",
    "attn_q": "attention_q",
    "attn_k": "attention_k",
    "attn_v": "attention_v",
    "attn_qkv": "attention_qkv",
    "attn_output": "attention_output",
    "attn_gate": "attention_gate",
    "attn_q_a": "latent_q_down",
    "attn_q_b": "latent_q_up",
    "attn_kv_a_mqa": "latent_kv_down",
    "attn_kv_b": "latent_kv_up",
    "attn_k_b": "latent_k_up",
    "attn_v_b": "latent_v_up",
    "attn_sinks": "bias",  # added to the logits of each head
    "ffn_gate": "ffn_gate",
    "ffn_up": "ffn_up",
    "ffn_down": "ffn_down",
    "ffn_gate_inp": "router",
    "exp_probs_b": "bias",  # older files leave out the ending `.bias`
    "ffn_gate_exps": "expert_gate",
    "ffn_up_exps": "expert_up",
    "ffn_down_exps": "expert_down",
    "ffn_gate_up_exps": "expert_gate_up",
    "ffn_gate_shexp": "shared_gate",
    "ffn_up_shexp": "shared_up",
    "ffn_down_shexp": "shared_down",
    "ffn_gate_inp_shexp": "shared_router",
    "post_attention_norm": "norm",
    "rope_freqs": "norm",  # a few factors on the rotary frequencies
    "rope_factors_long": "norm",
    "rope_factors_short": "norm",
}
_PATTERNS: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r".*_norm(_\d)?"), "norm"),
    (re.compile(r"(ssm|time_mix)_.*|shortconv\..*"), "recurrent"),
)
_NAME = re.compile(r"(?:blk\.([0-9]{1,9})\.)?(.+?)(?:\.(weight|bias))?")

# Tables of which a token reads one row.
LOOKED_UP = frozenset({"token_embd", "per_layer_token_embd", "position_embd", "token_types"})


class Place(Struct, frozen=True):
    """A tensor's name taken apart: `blk.3.ffn_down_exps.bias` is layer 3, `ffn_down_exps`, a bias."""

    layer: int | None
    stem: str
    is_bias: bool


def place_of(name: str) -> Place:
    match = _NAME.fullmatch(name)
    if match is None:
        return Place(None, name, False)
    layer, stem, ending = match.groups()
    return Place(int(layer) if layer else None, stem, ending == "bias")


def role_of(place: Place, family: Family) -> Role:
    """What the tensor does; `other` if no rule knows it."""
    if place.stem.startswith("nextn."):
        return "draft"
    if place.is_bias:
        return "bias"
    for table in (family.roles, _ROLES):
        if place.stem in table:
            return table[place.stem]
    return next((role for pattern, role in _PATTERNS if pattern.fullmatch(place.stem)), "other")
