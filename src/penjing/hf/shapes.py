"""From a `Config` to a `Shape`, for the families that penjing knows."""

from __future__ import annotations

from pathlib import Path

from penjing.catalogue.attention import Grouped, Latent
from penjing.catalogue.feed_forward import Experts
from penjing.catalogue.grow import Types
from penjing.catalogue.mixers import Recurrent
from penjing.catalogue.shape import Shape
from penjing.errors import BadFile
from penjing.hf.config import Config, folder_name, most
from penjing.hf.families import FAMILIES, Family
from penjing.model import AttentionKind

_KINDS: dict[str, AttentionKind] = {
    "full_attention": "full", "sliding_attention": "window", "linear_attention": "recurrent",
}  # fmt: skip

_PLAIN = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
_PACKED = {"fp8": "f8_e4m3", "mxfp4": "mxfp4"}  # the latter for experts alone


def is_known(config: Config) -> bool:
    """The family is one that `shape_of` can turn into a shape."""
    return config.model_type in FAMILIES


def shape_of(config: Config, folder: Path) -> Shape:
    """The shape of a model of a known family.

    Raises:
        BadFile: the fields contradict each other, or arrange layers as no known model does.
    """
    family = FAMILIES[config.model_type]
    try:
        return Shape(
            name=folder_name(folder),
            architecture=config.model_type,
            source=str(folder),
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            vocabulary=_given(config, "vocab_size"),
            context_tokens=config.max_position_embeddings,
            tied=family.tied if config.tie_word_embeddings is None else config.tie_word_embeddings,
            grouped=None if config.kv_lora_rank else _grouped(config, family),
            latent=_latent(config) if config.kv_lora_rank else None,
            recurrent=_recurrent(config) if config.linear_num_value_heads else None,
            hidden=config.intermediate_size,
            experts=_experts(config, family) if config.experts else None,
            dense_layers=_dense_layers(config) if config.experts else 0,
            kinds=_kinds(config, family),
            layer_norms=family.layer_norms,
        )
    except (ValueError, TypeError) as error:
        raise BadFile(f"`{folder / 'config.json'}` is no `{config.model_type}` model: {error}") from error


def published_types(config: Config, folder: Path) -> Types:
    """The types that the weights of this configuration come in, for a folder without them.

    Raises:
        BadFile: the weights are packed in a way that the configuration does not tell.
    """
    dtype = config.torch_dtype or config.dtype or "bfloat16"
    plain = _PLAIN.get(dtype)
    packing = (config.quantization_config or {}).get("quant_method")
    if packing is None and (folder / "hf_quant_config.json").is_file():
        packing = "modelopt"
    packed = plain if packing is None else _PACKED.get(str(packing))
    if plain is None or packed is None:
        raise BadFile(
            f"`{folder}` has no weights, and config.json does not tell the size of `{packing or dtype}`",
            hint="put the *.safetensors files beside it, or plan for the repository it was made from",
        )
    matrices = plain if packed == "mxfp4" else packed
    return Types(matrices=matrices, experts=packed, ends=plain, vectors=plain, router=plain)


def _grouped(config: Config, family: Family) -> Grouped:
    biased = bool(config.attention_bias or config.use_bias) if family.biased is None else family.biased
    heads = _given(config, "num_attention_heads")
    if config.head_dim is None and config.hidden_size % heads:
        raise ValueError(f"{heads} heads do not divide a width of {config.hidden_size}")
    return Grouped(
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_width=config.head_dim or config.hidden_size // heads,
        norm="none" if config.use_qk_norm is False else family.norm,
        bias=family.bias if biased else "none",
        gated=family.gated,
        sinks=family.sinks,
        window_tokens=config.sliding_window,
    )


def _latent(config: Config) -> Latent:
    return Latent(
        heads=_given(config, "num_attention_heads"),
        kv_rank=_given(config, "kv_lora_rank"),
        rope_width=_given(config, "qk_rope_head_dim"),
        nope_width=_given(config, "qk_nope_head_dim"),
        value_width=_given(config, "v_head_dim"),
        q_rank=config.q_lora_rank,
    )


def _recurrent(config: Config) -> Recurrent:
    return Recurrent(
        key_heads=_given(config, "linear_num_key_heads"),
        value_heads=_given(config, "linear_num_value_heads"),
        key_width=_given(config, "linear_key_head_dim"),
        value_width=_given(config, "linear_value_head_dim"),
        taps=_given(config, "linear_conv_kernel_dim"),
    )


def _experts(config: Config, family: Family) -> Experts:
    hidden = most(config.moe_intermediate_size) or _given(config, "intermediate_size")
    shared = config.n_shared_experts or config.moe_num_shared_experts or most(config.num_shared_expert)
    return Experts(
        count=config.experts,
        used=config.experts_used,
        hidden=hidden,
        shared_hidden=config.shared_expert_intermediate_size or hidden * (shared or family.shared_always),
        shared_gate=family.shared_gate,
        router_bias=family.router_bias,
        bias=family.expert_bias,
    )


def _dense_layers(config: Config) -> int:
    """How many layers come before the first with experts; from there on every layer must have them."""
    first = config.first_k_dense_replace or config.moe_layer_start_index or 0
    steps = config.decoder_sparse_step, config.moe_layer_interval, most(config.moe_layer_freq)
    ends_early = config.moe_layer_end_index not in (None, -1, config.num_hidden_layers - 1)
    if any(step not in (None, 0, 1) for step in steps) or ends_early or config.mlp_only_layers:
        raise ValueError("layers with and without experts alternate, which is new in this family")
    return first


def _kinds(config: Config, family: Family) -> tuple[AttentionKind, ...]:
    count = config.num_hidden_layers
    full: AttentionKind = "latent" if config.kv_lora_rank else "full"
    if config.layer_types is not None:
        unknown = set(config.layer_types) - set(_KINDS)
        if unknown:
            raise ValueError(f"layer_types has {min(unknown)[:40]!r}, known are {', '.join(_KINDS)}")
        return tuple(full if kind == "full_attention" else _KINDS[kind] for kind in config.layer_types)
    if config.linear_num_value_heads or family.full_every > 1:
        every = config.full_attention_interval or config.sliding_window_pattern or family.full_every
        other: AttentionKind = "recurrent" if config.linear_num_value_heads else "window"
        return tuple(full if (i + 1) % every == 0 else other for i in range(count))
    return tuple("window" if i >= _first_window(config, family) else full for i in range(count))


def _first_window(config: Config, family: Family) -> int:
    """The first layer that sees only a window; as many as there are layers if none does."""
    if config.sliding_window is None:
        return config.num_hidden_layers
    if family.windows_everywhere:
        return 0
    if config.use_sliding_window and config.max_window_layers is not None:
        return config.max_window_layers
    return config.num_hidden_layers


def _given(config: Config, field: str) -> int:
    value = getattr(config, field)
    if value is None:
        raise ValueError(f"`{field}` is missing")
    return int(value)
