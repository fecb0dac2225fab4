"""From the metadata of a GGUF file to the configuration of transformers' class for the same model.

Where the engine decides something that files do not say (the norm of experts' weights, how yarn rounds), the
configuration says it: what is calibrated is the model as the engine runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from penjing.calibrate.names import WITHOUT, unknown
from penjing.errors import UsageError
from penjing.gguf.header import Header
from penjing.gguf.keys import Keys
from penjing.model import Model
from penjing.quantize.native import Native
from penjing.quantize.tensors import Tensors

_SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID
Fields = dict[str, Any]


class _Facts:
    """What a file says of one model, with the engine's defaults."""

    def __init__(self, header: Header, model: Model) -> None:
        self.header, self.model = header, model
        self.keys = Keys(header, model.architecture)
        self.tensors = {tensor.name for tensor in header.tensors}
        self.heads = self.number("attention.head_count")
        self.head = self.number("attention.key_length", model.width // self.heads)
        self.rotary = self.number("rope.dimension_count", self.head)
        self.experts, self.used = model.experts, self.number("expert_used_count", 0)

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number that all layers share.

        Raises:
            UsageError: the layers differ, which no class of transformers allows.
        """
        values = set(self.keys.per_layer(key, default))
        if len(values) > 1:
            raise self.unlike(f"its layers differ in `{key}`")
        return values.pop()

    def real(self, key: str, default: float) -> float:
        value = self.header.metadata.get(f"{self.model.architecture}.{key}", default)
        return float(value) if isinstance(value, int | float) else default

    def flag(self, key: str) -> bool:
        return bool(self.header.metadata.get(f"{self.model.architecture}.{key}", False))

    def has(self, *stems: str) -> bool:
        """The first layer has one of these tensors."""
        return any(f"blk.0.{stem}" in self.tensors for stem in stems)

    def unlike(self, problem: str) -> UsageError:
        return UsageError(f"`{self.keys.file}` cannot be calibrated: {problem}", hint=WITHOUT)


def config_of(header: Header, model: Model) -> Any:
    """The configuration with which transformers computes what the engine computes from this file.

    Raises:
        UsageError: a family that is not known here, or a variant that its class cannot express.
    """
    import transformers

    if model.architecture not in _FAMILIES:
        raise unknown(model.architecture)
    facts = _Facts(header, model)
    if facts.has("attn_qkv.weight") or "rope.scaling.alpha" in facts.keys:
        raise facts.unlike("it has fused attention matrices, or rotary positions scaled by an alpha")
    name, fields = _FAMILIES[model.architecture](facts)
    return getattr(transformers, f"{name}Config")(**_common(facts) | fields)


def _common(facts: _Facts) -> Fields:
    trunk = [layer for layer in facts.model.layers if layer.attention != "none"]
    return {
        "vocab_size": facts.model.vocabulary,
        "hidden_size": facts.model.width,
        "intermediate_size": facts.number("feed_forward_length", 0),
        "num_hidden_layers": len(trunk),
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.number("attention.head_count_kv", facts.heads),
        "head_dim": facts.head,
        "max_position_embeddings": facts.model.context_tokens,
        "rms_norm_eps": facts.real("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_parameters": _rope(facts),
        "tie_word_embeddings": facts.model.tied,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }


# ---- rotary positions ----------------------------------------------------------------------------


def _rope(facts: _Facts) -> Fields:
    base: Fields = {"rope_type": "default", "rope_theta": facts.real("rope.freq_base", 10_000.0)}
    kind = facts.header.metadata.get(f"{facts.model.architecture}.rope.scaling.type", "linear")
    factor = facts.real("rope.scaling.factor", 0.0) or facts.real("rope.scale_linear", 0.0) or 1.0
    if kind == "longrope" or (kind == "yarn" and "rope_freqs.weight" in facts.tensors):
        raise facts.unlike(f"it scales its rotary positions by {kind} and by factors of its own")
    if kind == "yarn" and factor > 1:
        return base | _yarn(facts, factor)
    factor = 1.0 if kind == "none" else factor
    if "rope_freqs.weight" in facts.tensors:
        return base | _frequencies(facts, factor)
    return base | ({"rope_type": "linear", "factor": factor} if factor != 1 else {})


def _frequencies(facts: _Facts, factor: float) -> Fields:
    """Llama 3 scales each frequency; the file has the divisors, which `longrope` takes as they are."""
    divisors = Tensors(facts.header, Native(1)).read("rope_freqs.weight") * factor
    return {
        "rope_type": "longrope",
        "short_factor": divisors.tolist(),
        "long_factor": divisors.tolist(),
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": facts.model.context_tokens,
    }


def _yarn(facts: _Facts, factor: float) -> Fields:
    """The engine rounds the range of dimensions to whole ones and has betas of 32 and 1, whatever the file says.

    Cosines and sines are scaled by `attention_factor`. MLA scales all of the attention by the square of
    1 + 0.1·m·ln(factor), with `mscale_all_dim` for m; the engine puts its attention factor into that as well.
    """
    fields: Fields = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": facts.keys.number(
            "rope.scaling.original_context_length", facts.model.context_tokens
        ),
    }
    growth, given = 0.1 * math.log(factor), facts.real("rope.scaling.attn_factor", 1.0)
    if facts.model.architecture != "deepseek2":
        return fields | {"attention_factor": given * (1 + growth)}
    multiplier = 10 * facts.real("rope.scaling.yarn_log_multiplier", 0.0)
    cosines = given if multiplier else given * (1 + growth)
    all_of_it = cosines * (1 + growth * multiplier)
    return fields | {"attention_factor": cosines, "mscale_all_dim": (all_of_it - 1) / growth}


# ---- families ------------------------------------------------------------------------------------


def _attention_bias(facts: _Facts) -> Fields:
    stems = ("attn_q", "attn_k", "attn_v", "attn_output")
    return {"attention_bias": facts.has(*(f"{stem}.bias" for stem in stems))}


def _routing(facts: _Facts) -> Fields:
    """Experts chosen by the sigmoid of their scores, as DeepSeek V3 does it."""
    return {
        "n_routed_experts": facts.experts,
        "num_experts_per_tok": facts.used,
        "moe_intermediate_size": facts.number("expert_feed_forward_length", 0),
        "n_shared_experts": facts.number("expert_shared_count", 0),
        "first_k_dense_replace": facts.number("leading_dense_block_count", 0),
        "routed_scaling_factor": facts.real("expert_weights_scale", 0.0) or 1.0,
        "norm_topk_prob": facts.flag("expert_weights_norm"),
        "n_group": facts.number("expert_group_count", 0) or 1,
        "topk_group": facts.number("expert_group_used_count", 0) or 1,
        "num_nextn_predict_layers": 0,
    }


def _sigmoid(facts: _Facts, default: int) -> bool:
    return (facts.number("expert_gating_func", 0) or default) == _SIGMOID


def _llama(facts: _Facts) -> tuple[str, Fields]:
    if not facts.experts:
        biased = facts.has("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias")
        return "Llama", {**_attention_bias(facts), "mlp_bias": biased}
    if facts.has("attn_q.bias", "attn_output.bias", "ffn_gate_shexp.weight"):
        raise facts.unlike("it has experts, and biases or shared experts beside them")
    return "Mixtral", {
        "num_local_experts": facts.experts,
        "num_experts_per_tok": facts.used,
    }


def _qwen3moe(facts: _Facts) -> tuple[str, Fields]:
    used, hidden = facts.used, facts.number("feed_forward_length", 0)
    return "Qwen3Moe", {
        **_attention_bias(facts),
        "num_experts": facts.experts,
        "num_experts_per_tok": used,
        "moe_intermediate_size": facts.number("expert_feed_forward_length", 0) or hidden // used,
        "norm_topk_prob": True,
    }


def _glm4(facts: _Facts) -> tuple[str, Fields]:
    if "rope.dimension_sections" in facts.keys:
        raise facts.unlike("its rotary positions have sections, for images")
    return "Glm4", {**_attention_bias(facts), "partial_rotary_factor": facts.rotary / facts.head}


def _glm4moe(facts: _Facts) -> tuple[str, Fields]:
    if not _sigmoid(facts, _SIGMOID):
        raise facts.unlike("its experts are not chosen by a sigmoid")
    return "Glm4Moe", {
        **_attention_bias(facts),
        **_routing(facts),
        "partial_rotary_factor": facts.rotary / facts.head,
        "use_qk_norm": facts.has("attn_q_norm.weight"),
    }


def _hunyuan_moe(facts: _Facts) -> tuple[str, Fields]:
    hidden = facts.number("feed_forward_length", 0)
    if (facts.number("expert_shared_feed_forward_length", 0) or hidden) != hidden:
        raise facts.unlike("its shared expert is not as wide as the others")
    return "HunYuanMoEV1", {
        **_attention_bias(facts),
        "num_experts": facts.experts,
        "moe_topk": facts.used,
    }


def _ernie(facts: _Facts) -> Fields:
    return {"use_bias": _attention_bias(facts)["attention_bias"]}


def _ernie_moe(facts: _Facts) -> tuple[str, Fields]:
    hidden = facts.number("expert_feed_forward_length", 0)
    shared = facts.number("expert_shared_feed_forward_length", 0)
    if not hidden or shared % hidden:
        raise facts.unlike(f"its shared expert is {shared} wide, which is no multiple of {hidden}")
    return "Ernie4_5_Moe", {
        **_ernie(facts),
        "moe_intermediate_size": hidden,
        "moe_num_experts": facts.experts,
        "moe_k": facts.used,
        "moe_num_shared_experts": shared // hidden,
        "moe_layer_start_index": facts.number("leading_dense_block_count", 0),
        "moe_layer_interval": facts.number("interleave_moe_layer_step"),
    }


def _minimax(facts: _Facts) -> tuple[str, Fields]:
    if not _sigmoid(facts, 0):
        raise facts.unlike("its experts are not chosen by a sigmoid")
    return "MiniMaxM2", {
        "num_local_experts": facts.experts,
        "num_experts_per_tok": facts.used,
        "partial_rotary_factor": facts.rotary / facts.head,
    }


def _gpt_oss(facts: _Facts) -> tuple[str, Fields]:
    kinds = {"window": "sliding_attention", "full": "full_attention"}
    return "GptOss", {
        "intermediate_size": facts.number("expert_feed_forward_length"),
        "num_local_experts": facts.experts,
        "num_experts_per_tok": facts.used,
        "sliding_window": facts.number("attention.sliding_window"),
        "layer_types": [kinds[layer.attention] for layer in facts.model.layers],
    }


def _deepseek2(facts: _Facts) -> tuple[str, Fields]:
    """V3 and Kimi K2 choose experts by a sigmoid, V2 by a softmax, without a bias and unnormalised."""
    if "attention.temperature_scale" in facts.keys:
        raise facts.unlike("its attention has a temperature")
    fields = _latent(facts) | _routing(facts)
    if _sigmoid(facts, 0):
        return "DeepseekV3", fields
    biased = any(name.endswith(".exp_probs_b.bias") for name in facts.tensors)
    if biased or fields["norm_topk_prob"]:
        raise facts.unlike("its experts are chosen by a softmax with a bias, or weighed by normalised shares")
    return "DeepseekV2", fields | {
        "topk_method": "group_limited_greedy" if fields["n_group"] > 1 else "greedy"
    }


def _latent(facts: _Facts) -> Fields:
    """The sizes of MLA; files from before the engine knew it have only those of whole keys and values."""
    key = facts.number("attention.key_length_mla", 0) or facts.head
    value = facts.number("attention.value_length_mla", 0)
    low_rank = facts.has("attn_q_a.weight")
    return {
        "num_key_value_heads": facts.heads,
        "head_dim": facts.rotary,
        "q_lora_rank": facts.number("attention.q_lora_rank") if low_rank else None,
        "kv_lora_rank": facts.number("attention.kv_lora_rank"),
        "qk_rope_head_dim": facts.rotary,
        "qk_nope_head_dim": key - facts.rotary,
        "v_head_dim": value or facts.number("attention.value_length", facts.head),
    }


_FAMILIES: dict[str, Callable[[_Facts], tuple[str, Fields]]] = {
    "llama": _llama,
    "qwen2": lambda _facts: ("Qwen2", {}),
    "qwen3": lambda facts: ("Qwen3", _attention_bias(facts)),
    "qwen3moe": _qwen3moe,
    "glm4": _glm4,
    "glm4moe": _glm4moe,
    "hunyuan-dense": lambda facts: ("HunYuanDenseV1", _attention_bias(facts)),
    "hunyuan-moe": _hunyuan_moe,
    "ernie4_5": lambda facts: ("Ernie4_5", _ernie(facts)),
    "ernie4_5-moe": _ernie_moe,
    "minimax-m2": _minimax,
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
}
