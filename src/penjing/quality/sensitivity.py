"""How much the answers of a model change when its weights do: what calibration found, tensor by tensor.

For a linear layer y = W·x the divergence that a rounding error Δ of its weights adds is, to second order and with
the labels of the gradient drawn from the model itself,

    KLD ≈ ½ · Σ_i g_i · Δ_i · H · Δ_iᵀ                   nats per token

with g_i the share of output i in the squared gradient, and H the second moment of the input, each token weighed by its
squared gradient. H is kept as its diagonal and its strongest directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from msgspec import Struct

from penjing.formats import BY_NAME

Floats = np.ndarray
# activations that share a scale: for types in blocks of 32 and 64, and of 256 weights
ACTIVATION_BLOCKS = (32, 256)


class Form(Struct, frozen=True):
    """diag(rest) + wideᵀ·wide, kept in its parts: using it costs what its rank is, not its width.

    Units:
        rest: float32 (columns,). wide: float32 (k, columns).
    """

    rest: Floats
    wide: Floats

    def diagonal(self) -> Floats:
        return np.asarray(self.rest + (self.wide * self.wide).sum(axis=0))

    def full(self, columns: slice = slice(None)) -> Floats:
        """The whole matrix, or what two of some columns have in common."""
        wide = self.wide[:, columns]
        return np.asarray(wide.T @ wide + np.diag(self.rest[columns]))

    def losses(self, error: Floats) -> Floats:
        """Δ·H·Δᵀ of each row of `error`, float32 (rows, columns)."""
        along = error @ self.wide.T
        return np.asarray((error * error) @ self.rest + (along * along).sum(axis=1))


class Moments(Struct, frozen=True):
    """Of one matrix, or of each expert of a stack.

    Units:
        inputs: (experts, columns) or (columns,), diagonal of H. outputs: (experts, rows) or (rows,), the g_i.
            The product of an input and an output is in nats per token and squared weight.
        directions: (k, columns) or (experts, k, columns), with H ≈ diag(inputs − Σ_k d²) + Σ_k d·dᵀ; or None.
        tokens: how many tokens the matrix saw, for each expert: what rests on few is worth little.
        noise: (2,) or (experts, 2), what the engine adds by rounding activations to 8 bits before it multiplies
            them with quantized weights, in blocks of 32 and of 256: nats per token, whatever the type; or None.
    """

    inputs: Floats
    outputs: Floats
    tokens: Floats
    directions: Floats | None = None
    noise: Floats | None = None

    def of_expert(self, expert: int) -> Moments:
        """The moments of one of a stack."""
        one = None if self.directions is None else self.directions[expert]
        noise = None if self.noise is None else self.noise[expert]
        return Moments(self.inputs[expert], self.outputs[expert], self.tokens[expert], one, noise)

    def activation_noise(self, kind: str) -> float:
        """Nats per token that rounding the activations costs when the weights are of type `kind`; 0 where unknown."""
        if self.noise is None or kind in ("f32", "f16", "bf16"):
            return 0.0
        large = BY_NAME[kind].block_weights == ACTIVATION_BLOCKS[1]
        return float(self.noise[..., int(large)].sum())

    def form(self) -> Form:
        """H."""
        inputs = self.inputs.astype(np.float32)
        if self.directions is None:
            return Form(inputs, np.empty((0, len(inputs)), dtype=np.float32))
        wide = self.directions.astype(np.float32)
        return Form(np.maximum(inputs - (wide * wide).sum(axis=0), 0), wide)


class Sensitivity(Struct, frozen=True):
    """All moments of a model and where they come from.

    `model` is the hash of the weights' content that they belong to, empty for what was measured on a folder of
    safetensors; `source` is `measured` or `assumed`.
    """

    moments: Mapping[str, Moments]
    model: str
    source: Literal["measured", "assumed"]
    tokens: int = 0
    seed: int = 0
    text_sha256: str = ""
    version: str = ""


def divergences(error: Floats, moments: Moments) -> Floats:
    """½ Δ_i·H·Δ_iᵀ of each row i, before its weight g_i. `error`: float32 (rows, columns)."""
    return np.asarray(0.5 * moments.form().losses(error))
