"""The whole of `penjing calibrate`: tokens, sweep, file."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from msgspec import Struct

from penjing import __version__, sensitivities
from penjing.calibrate.config import config_of
from penjing.calibrate.folder_weights import FolderWeights
from penjing.calibrate.gguf_weights import GgufWeights
from penjing.calibrate.sweep import Placed, Sweep, title_of
from penjing.calibrate.walk import Walk, Weights
from penjing.engines.base import Engine
from penjing.errors import UsageError
from penjing.gguf import read_header, read_model
from penjing.plan import Settings
from penjing.progress import bar
from penjing.quality.sensitivity import Sensitivity
from penjing.quantize.native import Native

SEQUENCE_TOKENS = 512
TOKENS = 8192
_LEAST_SEQUENCES = 2


class Calibrated(Struct, frozen=True):
    """What was done: the file, the tokens it rests on, and what it took."""

    sensitivity: str
    tokens: int
    seconds: float
    peak_memory_bytes: int


def calibrate(
    source: Path, out: Path, text: str, engine: Engine, *, tokens: int, seed: int, say: Callable[[str], None]
) -> Calibrated:
    """Sweep over `source`, a GGUF file or a folder of safetensors, and write `out`.

    What was done stands in `OUT.part/`; started again with the same model, text and seed, it goes on there.

    Raises:
        UsageError: a family that is not known here, or a text that is too short.
        BadFile: weights that are no numbers, or a damaged file.
    """
    start = time.monotonic()
    config, weights, model_hash = _open(source)
    ids = _tokens(source, text, engine, tokens, seed)
    walk = Walk(config, weights, ids.shape[1])
    text_sha256 = hashlib.sha256(text.encode()).hexdigest()
    title = title_of(model=model_hash, ids=ids.tobytes().hex(), seed=seed, version=__version__)
    folder = out.with_name(out.name + ".part")
    sweep = Sweep(walk, weights, ids, seed, folder, title)
    say(f"calibrating {len(walk.layers)} layers on {ids.size} tokens")
    with bar("calibrating", sweep.steps) as shown:
        moments = sweep.run(shown)
    found = Sensitivity(moments, model_hash, "measured", ids.size, seed, text_sha256, __version__)
    sensitivities.save(out, found)
    sweep.drop()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Calibrated(str(out), ids.size, time.monotonic() - start, peak)


class _Both(Weights, Placed, Protocol):
    """Weights that also know where they lie in GGUF."""


def _open(source: Path) -> tuple[Any, _Both, str]:
    """(configuration, weights, hash of the model)."""
    if source.is_dir():
        folder = FolderWeights(source)
        return folder.config, folder, ""
    header, model = read_header(source), read_model(source)
    config = config_of(header, model)
    return config, GgufWeights(header, config, Native()), sensitivities.model_hash(header)


def _tokens(source: Path, text: str, engine: Engine, tokens: int, seed: int) -> np.ndarray:
    """(sequences, tokens) of ids: pieces of the text, drawn by `seed`, each with the model's start token."""
    start, ids = _tokenize_folder(source, text) if source.is_dir() else _tokenize(source, text, engine)
    length = SEQUENCE_TOKENS - len(start)
    pieces = [start + ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    if len(pieces) < _LEAST_SEQUENCES:
        need = _LEAST_SEQUENCES * SEQUENCE_TOKENS
        raise UsageError(
            f"the text has {len(ids)} tokens, at least {need} are needed",
            hint="take a longer text: `--text FILE`; without it the text that ships is used",
        )
    order = np.random.default_rng(seed).permutation(len(pieces))
    wanted = max(_LEAST_SEQUENCES, tokens // SEQUENCE_TOKENS)
    return np.array([pieces[i] for i in order[:wanted]])


def _tokenize(source: Path, text: str, engine: Engine) -> tuple[list[int], list[int]]:
    settings = Settings(threads=1, prefill_threads=1, context_tokens=256, repack=False, prefill_repack=False)
    with engine.open(source, settings, start_seconds=600, warm_up=False) as session:
        return session.tokenize(""), session.tokenize(text, start=False)


def _tokenize_folder(source: Path, text: str) -> tuple[list[int], list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    start = list(tokenizer("")["input_ids"])
    return start, list(tokenizer(text, add_special_tokens=False)["input_ids"])
