"""The families of models that penjing knows by heart: what sets each apart from the plain Llama layer."""

from __future__ import annotations

from msgspec import Struct

from penjing.catalogue.attention import Biases, Norms


class Family(Struct, frozen=True):
    """Where a family differs from Llama, mostly in the terms of `Shape`.

    biased: whether the projections under `bias` have one; None asks the configuration.
    tied: what a configuration that says nothing means. shared_always: shared experts it does not name.
    windows_everywhere: a `sliding_window` holds for every layer.
    """

    norm: Norms = "none"
    bias: Biases = "all"
    biased: bool | None = None
    gated: bool = False
    sinks: bool = False
    tied: bool = False
    layer_norms: int = 2
    router_bias: bool = False
    expert_bias: bool = False
    shared_gate: bool = False
    shared_always: int = 0
    full_every: int = 1
    windows_everywhere: bool = False


_DELTA_NET = Family(norm="head", gated=True, shared_gate=True, full_every=4)
_DEEPSEEK = Family(router_bias=True)
FAMILIES = {
    "llama": Family(),
    "mistral": Family(windows_everywhere=True),
    "mixtral": Family(windows_everywhere=True),
    "granite": Family(),
    "qwen2": Family(bias="qkv", biased=True),
    "qwen3": Family(norm="head"),
    "qwen3_vl_text": Family(norm="head"),
    "qwen3_moe": Family(norm="head"),
    "qwen3_vl_moe_text": Family(norm="head"),
    "qwen3_next": _DELTA_NET,
    "qwen3_5_text": _DELTA_NET,
    "qwen3_5_moe_text": _DELTA_NET,
    "glm": Family(bias="qkv"),
    "glm4": Family(bias="qkv", layer_norms=4),
    "glm4_moe": Family(norm="head", bias="qkv", router_bias=True),
    "glm4_moe_lite": _DEEPSEEK,
    "minimax_m2": Family(norm="all", router_bias=True),
    "hunyuan_v1_dense": Family(norm="head"),
    "hunyuan_v1_moe": Family(norm="head", shared_always=1),
    "ernie4_5": Family(tied=True),
    "ernie4_5_moe": Family(tied=True, router_bias=True),
    "deepseek_v2": Family(),
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "gpt_oss": Family(biased=True, sinks=True, router_bias=True, expert_bias=True, full_every=2),
    "gemma3_text": Family(norm="head", layer_norms=4, tied=True, full_every=6),
}
# what the configurations of multimodal models leave out: the values that their family's code assumes
ASSUMED: dict[str, dict[str, int]] = {
    "gemma3_text": {
        "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131_072, "sliding_window": 4096,
    },
}  # fmt: skip
