"""One complete little model for each family that penjing knows.

Keys, tensor names and shapes are those that the real engine asks for: tests/test_gguf_engine.py loads each
of them with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguf_files import Shapes, Tiny, Value

WIDTH, HIDDEN, VOCABULARY = 64, 96, 48
HEADS, KV_HEADS, HEAD, WIDE_HEAD = 4, 2, 16, 32
EXPERTS, USED, EXPERT_HIDDEN, SHARED_HIDDEN = 8, 2, 32, 24
ROTARY, KV_RANK, Q_RANK, MLA_KEY, MLA_VALUE = 8, 32, 24, 24, 16
STATE, GROUPS, STEPS, KERNEL = 16, 2, 4, 4  # of a gated delta net: head size, key heads, value heads

_LATENT: dict[str, Value] = {
    "attention.head_count_kv": 1,
    "attention.kv_lora_rank": KV_RANK,
    "attention.key_length": KV_RANK + ROTARY,
    "attention.value_length": KV_RANK,
    "attention.key_length_mla": MLA_KEY,
    "attention.value_length_mla": MLA_VALUE,
    "rope.dimension_count": ROTARY,
}
_MOE: dict[str, Value] = {
    "expert_count": EXPERTS,
    "expert_used_count": USED,
    "expert_feed_forward_length": EXPERT_HIDDEN,
}
_DELTA: dict[str, Value] = {
    "ssm.conv_kernel": KERNEL,
    "ssm.inner_size": STATE * STEPS,
    "ssm.state_size": STATE,
    "ssm.time_step_rank": STEPS,
    "ssm.group_count": GROUPS,
    "attention.key_length": WIDE_HEAD,
    "attention.value_length": WIDE_HEAD,
    "rope.dimension_count": ROTARY,
}
_NORMS = {"attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,)}
_POST = {"post_attention_norm.weight": (WIDTH,)}
_SHARED = {
    "ffn_gate_shexp.weight": (WIDTH, SHARED_HIDDEN),
    "ffn_up_shexp.weight": (WIDTH, SHARED_HIDDEN),
    "ffn_down_shexp.weight": (SHARED_HIDDEN, WIDTH),
}
_PREDICT = {
    "nextn.eh_proj.weight": (2 * WIDTH, WIDTH),
    "nextn.enorm.weight": (WIDTH,),
    "nextn.hnorm.weight": (WIDTH,),
}
_PROBABILITIES = {"exp_probs_b.bias": (EXPERTS,)}


def _attention(head: int = HEAD, q_factor: int = 1) -> Shapes:
    return {
        "attn_q.weight": (WIDTH, q_factor * HEADS * head),
        "attn_k.weight": (WIDTH, KV_HEADS * head),
        "attn_v.weight": (WIDTH, KV_HEADS * head),
        "attn_output.weight": (HEADS * head, WIDTH),
    }


def _qk_norms(head: int = HEAD) -> Shapes:
    return {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}


def _biases(head: int = HEAD) -> Shapes:
    widths = {"attn_q": HEADS * head, "attn_k": KV_HEADS * head, "attn_v": KV_HEADS * head}
    return {f"{name}.bias": (width,) for name, width in widths.items()}


def _dense(hidden: int = HIDDEN) -> Shapes:
    return {
        "ffn_gate.weight": (WIDTH, hidden),
        "ffn_up.weight": (WIDTH, hidden),
        "ffn_down.weight": (hidden, WIDTH),
    }


def _experts(hidden: int = EXPERT_HIDDEN) -> Shapes:
    return {
        "ffn_gate_inp.weight": (WIDTH, EXPERTS),
        "ffn_gate_exps.weight": (WIDTH, hidden, EXPERTS),
        "ffn_up_exps.weight": (WIDTH, hidden, EXPERTS),
        "ffn_down_exps.weight": (hidden, WIDTH, EXPERTS),
    }


def _fused_experts() -> Shapes:
    return {
        "ffn_gate_inp.weight": (WIDTH, EXPERTS),
        "ffn_gate_up_exps.weight": (WIDTH, 2 * EXPERT_HIDDEN, EXPERTS),
        "ffn_down_exps.weight": (EXPERT_HIDDEN, WIDTH, EXPERTS),
    }


def _delta(mixer: Shapes) -> Shapes:
    keys, values = STATE * GROUPS, STATE * STEPS
    return {
        "attn_qkv.weight": (WIDTH, 2 * keys + values),
        "attn_gate.weight": (WIDTH, values),
        "ssm_conv1d.weight": (KERNEL, 2 * keys + values),
        "ssm_dt.bias": (STEPS,),
        "ssm_a": (STEPS,),
        **mixer,
        "ssm_norm.weight": (STATE,),
        "ssm_out.weight": (values, WIDTH),
    }


def _latent(*, legacy: bool = False, plain_q: bool = False) -> Shapes:
    inner = MLA_KEY - ROTARY
    low_rank: Shapes = {
        "attn_q_a.weight": (WIDTH, Q_RANK),
        "attn_q_a_norm.weight": (Q_RANK,),
        "attn_q_b.weight": (Q_RANK, HEADS * MLA_KEY),
    }
    split: Shapes = {
        "attn_k_b.weight": (inner, KV_RANK, HEADS),
        "attn_v_b.weight": (KV_RANK, MLA_VALUE, HEADS),
    }
    return {
        **({"attn_q.weight": (WIDTH, HEADS * MLA_KEY)} if plain_q else low_rank),
        "attn_kv_a_mqa.weight": (WIDTH, KV_RANK + ROTARY),
        "attn_kv_a_norm.weight": (KV_RANK,),
        **({"attn_kv_b.weight": (KV_RANK, HEADS * (inner + MLA_VALUE))} if legacy else split),
        "attn_output.weight": (HEADS * MLA_VALUE, WIDTH),
    }


def _kimi_delta() -> Shapes:
    inner = HEADS * STATE
    return {
        **{f"attn_{x}.weight": (WIDTH, inner) for x in "qkv"},
        **{f"ssm_conv1d_{x}.weight": (KERNEL, 1, inner) for x in "qkv"},
        "ssm_f_a.weight": (WIDTH, STATE),
        "ssm_f_b.weight": (STATE, inner),
        "ssm_beta.weight": (WIDTH, HEADS),
        "ssm_a": (1, HEADS),
        "ssm_dt.bias": (inner,),
        "ssm_g_a.weight": (WIDTH, STATE),
        "ssm_g_b.weight": (STATE, inner),
        "ssm_norm.weight": (STATE,),
        "attn_output.weight": (inner, WIDTH),
    }


def _gpt_oss_biases() -> Shapes:
    return {
        **_biases(),
        "attn_output.bias": (WIDTH,),
        "attn_sinks.weight": (HEADS,),
        "ffn_gate_inp.bias": (EXPERTS,),
        "ffn_gate_exps.bias": (EXPERT_HIDDEN, EXPERTS),
        "ffn_up_exps.bias": (EXPERT_HIDDEN, EXPERTS),
        "ffn_down_exps.bias": (WIDTH, EXPERTS),
    }


def _model(
    architecture: str,
    blocks: Sequence[Shapes],
    keys: Mapping[str, Value] | None = None,
    *,
    tied: bool = False,
) -> Tiny:
    tensors: Shapes = {"token_embd.weight": (WIDTH, VOCABULARY), "output_norm.weight": (WIDTH,)}
    if not tied:
        tensors["output.weight"] = (WIDTH, VOCABULARY)
    for i, block in enumerate(blocks):
        tensors |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    common: dict[str, Value] = {
        "block_count": len(blocks),
        "context_length": 4096,
        "embedding_length": WIDTH,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": VOCABULARY,
    }
    return Tiny(architecture, common | dict(keys or {}), tensors)


_LLAMA_BLOCK = {**_NORMS, **_attention(), **_dense()}
_QWEN3_BLOCK = {**_NORMS, **_attention(WIDE_HEAD), **_qk_norms(WIDE_HEAD)}
_WIDE = {"attention.key_length": WIDE_HEAD, "attention.value_length": WIDE_HEAD}
_SHARED_GATED = {**_SHARED, "ffn_gate_inp_shexp.weight": (WIDTH,)}
_HYBRID_NORMS = {"attn_norm.weight": (WIDTH,), **_POST}
_HYBRID_FULL = {**_HYBRID_NORMS, **_attention(WIDE_HEAD, 2), **_qk_norms(WIDE_HEAD)}
_NEXT_DELTA = {**_HYBRID_NORMS, **_delta({"ssm_ba.weight": (WIDTH, 2 * STEPS)})}
_Q35_DELTA = {
    **_HYBRID_NORMS,
    **_delta({"ssm_beta.weight": (WIDTH, STEPS), "ssm_alpha.weight": (WIDTH, STEPS)}),
}
_NEXT_MOE = {**_experts(), **_SHARED_GATED}
_Q35_MOE = {**_fused_experts(), **_SHARED_GATED}
_SECTIONS = {"rope.dimension_sections": [2, 1, 1, 0]}
_GLM_MOE = {"attn_norm.weight": (WIDTH,), **_POST, **_attention(), **_biases()}
_DEEPSEEK_KEYS = {
    **_MOE,
    "expert_shared_count": 1,
    "leading_dense_block_count": 1,
    "attention.q_lora_rank": Q_RANK,
}
_ONE_SHARED = {
    name: tuple(EXPERT_HIDDEN if size == SHARED_HIDDEN else size for size in shape)
    for name, shape in _SHARED.items()
}
_DEEPSEEK_EXPERTS = {**_experts(), **_PROBABILITIES, **_ONE_SHARED}
_GEMMA_BLOCK = {**_QWEN3_BLOCK, **_POST, **_dense(), "post_ffw_norm.weight": (WIDTH,)}

FAMILIES: dict[str, Tiny] = {
    "llama": _model("llama", [_LLAMA_BLOCK] * 2),
    "qwen2": _model("qwen2", [{**_LLAMA_BLOCK, **_biases()}] * 2, tied=True),
    "qwen3": _model("qwen3", [{**_QWEN3_BLOCK, **_dense()}] * 2, _WIDE),
    "qwen3moe": _model("qwen3moe", [{**_QWEN3_BLOCK, **_experts()}] * 2, {**_WIDE, **_MOE}),
    "qwen3next": _model(
        "qwen3next",
        [{**_NEXT_DELTA, **_NEXT_MOE}] * 3 + [{**_HYBRID_FULL, **_NEXT_MOE}],
        {**_DELTA, **_MOE, "expert_shared_feed_forward_length": SHARED_HIDDEN},
    ),
    "qwen35": _model(
        "qwen35",
        [
            *[{**_Q35_DELTA, **_dense()}] * 3,
            {**_HYBRID_FULL, **_dense()},
            {**_HYBRID_FULL, **_dense(), **_PREDICT},
        ],
        {**_DELTA, **_SECTIONS, "nextn_predict_layers": 1},
    ),
    "qwen35moe": _model(
        "qwen35moe",
        [{**_Q35_DELTA, **_Q35_MOE}, {**_HYBRID_FULL, **_Q35_MOE}] * 2,
        {
            **_DELTA,
            **_SECTIONS,
            **_MOE,
            "expert_shared_feed_forward_length": SHARED_HIDDEN,
            "full_attention_interval": 2,
        },
    ),
    "glm4": _model(
        "glm4",
        [
            {
                **_NORMS,
                **_POST,
                **_attention(),
                "post_ffw_norm.weight": (WIDTH,),
                "ffn_up.weight": (WIDTH, 2 * HIDDEN),
                "ffn_down.weight": (HIDDEN, WIDTH),
            }
        ]
        * 2,
        {"rope.dimension_count": ROTARY},
    ),
    "glm4moe": _model(
        "glm4moe",
        [
            {**_GLM_MOE, **_dense()},
            {**_GLM_MOE, **_DEEPSEEK_EXPERTS},
            {**_GLM_MOE, **_DEEPSEEK_EXPERTS, **_PREDICT},
        ],
        {**_MOE, "expert_shared_count": 1, "leading_dense_block_count": 1, "nextn_predict_layers": 1},
    ),
    "minimax-m2": _model(
        "minimax-m2",
        [
            {
                **_NORMS,
                **_attention(),
                "attn_q_norm.weight": (HEADS * HEAD,),
                "attn_k_norm.weight": (KV_HEADS * HEAD,),
                **_experts(),
                **_PROBABILITIES,
            }
        ]
        * 2,
        {
            **_MOE,
            "feed_forward_length": EXPERT_HIDDEN,
            "rope.dimension_count": ROTARY,
            "expert_gating_func": 2,
        },
    ),
    "hunyuan-dense": _model("hunyuan-dense", [{**_LLAMA_BLOCK, **_qk_norms()}] * 2, tied=True),
    "hunyuan-moe": _model(
        "hunyuan-moe",
        [{**_NORMS, **_attention(), **_qk_norms(), **_experts(), **_SHARED}] * 2,
        {
            **_MOE,
            "feed_forward_length": EXPERT_HIDDEN,
            "expert_shared_feed_forward_length": SHARED_HIDDEN,
        },
    ),
    "ernie4_5": _model("ernie4_5", [_LLAMA_BLOCK] * 2, tied=True),
    "ernie4_5-moe": _model(
        "ernie4_5-moe",
        [_LLAMA_BLOCK, {**_NORMS, **_attention(), **_experts(), **_PROBABILITIES, **_SHARED}],
        {
            **_MOE,
            "leading_dense_block_count": 1,
            "interleave_moe_layer_step": 1,
            "expert_shared_feed_forward_length": SHARED_HIDDEN,
        },
    ),
    "deepseek2": _model(
        "deepseek2",
        [{**_NORMS, **_latent(), **_dense()}, {**_NORMS, **_latent(), **_DEEPSEEK_EXPERTS}],
        {**_DEEPSEEK_KEYS, **_LATENT},
    ),
    "deepseek2-legacy": _model(
        "deepseek2",
        [
            {**_NORMS, **_latent(legacy=True), **_dense()},
            {**_NORMS, **_latent(legacy=True), **_DEEPSEEK_EXPERTS},
        ],
        {
            **_DEEPSEEK_KEYS,
            "attention.head_count_kv": HEADS,
            "attention.kv_lora_rank": KV_RANK,
            "attention.key_length": MLA_KEY,
            "attention.value_length": MLA_VALUE,
            "rope.dimension_count": ROTARY,
        },
    ),
    "gpt-oss": _model(
        "gpt-oss",
        [{"attn_norm.weight": (WIDTH,), **_POST, **_attention(), **_experts(), **_gpt_oss_biases()}] * 4,
        {
            **_MOE,
            "attention.sliding_window": 128,
            "attention.key_length": HEAD,
            "attention.value_length": HEAD,
        },
    ),
    "gemma3": _model("gemma3", [_GEMMA_BLOCK] * 7, {**_WIDE, "attention.sliding_window": 512}, tied=True),
    "kimi-linear": _model(
        "kimi-linear",
        [
            {**_NORMS, **_kimi_delta(), **_dense()},
            {**_NORMS, **_kimi_delta(), **_DEEPSEEK_EXPERTS},
            {**_NORMS, **_kimi_delta(), **_DEEPSEEK_EXPERTS},
            {**_NORMS, **_latent(plain_q=True), **_DEEPSEEK_EXPERTS},
        ],
        {
            **_MOE,
            **_LATENT,
            "attention.head_count_kv": [0, 0, 0, 1],
            "kda.head_dim": STATE,
            "ssm.conv_kernel": KERNEL,
            "expert_shared_count": 1,
            "leading_dense_block_count": 1,
            "expert_gating_func": 2,
        },
    ),
}


def changed(family: str, tensors: Shapes | None = None, **keys: Value | None) -> Tiny:
    """A family's model with other keys (`attention__head_count=3`; None takes one away) and tensors."""
    model = FAMILIES[family]
    renamed = {key.replace("__", "."): value for key, value in keys.items()}
    kept = {key: value for key, value in {**model.keys, **renamed}.items() if value is not None}
    return Tiny(model.architecture, kept, {**model.tensors, **(tensors or {})})
