"""Names of tensors in Hugging Face folders, and the role each has in the model."""

from __future__ import annotations

import re

from msgspec import Struct

from penjing.model import Role

# What a layer's tensor is called once prefix, layer, expert and `.weight` are taken off.
_ROLES: dict[str, Role] = {
    "self_attn.q_proj": "attention_q",
    "self_attn.k_proj": "attention_k",
    "self_attn.v_proj": "attention_v",
    "self_attn.qkv_proj": "attention_qkv",
    "self_attn.o_proj": "attention_output",
    "self_attn.q_a_proj": "latent_q_down",
    "self_attn.q_b_proj": "latent_q_up",
    "self_attn.kv_a_proj_with_mqa": "latent_kv_down",
    "self_attn.kv_b_proj": "latent_kv_up",
    "self_attn.sinks": "bias",
    "linear_attn.in_proj_qkv": "attention_qkv",
    "linear_attn.in_proj_z": "attention_gate",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_gate_up",
    "mlp.gate": "router",
    "mlp.gate.wg": "router",
    "mlp.router": "router",
    "mlp.experts.gate_proj": "expert_gate",
    "mlp.experts.up_proj": "expert_up",
    "mlp.experts.down_proj": "expert_down",
    "mlp.experts.gate_up_proj": "expert_gate_up",
    "mlp.experts.w1": "expert_gate",
    "mlp.experts.w3": "expert_up",
    "mlp.experts.w2": "expert_down",
    "mlp.shared.gate_proj": "shared_gate",
    "mlp.shared.up_proj": "shared_up",
    "mlp.shared.down_proj": "shared_down",
    "mlp.shared_expert_gate": "shared_router",
}
_SYNONYMS = (
    (re.compile(r"^(?:block_sparse_moe|feed_forward)\."), "mlp."),
    (re.compile(r"^mlp\.shared_(?:experts?|mlp)\."), "mlp.shared."),
)
_ENDS: dict[str, Role] = {"embed_tokens": "token_embedding", "lm_head": "output", "norm": "norm"}

_LAYER = re.compile(r"(?:^|.*?\.)layers\.(\d{1,4})\.(.+)")
_EXPERT = re.compile(r"(\.experts\.)(\d{1,5})\.")
_PREFIX = re.compile(r"^(?:(?:model|language_model)\.)+")
_MTP = re.compile(r"(?:^|\.)mtp\w*\.")
_NOT_TEXT = re.compile(
    r"^(?:model\.)?(?:visual|vision\w*|vit|audio\w*|sound\w*|image\w*|embed_vision|embed_audio"
    r"|multi_modal_projector|mm_projector)\."
)


class Name(Struct, frozen=True):
    """A name taken apart: the layer and expert it belongs to, the part that stays, and the role.

    `group` is the name with the number of the expert taken out: what all experts of a layer share.
    """

    group: str
    stem: str
    role: Role
    layer: int | None
    expert: int | None
    routed: bool


def vision_or_sound(name: str) -> bool:
    """The tensor belongs to a tower or projector for pictures or sound."""
    return _NOT_TEXT.match(name) is not None


def parse(name: str, n_layers: int) -> Name:
    """Take `name` apart; layers from `n_layers` on are heads for drafting, as DeepSeek and GLM have them."""
    in_layer = _LAYER.fullmatch(name)
    layer = int(in_layer[1]) if in_layer else None
    rest = in_layer[2] if in_layer else _PREFIX.sub("", name)
    expert = _EXPERT.search(rest)
    stem = _EXPERT.sub(r"\1", rest)
    for pattern, plain in _SYNONYMS:
        stem = pattern.sub(plain, stem)
    draft = _MTP.search(name) is not None or (layer is not None and layer >= n_layers)
    return Name(
        group=_EXPERT.sub(r"\1*.", name),
        stem=stem,
        role="draft" if draft else _role(stem, layer is not None),
        layer=None if draft else layer,
        expert=int(expert[2]) if expert else None,
        routed=".experts." in f".{stem}",
    )


def _role(stem: str, in_layer: bool) -> Role:
    body, _, kind = stem.rpartition(".")
    if kind != "weight":
        body = stem
    if stem.endswith("bias"):
        return "bias"
    if body.endswith("norm"):
        return "norm"
    if body.startswith("linear_attn.") and body not in _ROLES:
        return "recurrent"
    return (_ROLES if in_layer else _ENDS).get(body, "other")
