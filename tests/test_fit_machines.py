"""The fit of the cost model for any device: robust, repeatable, with constants that ship."""

from __future__ import annotations

import numpy as np
import pytest

import fit_machines
import priors
import robust
from penjing.cost import constants


def test_a_line_is_found_despite_a_row_that_is_far_off():
    """Huber's loss: one wild row among twenty moves the answer little."""
    x = np.linspace(0, 1, 20)
    measured = 1 + 0.5 * x
    measured[3] += 5
    problem = robust.Problem(lambda p: p[0] + p[1] * x - measured, np.ones(20), np.zeros(2), np.full(2, 10.0))

    found, covariance = robust.fit(problem, np.zeros(2), 50)

    assert pytest.approx([1, 0.5], abs=0.1) == found
    assert (2, 2) == covariance.shape


def test_without_rows_the_prior_stands():
    """Weights of zero leave what was expected, as sure as it was."""
    problem = robust.Problem(lambda p: p - 3, np.zeros(2), np.ones(2), np.array([0.5, 2.0]))

    found, covariance = robust.fit(problem, np.ones(2))

    assert pytest.approx(1) == found
    assert pytest.approx([0.25, 4.0]) == np.diag(covariance)


def test_constants_go_into_the_file_and_back():
    """A document has every constant, and gives the same vector again."""
    import tomllib

    x = priors.mean()
    text = fit_machines.document(x, np.eye(len(x)), {"datasheet": {"decode": {"all": [0.5, 2.0]}}}, "a test")

    found = tomllib.loads(text)
    assert pytest.approx(np.exp(x), rel=1e-3) == constants.vector(found["constants"])
    assert [0.5, 2.0] == found["intervals"]["datasheet"]["decode"]["all"]


def test_priors_and_the_shipped_file_have_every_constant():
    """No constant is without a value, an expectation and a deviation; tens of them, none for a device."""
    n = len(constants.names())

    assert n == len(priors.mean()) == len(priors.deviation())
    assert n == len(constants.vector(constants.document()["constants"]))
    assert n == len(constants.vector(constants.document()["errors"]))


def test_intervals_span_the_share_that_is_asked():
    """Nine errors in ten lie between the two factors."""
    errors = np.random.default_rng(1).normal(0, 0.3, 5000)

    low, high = fit_machines.interval(errors)

    assert pytest.approx(fit_machines.INSIDE, abs=0.02) == np.mean(
        (low <= np.exp(-errors)) & (np.exp(-errors) <= high)
    )
