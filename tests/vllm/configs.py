"""Folders that an engine takes for a model: `config.json` in real dimensions, a small tokenizer, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from penjing import catalogue
from penjing.catalogue.shape import Shape

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
QUANTIZATION: dict[str, dict[str, Any]] = {
    "fp8": FP8,
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "int8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
                "input_activations": {
                    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
                },
            }
        },
    },
}  # fmt: skip


def folder(place: Path, name: str, quantized: str = "") -> Path:
    """The folder of a catalogue model, its weights said to be in some format."""
    path = place / f"{name}-{quantized or 'plain'}"
    if path.exists():
        return path
    path.mkdir(parents=True)
    config = _config(catalogue.shape(name))
    if quantized:
        config["quantization_config"] = QUANTIZATION[quantized]
    (path / "config.json").write_text(json.dumps(config))
    vocabulary = {letter: i for i, letter in enumerate("abcdefgh")} | {"<s>": 8}
    Tokenizer(models.BPE(vocabulary, [], unk_token="<s>")).save(str(path / "tokenizer.json"))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<s>", "bos_token": "<s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


def _config(shape: Shape) -> dict[str, Any]:
    common = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context_tokens,
        "intermediate_size": shape.hidden or (shape.experts.hidden if shape.experts else 0),
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    }
    return common | _attention(shape) | _FAMILIES[shape.name](shape)


def _attention(shape: Shape) -> dict[str, Any]:
    if latent := shape.latent:
        return {
            "num_attention_heads": latent.heads, "num_key_value_heads": latent.heads,
            "q_lora_rank": latent.q_rank, "kv_lora_rank": latent.kv_rank, "qk_rope_head_dim": latent.rope_width,
            "qk_nope_head_dim": latent.nope_width, "v_head_dim": latent.value_width,
        }  # fmt: skip
    assert shape.grouped
    heads, width = shape.grouped.heads, shape.grouped.head_width
    return {"num_attention_heads": heads, "num_key_value_heads": shape.grouped.kv_heads, "head_dim": width}


def _dense(architecture: str, model_type: str) -> Any:
    return lambda shape: {"architectures": [architecture], "model_type": model_type}


def _qwen_experts(shape: Shape) -> dict[str, Any]:
    assert shape.experts
    return {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "decoder_sparse_step": 1,
        "num_experts": shape.experts.count, "num_experts_per_tok": shape.experts.used,
        "moe_intermediate_size": shape.experts.hidden, "norm_topk_prob": True, "mlp_only_layers": [],
    }  # fmt: skip


def _routed(architecture: str, model_type: str) -> Any:
    def config(shape: Shape) -> dict[str, Any]:
        assert shape.experts
        return {
            "architectures": [architecture], "model_type": model_type, "n_group": 1, "topk_group": 1,
            "n_routed_experts": shape.experts.count, "num_experts_per_tok": shape.experts.used,
            "moe_intermediate_size": shape.experts.hidden, "n_shared_experts": 1, "norm_topk_prob": True,
            "first_k_dense_replace": shape.dense_layers, "moe_layer_freq": 1, "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid", "topk_method": "noaux_tc", "use_qk_norm": True, "partial_rotary_factor": 0.5,
        }  # fmt: skip

    return config


def _gpt_oss(shape: Shape) -> dict[str, Any]:
    assert shape.experts
    kinds = {"full": "full_attention", "window": "sliding_attention"}
    return {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": shape.experts.count,
        "num_experts_per_tok": shape.experts.used, "experts_per_token": shape.experts.used,
        "intermediate_size": shape.experts.hidden, "sliding_window": 128,
        "layer_types": [kinds[kind] for kind in shape.layer_kinds],
    }  # fmt: skip


_FAMILIES: dict[str, Any] = {
    "Qwen3-8B": _dense("Qwen3ForCausalLM", "qwen3"),
    "Qwen3-32B": _dense("Qwen3ForCausalLM", "qwen3"),
    "Llama-3.1-8B": _dense("LlamaForCausalLM", "llama"),
    "Llama-3.1-70B": _dense("LlamaForCausalLM", "llama"),
    "Qwen3-235B-A22B": _qwen_experts,
    "DeepSeek-V3": _routed("DeepseekV3ForCausalLM", "deepseek_v3"),
    "GLM-4.6": _routed("Glm4MoeForCausalLM", "glm4_moe"),
    "gpt-oss-120b": _gpt_oss,
}
