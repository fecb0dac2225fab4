"""Where the parameters of transformers' classes lie in GGUF files: one table for all families.

llama.cpp's converter renames every parameter, and moves the rows of some: it pairs the rows that llama's classes
rotate together, splits fused matrices, stacks experts, and transposes half of MLA's decompression. A `Place` says
which rows of a parameter a tensor holds, in the tensor's order, so that one table serves both ways: to fill a
parameter from tensors, and to write down per tensor what was measured of a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from penjing.errors import UsageError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WITHOUT = "`penjing build` without `--sensitivity` uses the prior that ships"
_ALL = slice(None)


class Place(Struct, frozen=True):
    """A tensor of the GGUF file that holds rows of a parameter.

    `rows` are output rows of the parameter, in the order of the tensor's rows; where it is `transposed`, they are
    the tensor's columns, and its rows are the parameter's inputs. `expert` is the number within a stack, of an
    expert or of a head; None for a plain matrix.
    """

    tensor: str
    expert: int | None = None
    rows: np.ndarray | slice = _ALL
    transposed: bool = False

    @property
    def whole(self) -> bool:
        """The tensor is the parameter, row by row."""
        return isinstance(self.rows, slice) and self.rows == _ALL and not self.transposed


class Family(Struct, frozen=True):
    """What sets a family apart.

    Units:
        architecture: its name in GGUF. stems: what its classes mean by a name that others use otherwise.
        paired: the file has the rows of q and k that are rotated together side by side.
        interleaved: rows of gate and up take turns in the experts, whose parameters are (columns, rows).
        expert_size: the field of the configuration with the width of an expert.
    """

    architecture: str
    stems: Mapping[str, str] = {}
    paired: bool = False
    interleaved: bool = False
    expert_size: str = "moe_intermediate_size"


_POST = {"post_attention_layernorm": "post_attention_norm"}
_GLM4 = {
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "mlp.gate_up_proj": "ffn_up",
}
FAMILIES = {
    "llama": Family("llama", paired=True),
    "mistral": Family("llama", paired=True),
    "mixtral": Family("llama", paired=True, expert_size="intermediate_size"),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "qwen3_moe": Family("qwen3moe"),
    "glm4": Family("glm4", _GLM4),
    "glm4_moe": Family("glm4moe", _POST),
    "hunyuan_v1_dense": Family("hunyuan-dense"),
    "hunyuan_v1_moe": Family("hunyuan-moe", expert_size="intermediate_size"),
    "ernie4_5": Family("ernie4_5"),
    "ernie4_5_moe": Family("ernie4_5-moe"),
    "minimax_m2": Family("minimax-m2", expert_size="intermediate_size"),
    "gpt_oss": Family("gpt-oss", _POST, interleaved=True, expert_size="intermediate_size"),
    "deepseek_v2": Family("deepseek2"),
    "deepseek_v3": Family("deepseek2"),
}

_STEMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.query_layernorm": "attn_q_norm",
    "self_attn.key_layernorm": "attn_k_norm",
    "self_attn.sinks": "attn_sinks",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_up_proj": "ffn_gate_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared.gate_proj": "ffn_gate_shexp",
    "mlp.shared.up_proj": "ffn_up_shexp",
    "mlp.shared.down_proj": "ffn_down_shexp",
    "mlp.e_score_correction": "exp_probs_b",
}
_SYNONYMS = (
    (re.compile(r"^mlp\.shared_(?:experts|mlp)\."), "mlp.shared."),
    (re.compile(r"^mlp\.gate(?:\.wg)?$"), "mlp.router"),
    (re.compile(r"^mlp\.gate\.(?:moe_statics\.)?e_score"), "mlp.e_score"),
)
_ENDS = {EMBEDDING: "token_embd.weight", HEAD: "output.weight", "model.norm.weight": "output_norm.weight"}
_NEVER_QUANTIZED = re.compile(r".*(?:_norm|\.ffn_gate_inp|\.attn_sinks)\.weight|.*\.bias")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+?)(\.weight|[._]bias)?")


def unknown(family: str) -> UsageError:
    """The refusal of a family that nobody taught the calibrator."""
    known = ", ".join(sorted({f.architecture for f in FAMILIES.values()}))
    return UsageError(f"the calibrator does not know the family `{family}`; it knows {known}", hint=WITHOUT)


class Layout:
    """The places of one model's parameters: by its configuration, and by which tensors its file has."""

    def __init__(self, config: Any, exists: Callable[[str], bool]) -> None:
        if config.model_type not in FAMILIES:
            raise unknown(config.model_type)
        self.family = FAMILIES[config.model_type]
        self._config, self._exists = config, exists

    def places(self, name: str, expert: int | None = None) -> list[Place]:
        """Where the weights of a parameter (of one of its experts) lie; none for what is never quantized."""
        if name == HEAD and not self._exists(_ENDS[HEAD]):
            name = EMBEDDING
        return [p for p in self.sources(name, expert) if not _NEVER_QUANTIZED.fullmatch(p.tensor)]

    def sources(self, name: str, expert: int | None = None) -> list[Place]:
        """Every tensor that a parameter is made of; none for a parameter that GGUF has no name for."""
        if name in _ENDS:
            return [Place(_ENDS[name])]
        match = _LAYER.fullmatch(name)
        stem = self._stem(match[2]) if match else None
        if match is None or stem is None:
            return []
        ending = "bias" if (match[3] or "").endswith("bias") else "weight"
        return self._parts(f"blk.{match[1]}.", stem, f".{ending}", expert)

    def _stem(self, body: str) -> str | None:
        for pattern, plain in _SYNONYMS:
            body = pattern.sub(plain, body)
        return self.family.stems.get(body) or _STEMS.get(body)

    def _parts(self, block: str, stem: str, ending: str, expert: int | None) -> list[Place]:
        whole = f"{block}{stem}{ending}"
        if stem == "ffn_gate_up_exps" and not self._exists(whole):
            gate, up = self._halves()
            return [
                Place(f"{block}ffn_gate_exps{ending}", expert, gate),
                Place(f"{block}ffn_up_exps{ending}", expert, up),
            ]
        if stem == "attn_kv_b" and not self._exists(whole):
            return self._decompression(block)
        if stem in ("attn_q", "attn_k") and self.family.paired:
            return [Place(whole, expert, self._paired(stem))]
        return [Place(whole, expert)]

    def _halves(self) -> tuple[slice, slice]:
        if self.family.interleaved:
            return slice(0, None, 2), slice(1, None, 2)
        size = getattr(self._config, self.family.expert_size)
        return slice(size), slice(size, None)

    def _paired(self, stem: str) -> np.ndarray:
        """Rotated together are row i of a head's first half and of its second; the file has them side by side."""
        config = self._config
        heads = config.num_attention_heads if stem == "attn_q" else config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return np.arange(heads * size).reshape(heads, 2, size // 2).swapaxes(1, 2).ravel()

    def _decompression(self, block: str) -> list[Place]:
        """MLA's keys and values from latents: for each head its rows of keys, transposed, and its rows of values."""
        keys, values = self._config.qk_nope_head_dim, self._config.v_head_dim
        found = []
        for head in range(self._config.num_attention_heads):
            start = head * (keys + values)
            found += [
                Place(f"{block}attn_k_b.weight", head, slice(start, start + keys), transposed=True),
                Place(f"{block}attn_v_b.weight", head, slice(start + keys, start + keys + values)),
            ]
        return found
