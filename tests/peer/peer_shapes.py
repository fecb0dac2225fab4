"""Models for the quantizer's rules alone: real shapes without weights, in files that take no room on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import gguf
import numpy as np

from gguf_families import EXPERTS, FAMILIES, HEADS, KV_HEADS, STEPS, VOCABULARY, changed
from gguf_files import Shapes, Tiny, Value, add_key

_COUNTS = (HEADS, STEPS, VOCABULARY)  # sizes that are no widths
_WIDTHS = (
    "embedding_length", "feed_forward_length", "expert_feed_forward_length", "expert_shared_feed_forward_length",
    "attention.key_length", "attention.value_length", "attention.key_length_mla", "attention.value_length_mla",
    "attention.kv_lora_rank", "attention.q_lora_rank", "rope.dimension_count",
    "ssm.inner_size", "ssm.state_size", "kda.head_dim",
)  # fmt: skip


def write_hollow(path: Path, model: Tiny) -> Path:
    """`model` as a GGUF file in F32; all weights are one hole in the file, and read as 0."""
    writer = gguf.GGUFWriter(path, model.architecture)
    for key, value in model.keys.items():
        add_key(writer, f"{model.architecture}.{key}", value)
    total = 0
    for name, shape in model.tensors.items():
        n_bytes = 4 * int(np.prod(shape))
        writer.add_tensor_info(name, shape[::-1], np.dtype(np.float32), n_bytes)
        total += -(-n_bytes // writer.data_alignment) * writer.data_alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        size = -(-path.stat().st_size // writer.data_alignment) * writer.data_alignment
        file.truncate(size + total)
    return path


def widened(model: Tiny, factor: int = 16) -> Tiny:
    """The same with rows `factor` times as long, so that blocks of 256 fit in most, and twice as many experts."""
    factors = {**dict.fromkeys(_WIDTHS, factor), "expert_count": 2}
    keys = {key: value * factors[key] if key in factors else value for key, value in model.keys.items()}
    tensors = {
        name: tuple(2 * EXPERTS if n == EXPERTS else n if n in _COUNTS else n * factor for n in shape)
        for name, shape in model.tensors.items()
    }
    return Tiny(model.architecture, keys, tensors)


def _transformer(
    architecture: str,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    experts: int = 0,
    tied: bool = False,
    fused: bool = False,
    without: range = range(0),
) -> Tiny:
    """A plain one, 256 wide; `fused` has one matrix for queries, keys and values; some layers are `without` FFN."""
    head = 256 // heads
    attention: Shapes = {
        "attn_norm.weight": (256,),
        "attn_q.weight": (256, 256),
        "attn_k.weight": (256, head * kv_heads),
        "attn_v.weight": (256, head * kv_heads),
        "attn_output.weight": (256, 256),
    }
    if fused:
        attention = {k: v for k, v in attention.items() if k[5] not in "qkv"}
        attention["attn_qkv.weight"] = (256, 256 + 2 * head * kv_heads)
    block = attention | {"ffn_norm.weight": (256,)} | dict(_feed_forward(experts))
    tensors: Shapes = {"token_embd.weight": (256, 64), "output_norm.weight": (256,)}
    tensors |= {} if tied else {"output.weight": (256, 64)}
    for i in range(layers):
        tensors |= {f"blk.{i}.{k}": v for k, v in (attention if i in without else block).items()}
    return Tiny(architecture, _keys(layers, heads, kv_heads, experts), tensors)


def _feed_forward(experts: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if experts:
        yield "ffn_gate_inp.weight", (256, experts)
    for name in ("gate", "up", "down"):
        shape = (256, 256, experts) if experts else (256, 256)
        yield f"ffn_{name}_exps.weight" if experts else f"ffn_{name}.weight", shape


def _short_convolutions() -> Tiny:
    """A hybrid whose first layers keep no keys, and say so: LFM2."""
    model = _transformer("lfm2", 12, 8, 2)
    recurrent = ("blk.0.", "blk.1.")
    tensors = {
        name: shape
        for name, shape in model.tensors.items()
        if not (name.startswith(recurrent) and name[6:].startswith(("attn_q", "attn_k", "attn_v", "attn_o")))
    }
    for block in recurrent:
        tensors[f"{block}shortconv.in_proj.weight"] = (256, 768)
        tensors[f"{block}shortconv.out_proj.weight"] = (256, 256)
        tensors[f"{block}shortconv.conv.weight"] = (3, 256)
    keys = {**model.keys, "attention.head_count_kv": [0] * 2 + [2] * 10, "shortconv.l_cache": 3}
    return Tiny("lfm2", keys, tensors)


def _keys(layers: int, heads: int, kv_heads: int, experts: int) -> dict[str, Value]:
    keys: dict[str, Value] = {
        "block_count": layers,
        "context_length": 4096,
        "embedding_length": 256,
        "feed_forward_length": 256,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "vocab_size": 64,
    }
    if experts:
        keys |= {"expert_count": experts, "expert_used_count": 2, "expert_feed_forward_length": 256}
    return keys


_OWN = {
    "keys of their own, tied": _transformer("llama", 16, 4, 4, tied=True),
    "pairs share keys": _transformer("llama", 24, 4, 2),
    "four share keys": _transformer("llama", 30, 8, 2),
    "few layers": _transformer("llama", 5, 8, 1, tied=True),
    "Mixtral": _transformer("llama", 32, 8, 2, experts=8),
    "sixteen experts": _transformer("qwen3moe", 17, 8, 1, experts=16),
    "eight experts": _transformer("qwen3moe", 12, 4, 4, experts=8, tied=True),
    "Llama 65B": _transformer("llama", 80, 8, 8),
    "Llama 70B": _transformer("llama", 80, 8, 1),
    "Qwen 72B": _transformer("qwen2", 80, 8, 8),
    "OLMo of 80 layers": _transformer("olmo", 80, 8, 8),
    "Deci of 80 layers": _transformer("deci", 80, 8, 2),
    "Jais 2 of 68 layers": _transformer("jais2", 68, 8, 8),
    "Phi-3": _transformer("phi3", 32, 8, 2, fused=True),
    "Phi-3 without groups": _transformer("phi3", 20, 8, 8, fused=True),
    "LFM2": _short_convolutions(),
    "layers without FFN": _transformer("deci", 32, 8, 2, without=range(3, 9)),
}
_ONE_KV_HEAD = {
    name: (shape[0], shape[1] // KV_HEADS)
    for name, shape in FAMILIES["qwen35"].tensors.items()
    if name.endswith(("attn_k.weight", "attn_v.weight"))
}
_WHOLE_LATENTS = {k: v for k, v in FAMILIES["deepseek2-legacy"].tensors.items() if "attn_kv_b" in k}
_OWN["four share keys of a hybrid"] = changed("qwen35", _ONE_KV_HEAD, attention__head_count_kv=1)
_OWN["DeepSeek with whole latents beside its parts"] = widened(changed("deepseek2", _WHOLE_LATENTS))
MODELS: dict[str, Tiny] = dict(
    chain(
        _OWN.items(),
        FAMILIES.items(),
        ((f"{name}, wide", widened(model)) for name, model in FAMILIES.items()),
    )
)
