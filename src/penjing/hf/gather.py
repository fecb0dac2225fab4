"""From the entries of safetensors headers to tensors and layers: experts merged, packed weights unfolded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from penjing.errors import BadFile
from penjing.hf.config import Config
from penjing.hf.headers import Entry
from penjing.hf.names import Name, parse
from penjing.model import Layer, Role, Tensor

Part = tuple[str, Name, Entry]

_PACKED_HINT = "plan with the repository that it was made from, or with a GGUF of it"
_ANY_SHAPE: tuple[Role, ...] = ("norm", "bias", "recurrent", "draft", "other")
_MXFP4_GROUP = 32  # weights that share one scale


def tensors(entries: dict[str, Entry], config: Config, folder: Path) -> tuple[Tensor, ...]:
    """The tensors of the model; the experts of a layer as one, (in, out, experts).

    Raises:
        BadFile: a layer lacks an expert, its experts differ, or weights are packed in an unknown way.
    """
    groups: dict[str, list[Part]] = defaultdict(list)
    for name, entry in entries.items():
        parsed = parse(name, config.num_hidden_layers)
        groups[parsed.group].append((name, parsed, entry))
    unfolded = (_unfold(group, groups, config, folder) for group in sorted(groups))
    return tuple(tensor for tensor in unfolded if tensor)


def layers(tensors: Sequence[Tensor], config: Config) -> tuple[Layer, ...]:
    """What each layer keeps of the past, as far as its tensors alone tell."""
    by_layer: dict[int, dict[Role, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        if tensor.layer is not None:
            by_layer[tensor.layer][tensor.role] = tensor
    return tuple(_layer(by_layer[i], config) for i in range(config.num_hidden_layers))


def experts(tensors: Sequence[Tensor], config: Config) -> int:
    """Routed experts in a layer: what the configuration tells, or else what the tensors are of."""
    return config.experts or max((t.shape[-1] for t in tensors if t.role == "expert_down"), default=0)


def vocabulary(tensors: Sequence[Tensor], config: Config, folder: Path) -> int:
    """Rows of the embedding; raises BadFile if there is none, or its rows are not as wide as the model."""
    embedding = next((t for t in tensors if t.role == "token_embedding"), None)
    if embedding is None:
        raise BadFile(
            f"`{folder}` has no token embedding among its {len(tensors)} tensors",
            hint="is it a language model?",
        )
    if embedding.shape[0] != config.hidden_size:
        raise BadFile(
            f"`{folder}`: config.json gives a width of {config.hidden_size}, "
            f"the embedding has {embedding.shape[0]}"
        )
    return embedding.shape[1]


def _unfold(group: str, groups: dict[str, list[Part]], config: Config, folder: Path) -> Tensor | None:
    """The tensor that a group of entries makes; None for scales that belong to another's weights."""
    if group.endswith("_scales") and group.removesuffix("_scales") + "_blocks" in groups:
        return None
    parts = groups[group]
    name, entry = parts[0][1], parts[0][2]
    if name.expert is not None:
        _check_experts(group, parts, config, folder)
    if group.endswith("_blocks"):
        return _mxfp4(group, groups, config, folder)
    _refuse_packed(group, name, entry, folder)
    sizes = _oriented(tuple(reversed(entry.shape)), name, config)
    if name.role not in _ANY_SHAPE and (len(sizes) < 2 or 0 in sizes):
        raise BadFile(
            f"`{folder}`: `{group}` of shape {list(entry.shape)} is not a matrix", hint=_PACKED_HINT
        )
    if name.expert is not None:
        sizes = (*sizes, len(parts))
    return Tensor(
        name=group,
        role=name.role,
        shape=sizes,
        type=entry.dtype.lower(),
        n_bytes=sum(part.n_bytes for _, _, part in parts),
        layer=name.layer,
        active_share=_share(name, config, sizes),
    )


def _check_experts(group: str, parts: list[Part], config: Config, folder: Path) -> None:
    present = {name.expert or 0 for _, name, _ in parts}
    # an unknown family may count its experts under an unknown name
    told = config.experts or max(present) + 1
    missing = set(range(told)) - present
    if missing or len(present) != told:
        which = f", the first missing is {min(missing)}" if missing else ""
        raise BadFile(f"`{folder}`: there should be {told} experts, `{group}` has {len(present)}{which}")
    if len({(entry.dtype, entry.shape) for _, _, entry in parts}) > 1:
        raise BadFile(f"`{folder}`: the experts of `{group}` differ in shape or type")


def _mxfp4(group: str, groups: dict[str, list[Part]], config: Config, folder: Path) -> Tensor:
    """Blocks (experts, out, in / 32, 16 bytes of two weights) and their scales (experts, out, in / 32)."""
    stem = group.removesuffix("_blocks")
    _, name, blocks = groups[group][0]
    scales = groups.get(f"{stem}_scales", [(stem, name, None)])[0][2]
    if scales is None or blocks.shape[3:] != (_MXFP4_GROUP // 2,) or scales.shape != blocks.shape[:3]:
        raise BadFile(f"`{folder}`: `{group}` of shape {list(blocks.shape)} is not MXFP4 with its scales")
    experts, out, rows = blocks.shape[:3]
    plain = parse(stem, config.num_hidden_layers)
    sizes = (rows * _MXFP4_GROUP, out, experts)
    n_bytes = blocks.n_bytes + scales.n_bytes
    return Tensor(stem, plain.role, sizes, "mxfp4", n_bytes, plain.layer, _share(plain, config, sizes))


def _refuse_packed(group: str, name: Name, entry: Entry, folder: Path) -> None:
    """Integers in the place of weights (GPTQ, AWQ, NVFP4 …) hide the shape they stand for."""
    packed = name.stem.endswith(("qweight", "weight_packed", "_blocks")) or (
        name.role not in _ANY_SHAPE and entry.dtype in ("U8", "I8", "I32", "U32")
    )
    if packed:
        raise BadFile(
            f"`{folder}`: `{group}` is packed into {entry.dtype}, which hides the shape of its weights",
            hint=_PACKED_HINT,
        )


def _oriented(sizes: tuple[int, ...], name: Name, config: Config) -> tuple[int, ...]:
    """Input width first. The fused experts of gpt-oss are stored the other way round than linear layers."""
    if len(sizes) != 3 or not name.routed or name.role == "bias":
        return sizes
    wide = 1 if name.role == "expert_down" else 0
    if sizes[wide] != config.hidden_size and sizes[1 - wide] == config.hidden_size:
        return (sizes[1], sizes[0], sizes[2])
    return sizes


def _share(name: Name, config: Config, sizes: tuple[int, ...]) -> float:
    if name.role == "token_embedding":
        return 1 / max(sizes[-1], 1)
    if name.routed and config.experts and config.experts_used:
        return config.experts_used / config.experts
    return 1.0


def _layer(by_role: dict[Role, Tensor], config: Config) -> Layer:
    heads = config.num_attention_heads or 0
    if "latent_kv_down" in by_role:
        return Layer("latent", heads, by_role["latent_kv_down"].shape[1], 0)
    if "attention_k" in by_role:
        key = by_role["attention_k"].shape[1]
        return Layer("full", heads, key, by_role["attention_v"].shape[1] if "attention_v" in by_role else key)
    if "recurrent" in by_role:
        return Layer("recurrent")
    if "attention_qkv" in by_role and "attention_output" in by_role:
        key = (by_role["attention_qkv"].shape[1] - by_role["attention_output"].shape[0]) // 2
        return Layer("full", heads, max(key, 0), max(key, 0))
    return Layer("none")
