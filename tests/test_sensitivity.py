"""Sensitivities: the formula, the file, and the prior for models that nobody calibrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.random import default_rng

import gguf_files
from gguf_families import FAMILIES
from penjing import prior, sensitivities
from penjing.errors import BadFile
from penjing.gguf import read_header, read_model
from penjing.quality import stock
from penjing.quality.sensitivity import Moments, Sensitivity, divergences
from penjing.quantize.native import Native
from penjing.quantize.tensors import Tensors


def moments(seed: int = 0, columns: int = 64, rows: int = 8, k: int = 5) -> Moments:
    draw = default_rng(seed)
    directions = draw.normal(size=(k, columns)).astype(np.float32)
    inputs = (directions**2).sum(axis=0) + draw.random(columns).astype(np.float32)
    return Moments(
        inputs, draw.random(rows).astype(np.float32), np.array(100), directions, np.array([0.1, 0.2])
    )


@given(st.integers(0, 10_000), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_the_divergence_is_the_quadratic_form_of_h(seed, factor):
    """½·Δ·H·Δᵀ of each row, and so with the square of the error."""
    m, error = moments(seed), default_rng(seed + 1).normal(size=(8, 64)).astype(np.float32)
    expected = 0.5 * np.einsum("ij,jk,ik->i", error, m.form().full(), error)

    np.testing.assert_allclose(divergences(error, m), expected, rtol=1e-3)
    np.testing.assert_allclose(divergences(factor * error, m), factor**2 * expected, rtol=2e-3)


def test_h_keeps_its_diagonal():
    """Directions move strength off the diagonal, they add none to it."""
    m = moments()

    np.testing.assert_allclose(np.diag(m.form().full()), m.inputs, rtol=1e-5)


def test_noise_goes_with_the_blocks_of_activations():
    """Types in blocks of 256 use the second figure, all other quantized types the first, plain floats none."""
    m = moments()

    assert [m.activation_noise(k) for k in ("q4_0", "nvfp4", "q4_K", "f16")] == [0.1, 0.1, 0.2, 0.0]


def test_a_file_comes_back(tmp_path: Path):
    """Every array and every note."""
    stack = Moments(np.ones((3, 4), np.float32), np.ones((3, 2), np.float32), np.arange(3))
    saved = Sensitivity({"a": moments(), "b": stack}, "m" * 32, "measured", 8192, 7, "t" * 64, "1.2")
    sensitivities.save(tmp_path / "s.npz", saved)
    loaded = sensitivities.load(tmp_path / "s.npz")

    assert replace(saved, moments={}) == replace(loaded, moments={})
    for name, before in saved.moments.items():
        after = loaded.moments[name]
        np.testing.assert_array_equal(before.inputs, after.inputs)
        np.testing.assert_array_equal(before.outputs, after.outputs)
        assert (before.directions is None) == (after.directions is None)


def test_the_file_of_another_model_is_refused(tmp_path: Path):
    """Both hashes are named."""
    header = read_header(gguf_files.write(tmp_path / "m.gguf", FAMILIES["llama"]))
    here = sensitivities.model_hash(header)
    sensitivities.save(tmp_path / "s.npz", Sensitivity({"a": moments()}, "m" * 32, "measured"))

    with pytest.raises(BadFile, match=rf"another model \(m{{12}}, this one is {here[:12]}\)"):
        sensitivities.load_for(tmp_path / "s.npz", header)


def test_what_was_measured_on_a_folder_fits_by_its_shapes(tmp_path: Path):
    """It names no weights of a file; a matrix of another size, or none of that name, is another model."""
    path = gguf_files.write(tmp_path / "m.gguf", FAMILIES["llama"])
    header, model = read_header(path), read_model(path)
    matrix = next(t for t in model.tensors if stock.is_quantized(t))

    def loaded(name: str, columns: int, rows: int) -> Sensitivity:
        known = {name: moments(columns=columns, rows=rows)}
        sensitivities.save(tmp_path / "s.npz", Sensitivity(known, "", "measured"))
        return sensitivities.load_for(tmp_path / "s.npz", header)

    columns, rows = matrix.shape[:2]
    assert loaded(matrix.name, columns, rows).model == sensitivities.model_hash(header)
    with pytest.raises(
        BadFile, match=rf"`{matrix.name}`, \({columns}, {rows + 1}\) when it was measured, is"
    ):
        loaded(matrix.name, columns, rows + 1)
    with pytest.raises(BadFile, match="is not in this one"):
        loaded("blk.99.attn_q.weight", columns, rows)


@pytest.mark.parametrize("cut", [0, 10, 200, 900])
def test_a_damaged_file_is_refused(tmp_path: Path, cut):
    """Cut anywhere, it is no sensitivity file; nothing but BadFile is raised."""
    path = tmp_path / "s.npz"
    sensitivities.save(path, Sensitivity({"a": moments()}, "m" * 32, "measured"))
    path.write_bytes(path.read_bytes()[:cut])

    with pytest.raises(BadFile, match="not a sensitivity file"):
        sensitivities.load(path)


def test_negative_moments_are_refused(tmp_path: Path):
    """No sum of squares is below zero."""
    bad = replace(moments(), inputs=-np.ones(64, np.float32))
    sensitivities.save(tmp_path / "s.npz", Sensitivity({"a": bad}, "m" * 32, "measured"))

    with pytest.raises(BadFile):
        sensitivities.load(tmp_path / "s.npz")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prior_knows_every_family(tmp_path: Path, family):
    """Each matrix that would be quantized has moments of its shape, and their strength is the prior's."""
    path = gguf_files.write(tmp_path / "m.gguf", FAMILIES[family])
    model, tensors = read_model(path), Tensors(read_header(path), Native(1))
    found = prior.sensitivity(model, tensors).moments
    matrices = [t for t in model.tensors if stock.is_quantized(t)]

    assert set(found) == {t.name for t in matrices}
    for tensor in matrices:
        m = found[tensor.name]
        assert (m.inputs.shape[-1], m.outputs.shape[-1]) == tensor.shape[:2]
        square = float((tensors.read(tensor.name) ** 2).mean())
        strength = 0.5 * m.outputs.sum() * m.inputs.sum() / max(1, m.inputs.size // tensor.shape[0]) * square
        expected = prior.prior().strength(tensor, len(model.layers))
        assert strength == pytest.approx(expected, rel=0.5)


def test_the_hash_of_a_copy_is_the_same(tmp_path: Path):
    """It is about the weights, not about the file's name or time; another weight gives another hash."""
    path = gguf_files.write(tmp_path / "m.gguf", FAMILIES["llama"])
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(path.read_bytes()[:-8] + b"\0\0\0\0\0\0\0\1")
    first, second, third = (sensitivities.model_hash(read_header(p)) for p in (path, copy, changed))

    assert first == second != third
