"""Sums over tokens from which the sensitivity of a matrix is made."""

from __future__ import annotations

import numpy as np
import torch

from penjing.quality.sensitivity import ACTIVATION_BLOCKS, Moments

DIRECTIONS = 128  # of H that are kept: what the strongest explain is most of what feedback can use
_EXACT_COLUMNS = 2048  # up to here all eigenvectors are computed, beyond only those that are wanted
_GRAM_COLUMNS = 16_384  # beyond it, x·xᵀ takes more than 1 GiB and is left out
# Share of H's strength off the diagonal that is believed. Held-out text says how much: rounding under a third less
# than what the sample shows is better there, and predicts its own gain (docs/log.md).
_TRUST = 0.7
_FEW_TOKENS = 32  # an expert that saw fewer leans on the mean of its stack


class Sums:
    """Of one matrix, or one expert of a stack: what is added up, sequence by sequence.

    Of a token with input x and output gradient g, the squared gradient of weight ij is g_i²·x_j². Its sums over rows
    and over columns are kept, and x·xᵀ weighed by |g|²: what a token with a small gradient does, counts little.
    """

    def __init__(self, columns: int, rows: int, *, directions: bool) -> None:
        self.columns = torch.zeros(columns, dtype=torch.float64)
        self.rows = torch.zeros(rows, dtype=torch.float64)
        self.tokens = 0
        self.noise = torch.zeros(2, dtype=torch.float64)
        wanted = directions and columns <= _GRAM_COLUMNS
        self.gram = torch.zeros(columns, columns) if wanted else None

    def add(self, x: torch.Tensor, g: torch.Tensor, below: torch.Tensor | None = None) -> None:
        """One sequence: inputs (tokens, columns), gradients at the outputs (tokens, rows) and, where it is
        known, at the inputs (tokens, columns)."""
        x2, g2 = x * x, g * g
        weights, sizes = g2.sum(1), x2.sum(1)
        self.columns += (weights @ x2).double()
        self.rows += (sizes @ g2).double()
        self.tokens += len(x)
        if below is not None:
            for n, block in enumerate(ACTIVATION_BLOCKS):
                self.noise[n] += float((below * below * _rounding(x, block)).sum(dtype=torch.float64))
        if self.gram is not None:
            self.gram.addmm_((x * weights[:, None]).T, x)  # in place: a product by itself takes as much again

    def arrays(self, tokens: int) -> dict[str, np.ndarray]:
        """Moments in the units of `quality.sensitivity.Moments`, per token of the text (`tokens`); ends the sums."""
        total = float(self.columns.sum()) or 1.0
        found = {
            "inputs": (self.columns / total).float().numpy(),
            "outputs": (self.rows / tokens).float().numpy(),
            "tokens": np.array(self.tokens, dtype=np.int64),
            "noise": (0.5 * self.noise / tokens).float().numpy(),
        }
        if self.gram is not None:
            # in place: it may be the largest array of all
            directions = strongest(self.gram.div_(total)) * _TRUST**0.5
            self.gram = None
            found["directions"] = directions.numpy().astype(np.float16)
        return found


def _rounding(x: torch.Tensor, block: int) -> torch.Tensor:
    """Variance of the error of activations in 8 bits: step² / 12, with a step of the block's greatest / 127."""
    if x.shape[1] % block:
        return torch.zeros_like(x)
    blocks = x.reshape(len(x), -1, block)
    steps = blocks.abs().amax(2, keepdim=True) / 127
    return (steps * steps / 12).expand_as(blocks).reshape(x.shape)


def strongest(gram: torch.Tensor, count: int = DIRECTIONS) -> torch.Tensor:
    """The strongest directions of a positive matrix, each times the root of its eigenvalue: (count, columns)."""
    count = min(count, len(gram))
    if len(gram) <= _EXACT_COLUMNS:
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values[-count:], vectors[:, -count:]
    else:
        torch.manual_seed(0)
        vectors, values, _ = torch.svd_lowrank(gram, q=count, niter=4)
    return (vectors * values.clamp(min=0).sqrt()).T.contiguous()


def stacked(experts: list[dict[str, np.ndarray]]) -> Moments:
    """The moments of a stack; an expert that saw few tokens is drawn towards the mean, as far as it lacks them."""
    tokens = np.array([e["tokens"] for e in experts])
    trust = np.minimum(tokens / _FEW_TOKENS, 1.0)[:, None].astype(np.float32)
    inputs, outputs = (np.stack([e[k] for e in experts]) for k in ("inputs", "outputs"))
    seen = tokens > 0
    even = np.full(inputs.shape[1:], 1 / inputs.shape[1], np.float32)
    mean_inputs = inputs[seen].mean(axis=0) if seen.any() else even
    mean_outputs = outputs.mean(axis=0)
    return Moments(
        inputs=trust * inputs + (1 - trust) * mean_inputs,
        outputs=trust * outputs + (1 - trust) * mean_outputs,
        tokens=tokens,
        noise=np.stack([e["noise"] for e in experts]),
    )
