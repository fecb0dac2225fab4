"""Robust least squares with priors, in logarithms: Levenberg and Marquardt's steps under Huber's loss.

Errors of a group of rows are alike for reasons that no parameter knows (a device's cooling, a driver, how somebody
measured). Each group therefore has an offset of its own while parameters are fitted, as in a mixed-effects model, and
it is forgotten afterwards: parameters are not bent to explain what is the group's alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
_BEND = 0.25  # log error from which a row pulls with constant force
_STEP = 1e-4  # of the numerical derivatives
_LONGEST = 1.0  # of a step in any direction


@dataclass(frozen=True)
class Problem:
    """Rows to fit: `errors` of a vector of parameters (log of predicted over measured), their weights, and priors.

    noise: deviation of a row's log error that is expected. mean, deviation: of the parameters, before any row is seen.
    groups: the number of the group that each row is of; None where rows have nothing in common. spread: the deviation
        of the offsets of groups.
    """

    errors: Callable[[Array], Array]
    weights: Array
    mean: Array
    deviation: Array
    noise: float = 0.2
    groups: Array | None = None
    spread: float = 0.2

    @property
    def offsets(self) -> int:
        return 0 if self.groups is None else int(self.groups.max()) + 1

    def off(self, z: Array) -> Array:
        """Errors by parameters and, behind them, offsets."""
        own = self.errors(z[: len(self.mean)])
        return own if self.groups is None else own + z[len(self.mean) :][self.groups]

    def prior(self) -> tuple[Array, Array]:
        """Means and deviations of parameters and offsets."""
        n = self.offsets
        return np.append(self.mean, np.zeros(n)), np.append(self.deviation, np.full(n, self.spread))

    def cost(self, z: Array, errors: Array) -> float:
        size = np.abs(errors)
        loss = np.where(size <= _BEND, size**2 / 2, _BEND * (size - _BEND / 2))
        mean, deviation = self.prior()
        away = (z - mean) / deviation
        return float((self.weights * loss).sum() / self.noise**2 + (away**2).sum() / 2)


def fit(problem: Problem, start: Array, rounds: int = 12) -> tuple[Array, Array]:
    """The best parameters, and their covariance at the optimum."""
    n = len(start)
    z = np.append(start, np.zeros(problem.offsets))
    errors = problem.off(z)
    cost, damping = problem.cost(z, errors), 1e-2
    for _ in range(rounds):
        matrix, slope = _normal(problem, z, errors)
        step, damping = _accepted(problem, z, cost, matrix, slope, damping)
        if step is None:
            break
        z = z + step
        errors = problem.off(z)
        before, cost = cost, problem.cost(z, errors)
        if before - cost < 1e-4 * cost:
            break
    return z[:n], np.linalg.inv(_normal(problem, z, errors)[0])[:n, :n]


def _normal(problem: Problem, z: Array, errors: Array) -> tuple[Array, Array]:
    """The matrix and the slope of the quadratic that the cost looks like near z."""
    columns = []
    for i in range(len(problem.mean)):
        moved = z.copy()
        moved[i] += _STEP
        columns.append((problem.off(moved) - errors) / _STEP)
    jacobian = np.stack(columns, axis=1)
    if problem.groups is not None:
        jacobian = np.hstack([jacobian, np.eye(problem.offsets)[problem.groups]])
    size = np.abs(errors)
    weights = (
        problem.weights / problem.noise**2 * np.where(size <= _BEND, 1.0, _BEND / np.maximum(size, 1e-9))
    )
    mean, deviation = problem.prior()
    matrix = jacobian.T @ (jacobian * weights[:, None]) + np.diag(deviation**-2.0)
    return matrix, jacobian.T @ (weights * errors) + (z - mean) / deviation**2


def _accepted(
    problem: Problem, z: Array, cost: float, matrix: Array, slope: Array, damping: float
) -> tuple[Array | None, float]:
    """The first step that lowers the cost, with more and more damping; None if none does."""
    for _ in range(6):
        step = np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), -slope)
        step = np.clip(step, -_LONGEST, _LONGEST)
        if problem.cost(z + step, problem.off(z + step)) < cost:
            return step, max(damping / 5, 1e-6)
        damping *= 5
    return None, damping
