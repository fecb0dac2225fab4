"""Weights that Hugging Face folders store in few bits with scales beside them, as float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_MXFP4 = torch.cat([_FP4, -_FP4])
_MXFP4_BIAS = 127  # of the exponent that is a scale


def scaled_blocks(weights: torch.Tensor, scales: torch.Tensor, block: Sequence[int]) -> torch.Tensor:
    """FP8 (rows, columns) with a scale for each block of (rows, columns), the last ones cut off: DeepSeek, MiniMax."""
    rows, columns = weights.shape
    wide = scales.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return weights.float() * wide[:rows, :columns]


def mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(rows, groups, 16) bytes of two weights, the first in the low bits, and (rows, groups) scales: gpt-oss.

    Returns (rows, columns).
    """
    pairs = torch.stack([_MXFP4[(blocks & 15).int()], _MXFP4[(blocks >> 4).int()]], dim=-1)
    return torch.ldexp(pairs.flatten(2), scales.int()[..., None] - _MXFP4_BIAS).flatten(1)
