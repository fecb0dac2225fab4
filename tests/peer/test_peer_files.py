"""Built files in another build of llama.cpp, and recipes in its own quantizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from penjing.build import Builder, Recipe
from penjing.engines.llamacpp import LlamaCpp
from penjing.engines.llamacpp.engine import LlamaSession
from penjing.formats import BY_NAME
from penjing.gguf import read_header, read_model
from penjing.plan import Settings
from penjing.progress import Bar
from penjing.quality import stock
from penjing.quantize.native import Native
from penjing.shrink import recipe_lines

PROSE = "The river rises in the hills, runs through three towns, and reaches the sea. In the second town " * 4
COUNTING = "The numbers are 1, 2, 3, 4, 5, 6, 7,"
# As llama-cpp-python runs by default.
SETTINGS = Settings(1, 1, repack=False, prefill_repack=False, flash_attention="off", context_tokens=512)
KINDS = ("q4_0", "q8_0", "q6_K", "q5_1", "q4_K", "iq4_nl", "q5_0", "q4_1", "q3_K", "f16", "q5_K")


@pytest.fixture(scope="session")
def types(source: Path) -> dict[str, str]:
    """A type for every matrix, neighbours in different ones."""
    matrices = [t for t in read_model(source).tensors if stock.is_quantized(t)]
    pairs = zip(matrices, cycle(KINDS), strict=False)
    return {t.name: stock.fallback(kind, t.shape[0]) for t, kind in pairs}


@pytest.fixture(scope="session")
def built(source: Path, types: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "mixed.gguf"
    Builder(read_header(source), None, Native()).build(Recipe(types, "", refined=False), out, Bar())
    return out


@pytest.fixture(scope="session")
def session(built: Path) -> Iterator[LlamaSession]:
    with LlamaCpp().open(built, SETTINGS) as opened:
        yield opened


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def overrides(types: Mapping[str, str]) -> list[tuple[str, int]]:
    """The recipe as `llama-quantize --tensor-type-file` hands it on: patterns in lower case, in order."""
    pairs = (line.split("=") for line in recipe_lines(types).split())
    return [(pattern.lower(), BY_NAME[kind].id) for pattern, kind in pairs]


# --- built files ------------------------------------------------------------------------------------------


def test_the_same_words_follow(peer, session, built):
    """Every token that the peer chooses is the one that the pinned engine finds most probable there."""
    start = session.tokenize(COUNTING)
    found = peer.continuation(built, start, 32)
    own = np.concatenate([rows.copy() for rows in session.logits(start + found)])

    assert own[len(start) - 1 : -1].argmax(axis=1).tolist() == found


def test_probabilities_are_the_same_but_for_rounding(peer, session, built, tmp_path):
    """Activations are rounded to 8 bits, so builds for other instructions differ as much as attention kernels.

    Seen: 0.001 to 0.004 nats, both between the two builds and between the two attention kernels of one.
    """
    tokens = session.tokenize(PROSE)
    own = log_probabilities(np.concatenate([rows.copy() for rows in session.logits(tokens)]))
    peer.logits(built, tokens, tmp_path / "logits.npy")
    real = log_probabilities(np.load(tmp_path / "logits.npy"))

    assert (np.exp(own) * (own - real)).sum(axis=1).mean() < 0.01


# --- recipes ----------------------------------------------------------------------------------------------


def test_a_recipe_gives_every_tensor_its_type(peer, source, types):
    """In whatever order its lines come."""
    for ordered in (types, dict(reversed(types.items()))):
        real = peer.planned_types(source, stock.FILE_TYPES["Q4_K_M"], overrides=overrides(ordered))

        assert {name: real[name] for name in types} == types


def test_a_recipe_for_one_layer_is_for_no_other(peer, source):
    """`blk.1.` is no part of `blk.10.` to `blk.19.`, nor `output.weight` of `attn_output.weight`."""
    usual = stock.uniform(read_model(source), "q4_0")
    chosen = {n: "q8_0" for n in usual if n.startswith("blk.1.") or n == "output.weight"}
    real = peer.planned_types(source, stock.FILE_TYPES["Q4_0"], pure=True, overrides=overrides(chosen))

    assert len(chosen) == 8
    assert {name: real[name] for name in usual} == usual | chosen


def test_a_recipe_makes_the_same_file(peer, source, types, built, tmp_path):
    """Without refinement a build is what llama.cpp's quantizer makes of its recipe: types, and all bytes but a few.

    Here every byte was the same; compilers that fuse other multiplications and additions may round some apart.
    """
    made = tmp_path / "made.gguf"
    peer.quantize(source, made, stock.FILE_TYPES["Q4_K_M"], overrides=overrides(types))
    real, own = ({t.name: t for t in read_header(path).tensors} for path in (made, built))

    assert {name: t.type for name, t in real.items()} == {name: t.type for name, t in own.items()}
    a, b = (np.memmap(path, mode="r") for path in (made, built))
    for name, info in real.items():
        theirs, ours = a[info.offset :][: info.n_bytes], b[own[name].offset :][: info.n_bytes]
        assert (theirs == ours).mean() > 0.99, name
