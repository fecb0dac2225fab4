"""What the times of slices say beyond those of their products: a factor for each type, and seconds for each layer.

    L_slice  ≈  Σ_products c(type, layout) · k(product)  +  layers · o

k is a product alone, in turn with copies of itself; in a pass its activations come from the product before, and threads
meet at barriers. c tells what that changes, and is near 1. o is attention over a few tokens, norms and the like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct

_NOISE = 0.03  # relative deviation of a timed pass
_FACTOR_PRIOR = 0.08  # deviation of c around 1
_LAYER_PRIOR = 0.3  # deviation of o around 0, in terms of the mean pass for each layer
_LEAST_FACTOR = 0.3
Stored = tuple[str, bool]  # type, and whether it is repacked


class Factors(Struct, frozen=True):
    """Factors c by type and layout, and o in seconds, one number for each round: arrays of shape (rounds,)."""

    by_type: Mapping[Stored, np.ndarray]
    usual: np.ndarray
    layer_seconds: np.ndarray

    def of(self, stored: Stored) -> np.ndarray:
        """The factor of a type; the median of the others where no slice has it."""
        return self.by_type.get(stored, self.usual)


def between(one: Factors, other: Factors, share: float) -> Factors:
    """So far on the line from `one` to `other`."""
    kinds = one.by_type.keys() | other.by_type.keys()
    return Factors(
        {kind: _line(one.of(kind), other.of(kind), share) for kind in kinds},
        _line(one.usual, other.usual, share),
        _line(one.layer_seconds, other.layer_seconds, share),
    )


def _line(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    return (1 - share) * one + share * other


def fit(sums: Sequence[Mapping[Stored, float]], layers: Sequence[float], times: np.ndarray) -> Factors:
    """Least squares over all slices, in relative errors, with priors.

    A type that is only part of some slices, where rows do not go up in its blocks, borrows from the others.

    Args:
        sums: seconds of the products of each slice by type and layout.
        layers: of each slice, as far as they are computed. times: of its passes, shape (slices, rounds).
    """
    columns = sorted({key for row in sums for key in row})
    rounds = times.shape[1]
    if not columns:
        return Factors({}, np.ones(rounds), np.zeros(rounds))
    scale = np.median(times, axis=1)
    matrix = np.array([[row.get(key, 0.0) for key in columns] for row in sums])
    layer_unit = _LAYER_PRIOR * np.mean(scale / layers)
    left = np.hstack([matrix, layer_unit * np.array(layers)[:, None]]) / scale[:, None]
    # rows of the priors: each unknown at its expected value, weighed by noise over deviation
    weights = np.array([_NOISE / _FACTOR_PRIOR] * len(columns) + [_NOISE])
    expected = np.outer(weights * ([1.0] * len(columns) + [0.0]), np.ones(rounds))
    solved = np.linalg.lstsq(
        np.vstack([left, np.diag(weights)]), np.vstack([times / scale[:, None], expected]), rcond=None
    )[0]
    factors = np.maximum(solved[:-1], _LEAST_FACTOR)
    return Factors(
        dict(zip(columns, factors, strict=True)),
        np.median(factors, axis=0),
        layer_unit * np.maximum(solved[-1], 0.0),
    )
