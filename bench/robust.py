"""Robust least squares with priors, in logarithms: Levenberg and Marquardt's steps under Huber's loss."""

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
    """

    errors: Callable[[Array], Array]
    weights: Array
    mean: Array
    deviation: Array
    noise: float = 0.2

    def cost(self, x: Array, errors: Array) -> float:
        size = np.abs(errors)
        loss = np.where(size <= _BEND, size**2 / 2, _BEND * (size - _BEND / 2))
        away = (x - self.mean) / self.deviation
        return float((self.weights * loss).sum() / self.noise**2 + (away**2).sum() / 2)


def fit(problem: Problem, start: Array, rounds: int = 12) -> tuple[Array, Array]:
    """The best parameters, and their covariance at the optimum."""
    x, errors = start.copy(), problem.errors(start)
    cost, damping = problem.cost(x, errors), 1e-2
    for _ in range(rounds):
        matrix, slope = _normal(problem, x, errors)
        step, damping = _accepted(problem, x, cost, matrix, slope, damping)
        if step is None:
            break
        x = x + step
        errors = problem.errors(x)
        before, cost = cost, problem.cost(x, errors)
        if before - cost < 1e-4 * cost:
            break
    return x, np.linalg.inv(_normal(problem, x, errors)[0])


def _normal(problem: Problem, x: Array, errors: Array) -> tuple[Array, Array]:
    """The matrix and the slope of the quadratic that the cost looks like near x."""
    columns = []
    for i in range(len(x)):
        moved = x.copy()
        moved[i] += _STEP
        columns.append((problem.errors(moved) - errors) / _STEP)
    jacobian = np.stack(columns, axis=1)
    size = np.abs(errors)
    weights = (
        problem.weights / problem.noise**2 * np.where(size <= _BEND, 1.0, _BEND / np.maximum(size, 1e-9))
    )
    matrix = jacobian.T @ (jacobian * weights[:, None]) + np.diag(problem.deviation**-2.0)
    return matrix, jacobian.T @ (weights * errors) + (x - problem.mean) / problem.deviation**2


def _accepted(
    problem: Problem, x: Array, cost: float, matrix: Array, slope: Array, damping: float
) -> tuple[Array | None, float]:
    """The first step that lowers the cost, with more and more damping; None if none does."""
    for _ in range(6):
        step = np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), -slope)
        step = np.clip(step, -_LONGEST, _LONGEST)
        if problem.cost(x + step, problem.errors(x + step)) < cost:
            return step, max(damping / 5, 1e-6)
        damping *= 5
    return None, damping
