"""Tiny models for the calibrator: GGUF files with sensible random weights, and the same models as folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gguf_files
from gguf_families import (
    EXPERT_HIDDEN,
    EXPERTS,
    FAMILIES,
    HEAD,
    HEADS,
    KV_HEADS,
    MLA_KEY,
    USED,
    WIDTH,
    changed,
)
from gguf_files import Shapes, Tiny, Value
from penjing.calibrate.config import config_of
from penjing.calibrate.gguf_weights import GgufWeights
from penjing.gguf import read_model
from penjing.gguf.parts import read_header


def _blocks(shapes: Shapes, layers: int = 2, first: int = 0) -> Shapes:
    return {f"blk.{i}.{name}": shape for i in range(first, layers) for name, shape in shapes.items()}


def _without(family: str, pattern: str, tensors: Shapes, **keys: Value | None) -> Tiny:
    """A family's model, with `tensors` in place of those that match."""
    model = changed(family, **keys)
    kept = {name: shape for name, shape in model.tensors.items() if not re.search(pattern, name)}
    return model._replace(tensors=kept | tensors)


_SHARED = {
    "ffn_gate_shexp.weight": (WIDTH, EXPERT_HIDDEN),
    "ffn_up_shexp.weight": (WIDTH, EXPERT_HIDDEN),
    "ffn_down_shexp.weight": (EXPERT_HIDDEN, WIDTH),
}
_BIASES = {
    "attn_q.bias": (HEADS * HEAD,),
    "attn_k.bias": (KV_HEADS * HEAD,),
    "attn_v.bias": (KV_HEADS * HEAD,),
}
_EXPERTS = {
    name: shape for name, shape in FAMILIES["qwen3moe"].tensors.items() if re.search("exps|gate_inp", name)
}
_YARN: dict[str, Value] = {
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 32.0,
    "rope__scaling__original_context_length": 128,
}
# transformers' classes of DeepSeek normalise latents with this epsilon, whatever the configuration says
_DEEPSEEK: dict[str, Value] = {"attention__layer_norm_rms_epsilon": 1e-6}
_V3: dict[str, Value] = {**_DEEPSEEK, "expert_gating_func": 2}

# Every family that the calibrator knows. Where the tiny file of `gguf_families` is one that no class of
# transformers can compute (`REFUSED` says why), it is changed to what real files of the family hold.
MODELS: dict[str, Tiny] = {
    "llama": FAMILIES["llama"],
    "llama-biases": changed("llama", _blocks({**_BIASES, "attn_output.bias": (WIDTH,), "ffn_up.bias": (96,)})),
    "llama-linear": changed("llama", rope__scaling__type="linear", rope__scaling__factor=4.0),
    "llama-yarn": changed("llama", **_YARN),
    "llama-factors": changed("llama", {"rope_freqs.weight": (HEAD // 2,)}),
    "llama-experts": _without(
        "llama", "ffn_(gate|up|down)", _EXPERTS,
        feed_forward_length=EXPERT_HIDDEN, expert_count=EXPERTS, expert_used_count=USED,
    ),
    "qwen2": FAMILIES["qwen2"],
    "qwen3": FAMILIES["qwen3"],
    "qwen3moe": FAMILIES["qwen3moe"],
    "glm4": FAMILIES["glm4"],
    "glm4-biases": changed("glm4", _blocks(_BIASES)),
    "glm4moe": changed("glm4moe", expert_weights_norm=True, expert_weights_scale=1.5),
    "glm4moe-norms": changed(
        "glm4moe", _blocks({"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}, 3), rope__dimension_count=8
    ),
    "hunyuan-dense": FAMILIES["hunyuan-dense"],
    "hunyuan-moe": changed("hunyuan-moe", _blocks(_SHARED), expert_shared_feed_forward_length=EXPERT_HIDDEN),
    "ernie4_5": FAMILIES["ernie4_5"],
    "ernie4_5-biases": changed("ernie4_5", _blocks(_BIASES)),
    "ernie4_5-moe": changed(
        "ernie4_5-moe", _blocks(_SHARED, first=1), expert_shared_feed_forward_length=EXPERT_HIDDEN
    ),
    "minimax-m2": FAMILIES["minimax-m2"],
    "gpt-oss": changed("gpt-oss", attention__sliding_window=8, **_YARN),
    "deepseek2": changed("deepseek2", expert_weights_norm=True, expert_weights_scale=2.5, **_V3),
    "deepseek2-groups": changed("deepseek2", expert_group_count=4, expert_group_used_count=2, **_V3),
    "deepseek2-legacy": changed("deepseek2-legacy", **_V3),
    "deepseek2-fused": _without(
        "deepseek2", "ffn_(gate|up)_exps", {"blk.1.ffn_gate_up_exps.weight": (WIDTH, 2 * EXPERT_HIDDEN, EXPERTS)}, **_V3
    ),
    "deepseek2-yarn": changed(
        "deepseek2", rope__scaling__yarn_log_multiplier=0.0707, **_V3, **_YARN
    ),
    "deepseek2-yarn-old": changed("deepseek2", **_V3, **_YARN),
    "deepseek2-v2": _without(
        "deepseek2", "attn_q_|exp_probs", _blocks({"attn_q.weight": (WIDTH, HEADS * MLA_KEY)}),
        attention__q_lora_rank=0, expert_weights_scale=1.2, **_DEEPSEEK,
    ),
}  # fmt: skip

# DeepSeek V2 ranks groups of experts by the best of each, the engine by the two best as V3 does: of such a file
# the tokens agree that come to the same groups.
V2_GROUPS = MODELS["deepseek2-v2"]._replace(
    keys={**MODELS["deepseek2-v2"].keys, "expert_group_count": 4, "expert_group_used_count": 2}
)

# Files that the engine computes and no class of transformers does.
REFUSED = {
    "hunyuan-moe": "its shared expert is not as wide",
    "ernie4_5-moe": "its shared expert is 24 wide, which is no multiple of 32",
    "deepseek2": "its experts are chosen by a softmax with a bias",
    "deepseek2-legacy": "its experts are chosen by a softmax with a bias",
}


def write(path: Path, model: Tiny) -> Path:
    """`model` as a GGUF file whose activations stay near 1 in every layer."""
    gguf_files.write(path, model, extra={"tokenizer.ggml.model": "no_vocab"})
    rng = np.random.default_rng(5)
    for tensor in read_header(path).tensors:
        data = np.memmap(path, np.float32, "r+", tensor.offset, tensor.shape[::-1])
        data[:] = _weights(tensor.name, rng.standard_normal(tensor.shape[::-1], dtype=np.float32))
        data.flush()
    return path


def _weights(name: str, noise: np.ndarray) -> np.ndarray:
    if "norm" in name:
        return 1 + noise / 10
    if name == "rope_freqs.weight":
        return 1 + 4 * np.abs(noise)
    if name == "token_embd.weight":
        return noise
    return noise / (10 if "bias" in name or noise.ndim == 1 else np.sqrt(noise.shape[-1]))


def opened(path: Path) -> tuple[Any, GgufWeights]:
    """The configuration and the weights of a GGUF file."""
    header = read_header(path)
    config = config_of(header, read_model(path))
    return config, GgufWeights(header, config)


def ordinary(config: Any, weights: GgufWeights) -> Any:
    """The same model as transformers holds it: whole, in memory."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.state_dict().items():
            if weights.has(name) or not name.startswith("lm_head"):
                parameter.copy_(weights.load(name).reshape(parameter.shape))
    model.tie_weights()
    return model
