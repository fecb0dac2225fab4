"""The types of stock mixes, beside those that llama.cpp's own quantizer chooses.

Read in 0.5.0, the peer's, and in 0.6.0-dev, the engine's: src/llama-quant.cpp is the same, byte for byte.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_files import real_model
from peer_process import Peer
from peer_shapes import MODELS, write_hollow
from penjing.gguf import read_model
from penjing.quality import stock

UNIFORM = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K", "IQ4_NL", "IQ4_XS", "F16")


def check(peer: Peer, path: Path) -> None:
    """Every mix, with an importance matrix and without, and every uniform type."""
    model = read_model(path)
    kept = {t.name: t.type for t in model.tensors}
    wrong: dict[str, str] = {}
    for name in stock.MIXES:
        for importance in (False, True):
            found = kept | stock.mix(model, name, importance=importance)
            real = peer.planned_types(path, stock.FILE_TYPES[name], importance=importance)
            _compare(f"{name} {importance}", found, real, wrong)
    for name in UNIFORM:
        found = kept | stock.uniform(model, name.lower().replace("_k", "_K"))
        _compare(f"pure {name}", found, peer.planned_types(path, stock.FILE_TYPES[name], pure=True), wrong)

    assert not wrong


def _compare(label: str, found: dict[str, str], real: dict[str, str], wrong: dict[str, str]) -> None:
    assert found.keys() == real.keys()
    wrong.update({f"{label} {n}": f"{kind}, not {real[n]}" for n, kind in found.items() if kind != real[n]})


def test_the_peer_is_the_version_that_was_read(peer):
    assert peer.version().startswith("0.5.0")


@pytest.mark.parametrize("name", MODELS)
def test_types_of_a_shape(peer, name, tmp_path):
    """Every family that penjing knows, and shapes that the rules make exceptions for."""
    check(peer, write_hollow(tmp_path / "model.gguf", MODELS[name]))


def test_types_of_the_shipped_model(peer, source):
    """As it is: tied, in Q4_1; and in F16 with an output of its own."""
    check(peer, real_model())
    check(peer, source)


def test_what_is_planned_is_what_is_written(peer, tmp_path):
    """The dry runs above tell the truth, and penjing's reader sees it."""
    source = write_hollow(tmp_path / "model.gguf", MODELS["four share keys"])
    peer.quantize(source, tmp_path / "made.gguf", stock.FILE_TYPES["Q4_K_M"])
    made = {t.name: t.type for t in read_model(tmp_path / "made.gguf").tensors}

    assert made == peer.planned_types(source, stock.FILE_TYPES["Q4_K_M"])
    assert made.items() >= stock.mix(read_model(source), "Q4_K_M").items()
