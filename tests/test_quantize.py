"""Codes, scales and rounding against the engine's own quantizers and dequantizers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from penjing.errors import EngineDied
from penjing.formats import BY_NAME
from penjing.quality.sensitivity import Form, Moments, divergences
from penjing.quantize import errors, helpers, rounding
from penjing.quantize.codes import CODECS, affine, pack, unpack
from penjing.quantize.native import IGNORES_IMPORTANCE, Native
from penjing.quantize.rounding import Metric, refine

NATIVE = Native(2)
ROWS = default_rng(1).normal(size=(24, 512)).astype(np.float32)
EVERY = [k for k in BY_NAME if k not in ("q8_1", "q8_K", "i8", "i16", "i32", "i64", "f64")]


def form(columns: int, seed: int = 2) -> Form:
    """Second moments of correlated inputs, as activations are; of full rank, all in directions."""
    draw = default_rng(seed)
    inputs = draw.normal(size=(4 * columns, columns)) @ (
        np.eye(columns) + 0.3 * draw.normal(size=(columns, columns)) / 8
    )
    inputs *= np.exp(draw.normal(size=columns))
    factor = np.linalg.cholesky(inputs.T @ inputs / len(inputs))
    return Form(np.zeros(columns, np.float32), np.ascontiguousarray(factor.T, dtype=np.float32))


@pytest.mark.parametrize("kind", EVERY)
def test_what_is_quantized_comes_back(kind):
    """Every type keeps the weights to within what its bits allow."""
    weights = np.ones(ROWS.shape[1], dtype=np.float32)
    data = NATIVE.quantize(kind, ROWS, weights)
    error = NATIVE.dequantize(kind, data) - ROWS

    assert data.shape == (24, 512 // BY_NAME[kind].block_weights * BY_NAME[kind].block_bytes)
    trained = kind in ("q1_0", "q2_0", "tq1_0", "tq2_0")  # for models whose weights have two or three values
    assert np.sqrt((error**2).mean()) < (1 if trained else 3 * 2.0 ** -BY_NAME[kind].bits_per_weight + 0.05)


@pytest.mark.parametrize("kind", CODECS)
def test_codes_and_scales_explain_the_engine(kind):
    """scale · level + offset is what the engine's dequantizer gives; packing the same codes changes no byte."""
    codec, data = CODECS[kind], NATIVE.quantize(kind, ROWS)
    codes = unpack(codec, data)
    scale, offset = affine(codec, data, NATIVE.dequantize)
    rebuilt = scale * np.asarray(codec.levels, dtype=np.float32)[codes] + offset

    assert (pack(codec, data, codes) == data).all()
    np.testing.assert_allclose(rebuilt, NATIVE.dequantize(kind, data), atol=2e-5)


