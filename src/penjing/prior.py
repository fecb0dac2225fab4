"""A sensitivity for models that nobody calibrated: by role and depth, fitted on the one that was (data/prior.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources

import numpy as np
from msgspec import Struct, convert

from penjing.model import Model, Tensor
from penjing.quality import stock
from penjing.quality.sensitivity import Moments, Sensitivity
from penjing.quantize.tensors import Tensors

_SAMPLE_ROWS = 64
# Roles that were not seen, by the nearest one that was.
_LIKE = {
    "expert_gate": "ffn_gate", "expert_up": "ffn_up", "expert_down": "ffn_down", "expert_gate_up": "ffn_up",
    "ffn_gate_up": "ffn_up", "shared_gate": "ffn_gate", "shared_up": "ffn_up", "shared_down": "ffn_down",
    "attention_qkv": "attention_v", "attention_gate": "attention_output",
    "latent_q_down": "attention_q", "latent_q_up": "attention_q", "latent_kv_down": "attention_v",
    "latent_kv_up": "attention_v", "latent_k_up": "attention_k", "latent_v_up": "attention_v",
    "recurrent": "attention_output",
}  # fmt: skip
_UNKNOWN = "ffn_up"


class Prior(Struct, frozen=True):
    """Divergence per relative squared error, by role and fifth of the depth; see data/prior.toml."""

    source: str
    layers: int
    deviation: float
    roles: Mapping[str, tuple[float, ...]]

    def strength(self, tensor: Tensor, n_layers: int) -> float:
        """Nats per token that a relative squared error of 1 would cost, were costs still linear there."""
        row = self.roles[tensor.role if tensor.role in self.roles else _LIKE.get(tensor.role, _UNKNOWN)]
        if tensor.layer is None or n_layers < 1:
            return row[0]
        fifth = min(len(row) - 1, len(row) * tensor.layer // n_layers)
        return row[fifth] * self.layers / n_layers


def prior() -> Prior:
    """The prior that ships."""
    text = (resources.files("penjing") / "data" / "prior.toml").read_text(encoding="utf-8")
    return convert(tomllib.loads(text), Prior)


def sensitivity(model: Model, tensors: Tensors) -> Sensitivity:
    """The prior for every matrix of `model`; the scale of its weights comes from a few rows of each."""
    known = prior()
    moments = {
        t.name: _moments(t, known.strength(t, len(model.layers)), tensors)
        for t in model.tensors
        if stock.is_quantized(t)
    }
    return Sensitivity(moments, "", "assumed", version=_version(known))


def _moments(tensor: Tensor, strength: float, tensors: Tensors) -> Moments:
    """Even over columns, rows and experts: ½ · Σ inputs · Σ outputs · mean w² is the strength."""
    columns, rows = tensor.shape[0], tensor.shape[1]
    experts = tensor.shape[2:3] if len(tensor.shape) > 2 else ()
    picked = np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLE_ROWS)).astype(int))
    square = float((tensors.rows(tensor.name, picked).astype(np.float64) ** 2).mean()) or 1.0
    each = 2 * strength / square / rows / (experts[0] if experts else 1)
    return Moments(
        inputs=np.full((*experts, columns), 1 / columns, dtype=np.float32),
        outputs=np.full((*experts, rows), each, dtype=np.float32),
        tokens=np.zeros(experts, dtype=np.int64),
    )


def _version(known: Prior) -> str:
    return f"prior {sum(sum(row) for row in known.roles.values()):.4g}"
