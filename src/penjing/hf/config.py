"""`config.json`: the dimensions of a model in the words of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from penjing.catalogue.attention import Count, Width
from penjing.catalogue.files import read_bounded
from penjing.catalogue.shape import LayerCount
from penjing.errors import BadFile
from penjing.hf.families import ASSUMED, FAMILIES

_LIMIT_BYTES = 4 * 2**20
_COMMON = (
    "model_type", "hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings",
    "num_attention_heads", "num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok",
)  # fmt: skip

PerLayer = Count | list[Count]  # some families write a number once for each layer


class Config(Struct, frozen=True):
    """The fields of `config.json` that shapes depend on, under the names its families give them."""

    model_type: Annotated[str, Meta(pattern=r"^[\w.-]{1,64}$")]
    hidden_size: Width
    num_hidden_layers: LayerCount
    max_position_embeddings: Annotated[int, Meta(ge=1, le=2**31)]
    vocab_size: Width | None = None
    num_attention_heads: Width | None = None
    num_key_value_heads: Width | None = None
    head_dim: Width | None = None
    intermediate_size: Width | None = None
    tie_word_embeddings: bool | None = None
    torch_dtype: str | None = None
    dtype: str | None = None
    quantization_config: dict[str, Any] | None = None
    # biases and norms
    attention_bias: bool | None = None
    use_bias: bool | None = None
    use_qk_norm: bool | None = None
    # experts
    num_experts: Count | None = None
    num_local_experts: Count | None = None
    n_routed_experts: Count | None = None
    moe_num_experts: Count | None = None
    num_experts_per_tok: Count | None = None
    moe_topk: PerLayer | None = None
    moe_k: Count | None = None
    moe_intermediate_size: PerLayer | None = None
    n_shared_experts: Count | None = None
    num_shared_expert: PerLayer | None = None
    moe_num_shared_experts: Count | None = None
    shared_expert_intermediate_size: Count | None = None
    first_k_dense_replace: Count | None = None
    moe_layer_start_index: Count | None = None
    moe_layer_end_index: int | None = None
    moe_layer_interval: Count | None = None
    moe_layer_freq: PerLayer | None = None
    decoder_sparse_step: Count | None = None
    mlp_only_layers: list[Count] | None = None
    # latent attention
    q_lora_rank: Width | None = None
    kv_lora_rank: Width | None = None
    qk_rope_head_dim: Width | None = None
    qk_nope_head_dim: Width | None = None
    v_head_dim: Width | None = None
    # gated delta nets
    linear_num_key_heads: Width | None = None
    linear_num_value_heads: Width | None = None
    linear_key_head_dim: Width | None = None
    linear_value_head_dim: Width | None = None
    linear_conv_kernel_dim: Width | None = None
    # which layer is of which kind
    layer_types: list[str] | None = None
    full_attention_interval: Width | None = None
    sliding_window: Width | None = None
    sliding_window_pattern: Width | None = None
    use_sliding_window: bool | None = None
    max_window_layers: Count | None = None

    @property
    def experts(self) -> int:
        """Routed experts in a layer; 0 where there is only one network."""
        names = self.num_experts, self.num_local_experts, self.n_routed_experts, self.moe_num_experts
        count = next((number for number in names if number), 0)
        return count if count > 1 else 0

    @property
    def experts_used(self) -> int:
        """Routed experts that one token uses, on average over the layers."""
        used = self.num_experts_per_tok or most(self.moe_topk) or self.moe_k or 0
        return min(used, self.experts)


def read_config(folder: Path) -> Config:
    """The `config.json` of a folder, or of the part for text where there are several.

    Raises:
        BadFile: no such file, no JSON, or a field is missing or out of range: which, and what is expected.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise BadFile(
            f"`{folder}` has no config.json",
            hint="a Hugging Face folder holds config.json and *.safetensors; for a GGUF, name the file",
        )
    try:
        # the standard reader: real files hold the `Infinity` that Python writes
        whole = msgspec.convert(json.loads(read_bounded(path, _LIMIT_BYTES)), dict[str, Any])
        return msgspec.convert(_fields(whole), Config)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"`{path}` is not the configuration of a language model: {error}") from error


def _fields(whole: dict[str, Any]) -> dict[str, Any]:
    """The fields that matter: of the part for text, or where it is silent, of the whole."""
    text = whole.get("text_config")
    fields = {**whole, **text} if isinstance(text, dict) else whole
    family = str(fields.get("model_type"))
    if family in FAMILIES:
        return ASSUMED.get(family, {}) | fields
    # an unknown family may mean something else by the rarer names
    return {name: fields[name] for name in _COMMON if isinstance(fields.get(name), str | int)}


def folder_name(folder: Path) -> str:
    """The name of a folder, or of the repository that a folder of the hub's cache is a snapshot of."""
    folder = folder.resolve()
    repository = folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name
    return repository.rpartition("--")[2]


def most(value: int | list[int] | None) -> int:
    """The one number, or the largest of those given per layer; 0 if there is none."""
    return max(value, default=0) if isinstance(value, list) else value or 0
