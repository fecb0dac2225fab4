"""Two layouts of the weights in one engine: the cache is handed over whole between prefill and decode."""

from __future__ import annotations

import pytest

import random_model
from penjing.cost.memory import predict_memory
from penjing.engines.base import Finished, Message, Sampling, Text
from penjing.engines.llamacpp import LlamaCpp
from penjing.gguf import read_model
from penjing.plan import Settings

from gguf_files import real_model  # isort: skip

ONE = Settings(1, 1, repack=False, prefill_repack=False, context_tokens=512)
SPLIT = Settings(1, 1, repack=True, prefill_repack=False, context_tokens=512)


def answer(settings: Settings, n_tokens: int = 24) -> tuple[str, Finished]:
    with LlamaCpp().open(real_model(), settings) as session:
        tokens = session.tokenize(session.render([Message("user", "Count from one to ten.")]), special=True)
        *pieces, end = session.generate(tokens, n_tokens, Sampling(temperature=0))
    assert all(isinstance(piece, Text) for piece in pieces)
    return "".join(piece.text for piece in pieces), end


def test_handing_over_changes_nothing():
    """No tensor of this file can be repacked, so both layouts compute alike: the greedy answers are equal."""
    assert answer(ONE)[0] == answer(SPLIT)[0]


@pytest.mark.parametrize("settings", [ONE, SPLIT, Settings(1, 1, context_tokens=512, mapped=False)])
def test_memory_of_each_layout_is_predicted(settings, tmp_path):
    """Weights by class are predicted to one percent and the total to fifteen, with one layout or two."""
    path = tmp_path / "tiny.gguf"
    random_model.write(path, "tiny", "Q4_0")
    engine = LlamaCpp()
    with engine.open(path, settings) as session:
        seen = session.memory
    expected = predict_memory(read_model(path), settings, engine.traits(["avx2"]))

    assert expected.weights_bytes + expected.repacked_bytes == pytest.approx(
        seen.weights_bytes + seen.repacked_bytes, rel=0.01, abs=200_000
    )
    assert expected.cache_bytes == seen.cache_bytes
    assert expected.total_bytes == pytest.approx(seen.total_bytes, rel=0.15)


def test_prefill_and_decode_can_be_timed_in_turn():
    """Timing one phase leaves the other one ready, at any depth, again and again."""
    with LlamaCpp().open(real_model(), SPLIT) as session:
        for kind, tokens, depth in (("prefill", 32, 0), ("decode", 4, 64), ("prefill", 32, 64)) * 2:
            samples = session.time(kind, tokens, depth, 2)

            assert [(tokens, depth)] * 2 == [(s.tokens, s.depth) for s in samples]
            assert all(s.seconds > 0 and s.cpu_seconds > 0 for s in samples)
