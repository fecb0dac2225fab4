"""What the times of slices say beyond those of their products: a factor for each type, and seconds for each layer.

    L_slice  ≈  Σ_products c(type, layout) · k(product)  +  layers · o,    c = g + d(type, layout)

k is a product alone, in turn with copies of itself; in a pass its activations come from the product before, and threads
meet at barriers, and the machine may have had another pace when products were timed: g. In d types differ, by little.
o is attention over a few tokens, norms and the like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct

NOISE = 0.03  # relative deviation of a timed pass, on a machine that holds still
_COMMON_PRIOR, _OWN_PRIOR = 0.3, 0.08  # deviation of g around 1, and of d around 0
_LAYER_PRIOR = 0.15  # deviation of o around 0, in terms of the mean pass for each layer
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


def fit(
    sums: Sequence[Mapping[Stored, float]], layers: Sequence[float], times: np.ndarray, noise: float = NOISE
) -> Factors:
    """Least squares over all slices, in relative errors, with priors.

    A type that is only part of some slices, where rows do not go up in its blocks, borrows from the others; the more
    so, the noisier the timings are.

    Args:
        sums: seconds of the products of each slice by type and layout.
        layers: of each slice, as far as they are computed. times: of its passes, shape (slices, rounds).
        noise: relative deviation of a timed pass.
    """
    columns = sorted({key for row in sums for key in row})
    rounds = times.shape[1]
    if not columns:
        return Factors({}, np.ones(rounds), np.zeros(rounds))
    scale = np.median(times, axis=1)
    products = np.array([[row.get(key, 0.0) for key in columns] for row in sums]) / scale[:, None]
    unit = _LAYER_PRIOR * np.mean(scale / layers)
    between = unit * np.array(layers) / scale
    observed = times / scale[:, None]
    solved = np.array([_solve(products, between, column, noise) for column in observed.T]).T
    common, own, waiting = solved[0], solved[1:-1], solved[-1]
    factors = np.maximum(common + own, _LEAST_FACTOR)
    return Factors(dict(zip(columns, factors, strict=True)), np.median(factors, axis=0), unit * waiting)


def _solve(products: np.ndarray, between: np.ndarray, observed: np.ndarray, noise: float) -> np.ndarray:
    """g, d of each type, and o in its unit: where the best o is less than nothing, the best of the rest without it."""
    left = np.column_stack([products.sum(axis=1), products, between])
    # rows of the priors: each unknown at its expected value, weighed by noise over deviation
    weights = noise / np.array([_COMMON_PRIOR, *[_OWN_PRIOR] * products.shape[1], 1.0])
    expected = np.zeros(len(weights))
    expected[0] = weights[0]
    matrix, right = np.vstack([left, np.diag(weights)]), np.concatenate([observed, expected])
    solved: np.ndarray = np.linalg.lstsq(matrix, right, rcond=None)[0]
    if solved[-1] < 0:
        solved = np.append(np.linalg.lstsq(matrix[:, :-1], right, rcond=None)[0], 0.0)
    return solved