@given(st.sampled_from(sorted(CODECS)), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_codes_can_be_packed(kind, seed):
    """Codes that were packed are unpacked again, whatever they are, and the scales stay."""
    codec, data = CODECS[kind], NATIVE.quantize(kind, ROWS)
    codes = default_rng(seed).integers(0, len(codec.levels), ROWS.shape, dtype=np.uint8)
    packed = pack(codec, data, codes)

    assert (unpack(codec, packed) == codes).all()
    scales = affine(codec, data, NATIVE.dequantize), affine(codec, packed, NATIVE.dequantize)
    np.testing.assert_array_equal(scales[0][0], scales[1][0])


@pytest.mark.parametrize("kind", CODECS)
def test_refining_lowers_the_loss_of_every_row(kind):
    """No row gets worse, and the whole gets better by a fifth."""
    h = form(512)
    data = NATIVE.quantize(kind, ROWS, h.diagonal())
    refined = refine(kind, ROWS, data, Metric(h), NATIVE.dequantize)
    before, after = (h.losses(NATIVE.dequantize(kind, d) - ROWS) for d in (data, refined))

    assert refined.shape == data.shape
    assert (after <= before * 1.0001 + 1e-4 * before.mean()).all()
    assert after.sum() < 0.8 * before.sum()


def test_grids_that_are_no_scalars_stay():
    """IQ3 and IQ2 codes stand for several weights at once: they are not touched."""
    data = NATIVE.quantize("iq3_s", ROWS, np.ones(512, np.float32))

    assert refine("iq3_s", ROWS, data, Metric(form(512)), NATIVE.dequantize) is data


@pytest.mark.parametrize("kind", ["q4_0", "q4_K", "iq4_nl", "q3_K", "q8_0", "mxfp4"])
def test_importance_is_used_or_ignored(kind):
    """A column that counts a thousand times more is kept better, except by the types that ignore importance."""
    weights = np.ones(512, dtype=np.float32)
    weights[::16] = 1000
    plain, weighed = (NATIVE.dequantize(kind, NATIVE.quantize(kind, ROWS, w)) - ROWS for w in (None, weights))

    if kind in IGNORES_IMPORTANCE:
        np.testing.assert_array_equal(plain, weighed)
    else:
        assert (weighed[:, ::16] ** 2).sum() < (plain[:, ::16] ** 2).sum()


def test_threads_change_nothing():
    """One thread or many: the same bytes."""
    rows = default_rng(5).normal(size=(3000, 256)).astype(np.float32)

    assert (Native(1).quantize("q4_K", rows) == Native(4).quantize("q4_K", rows)).all()


@pytest.mark.parametrize("kind", ["q4_0", "q4_K"])
def test_wide_matrices_are_fed_back_in_parts(kind, monkeypatch):
    """Taken apart into spans of columns the rounding still gets better, nearly as much as in one."""
    moments = _moments(directions=6)
    losses = {}
    for widest in (200, 512):
        monkeypatch.setattr(rounding, "WIDEST", widest)
        metric = Metric(moments.form())
        data = errors.quantized(NATIVE, kind, ROWS, moments, metric)
        losses[len(metric.spans)] = divergences(NATIVE.dequantize(kind, data) - ROWS, moments).sum()
    plain = errors.quantized(NATIVE, kind, ROWS, moments)
    before = divergences(NATIVE.dequantize(kind, plain) - ROWS, moments).sum()

    assert sorted(losses) == [1, 3]
    assert losses[3] < 0.85 * before and losses[1] < 0.8 * before


@pytest.mark.parametrize("kind", CODECS)
def test_rows_of_zeros_stay_zero(kind):
    """An unused token or a pruned head: scales are zero, or too small to be inverted, and nothing breaks."""
    rows = ROWS.copy()
    rows[3:5] = 0
    moments = _moments(directions=6)
    data = errors.quantized(NATIVE, kind, rows, moments, Metric(moments.form()))

    np.testing.assert_allclose(NATIVE.dequantize(kind, data)[3:5], 0, atol=1e-30)


def test_the_factor_inverts_h():
    """UᵀU·H is the identity, whatever the width and the number of directions."""
    for width, rank in ((7, 3), (100, 20), (512, 0)):
        wide = default_rng(width).normal(size=(rank, width)).astype(np.float32)
        metric = Metric(Form(np.full(width, 0.5, np.float32), wide))
        (span,) = metric.spans
        h = metric.form.full()[np.ix_(span.order, span.order)]

        np.testing.assert_allclose(np.tril(span.upper, -1), 0, atol=1e-9)
        np.testing.assert_allclose(span.upper.T @ span.upper @ h, np.eye(width), atol=2e-3)


def test_helpers_round_as_we_do():
    """A process apart, batch by batch: losses are the same, with and without directions, and so are bytes each time."""
    rows = default_rng(7).normal(size=(5000, 512)).astype(np.float32)
    for directions in (6, 0):
        moments = _moments(directions)
        here = errors.quantized(NATIVE, "q4_K", rows, moments, Metric(moments.form()))
        with helpers.Helpers(2) as pool:
            first, second = (pool.quantized("m", "q4_K", rows, moments) for _ in range(2))

        losses = [divergences(NATIVE.dequantize("q4_K", d) - rows, moments).sum() for d in (here, first)]
        assert len(rows) * 512 > helpers._BATCH_WEIGHTS
        assert (first == second).all() and losses[1] == pytest.approx(losses[0], rel=1e-4)


def _moments(directions: int) -> Moments:
    wide = default_rng(3).normal(size=(directions, 512)).astype(np.float32)
    inputs = (wide**2).sum(axis=0) + 0.5
    return Moments(inputs, np.ones(24, np.float32), np.array(1), wide if directions else None)


def test_a_killed_helper_is_one_error():
    """Whoever kills it, memory or a person: the build ends with what happened, and nothing hangs."""
    moments = Moments(np.ones(512, np.float32), np.ones(24, np.float32), np.array(1))
    with helpers.Helpers(1) as pool:
        pool.quantized("m", "q4_0", ROWS, moments)
        pool._started[0].process.kill()
        with pytest.raises(EngineDied, match="the helper that rounds ended by SIGKILL"):
            pool.quantized("m", "q4_0", ROWS, moments)
