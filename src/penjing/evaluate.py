"""What a file lost against its source: KL divergence of the next-token distributions, in full precision.

All models read the same sequences, each in a child process of its own, two at a time with half the cores each: two
processes of one thread never wait for each other, where one of two threads may. Log-probabilities stay float32 and in
memory, one sequence at a time: no file of them, no rounding. Peak memory is the models and what three of them say of a
sequence (300 MB each for 512 tokens and a vocabulary of 150,000).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from msgspec import Struct

from penjing.engines.base import Engine, Session
from penjing.errors import BadFile, UsageError
from penjing.gguf.cursor import fetch_again
from penjing.plan import Settings
from penjing.progress import Bar
from penjing.quantize.native import usable_threads

SEQUENCE_TOKENS = 512
_ROWS = 64  # of logits at a time, so that copies of them stay small
_LEAST_SEQUENCES = 2  # one sequence has no spread


class Divergence(Struct, frozen=True):
    """How far a model is from its reference on a text.

    Units:
        kld: mean over tokens of KL(reference ‖ model), nats; kld_stderr: its standard error, clustered by
            sequence, for the tokens of one sequence are not independent.
        kld_p99, kld_p999: percentiles over tokens. same_top: share of tokens with the same likeliest next token.
        ppl_ratio: perplexity of the model over that of the reference, on the text's own tokens.
        sequences: mean KL divergence of each sequence, for paired comparisons.
    """

    kld: float
    kld_stderr: float
    kld_p99: float
    kld_p999: float
    same_top: float
    ppl_ratio: float
    tokens: int
    text_sha256: str
    sequences: tuple[float, ...]


class Perplexity(Struct, frozen=True):
    """exp of the mean negative log-likelihood of a text's tokens, with its error clustered by sequence."""

    ppl: float
    ppl_stderr: float
    tokens: int
    text_sha256: str


class Difference(Struct, frozen=True):
    """KL divergence of one file minus that of another on the same sequences; negative: the first is nearer."""

    kld: float
    kld_stderr: float


def divergences(
    engine: Engine,
    reference: Path,
    candidates: Sequence[Path],
    text: str,
    settings: Settings,
    *,
    most_tokens: int | None = None,
    bar: Bar | None = None,
) -> list[Divergence]:
    """Each candidate against the reference. All are open together; they work in turn.

    Raises:
        UsageError: the text is too short, or a candidate has another vocabulary.
        BadFile: a model computes NaN.
    """
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(open_for_logits(engine, path, settings)) for path in (reference, *candidates)
        ]
        sequences = sequences_of(sessions[0], text, most_tokens)
        for path, session in zip(candidates, sessions[1:], strict=True):
            _check_vocabulary(session, sessions[0], path, reference)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        scores: list[list[_Scores]] = [[] for _ in candidates]
        for tokens in sequences:
            expected = pool.submit(_gather, sessions[0], tokens, reference)
            for n, score in enumerate(pool.map(_scorer(expected, tokens), sessions[1:], candidates)):
                scores[n].append(score)
            if bar:
                bar.advance(len(tokens))
    return [_summary(mine, _hash(text)) for mine in scores]


def _scorer(expected: Future[np.ndarray], tokens: Sequence[int]) -> Callable[[Session, Path], _Scores]:
    """The candidate computes while the reference does, and is scored when both are there."""

    def score(session: Session, path: Path) -> _Scores:
        rows = _gather(session, tokens, path)
        return _score(expected.result(), rows, tokens)

    return score


def perplexity(
    engine: Engine, model: Path, text: str, settings: Settings, *, most_tokens: int | None = None
) -> Perplexity:
    """Perplexity of one file; comparable only between files with the same tokenizer, on the same text."""
    with open_for_logits(engine, model, settings) as session:
        sequences = sequences_of(session, text, most_tokens)
        losses = [float(_losses(_gather(session, tokens, model), tokens).mean()) for tokens in sequences]
    mean, error = _clustered(losses)
    ppl = float(np.exp(mean))
    return Perplexity(ppl, ppl * error, len(losses) * (SEQUENCE_TOKENS - 1), _hash(text))


def difference(one: Divergence, other: Divergence) -> Difference:
    """Paired by sequence: what is hard in the text itself cancels."""
    return Difference(*_clustered([a - b for a, b in zip(one.sequences, other.sequences, strict=True)]))


def settings() -> Settings:
    """For logits: half the cores for each of two models at a time, weights as they are in the file."""
    half = max(1, usable_threads() // 2)
    return Settings(
        threads=half, prefill_threads=half, context_tokens=SEQUENCE_TOKENS, repack=False, prefill_repack=False
    )


def open_for_logits(engine: Engine, path: Path, settings: Settings) -> Session:
    """A session whose context is one sequence, with the weights as they are in the file."""
    return engine.open(path, settings, start_seconds=600, warm_up=False)


def sequences_of(session: Session, text: str, most_tokens: int | None = None) -> list[list[int]]:
    """`text` cut into sequences of equal length, each with the model's start token.

    Of a text that is longer than `most_tokens` they are taken evenly, from its beginning to its end.

    Raises:
        UsageError: fewer than two sequences.
    """
    start = session.tokenize("")
    tokens = session.tokenize(text, start=False)
    length = SEQUENCE_TOKENS - len(start)
    cut = [start + tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)]
    if len(cut) < _LEAST_SEQUENCES:
        need = _LEAST_SEQUENCES * SEQUENCE_TOKENS
        raise UsageError(
            f"the text has {len(tokens)} tokens, at least {need} are needed",
            hint="take a longer text: `--text FILE`; without it the text that ships is used",
        )
    wanted = len(cut) if most_tokens is None else max(_LEAST_SEQUENCES, most_tokens // SEQUENCE_TOKENS)
    if wanted >= len(cut):
        return cut
    return [cut[round(i * (len(cut) - 1) / (wanted - 1))] for i in range(wanted)]


class _Scores(Struct, frozen=True):
    """Of one sequence, for every token: divergence, same top, and both losses."""

    kld: np.ndarray
    same: np.ndarray
    expected_loss: np.ndarray
    loss: np.ndarray


def _gather(session: Session, tokens: Sequence[int], path: Path) -> np.ndarray:
    """Log-probabilities of the next token after every token, float32 (tokens, vocabulary).

    Raises:
        BadFile: the model computes what is no number, as weights that are none make it do.
    """
    rows = np.empty((len(tokens), session.vocabulary), dtype=np.float32)
    at = 0
    for block in session.logits(tokens):
        rows[at : at + len(block)] = log_softmax(block)
        at += len(block)
    if np.isnan(rows).any():
        raise BadFile(f"`{path}` computes NaN: some of its weights are no numbers", fetch_again(str(path)))
    return rows


def _score(expected: np.ndarray, found: np.ndarray, tokens: Sequence[int]) -> _Scores:
    """The last position predicts nothing that the sequence holds; it counts for the divergence alone."""
    klds, sames = [], []
    for at in range(0, len(tokens), _ROWS):
        p, q = expected[at : at + _ROWS], found[at : at + _ROWS]
        klds.append((np.exp(p) * (p - q)).sum(axis=1, dtype=np.float64))
        sames.append(p.argmax(axis=1) == q.argmax(axis=1))
    kld = np.maximum(np.concatenate(klds), 0)
    return _Scores(kld, np.concatenate(sames), _losses(expected, tokens), _losses(found, tokens))


def _losses(logarithms: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Negative log-likelihood of each token after the first."""
    return np.asarray(-logarithms[np.arange(len(tokens) - 1), np.asarray(tokens[1:])])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Row by row, float32, shifted by the greatest so that nothing overflows."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)).astype(np.float32)
    return np.asarray(shifted, dtype=np.float32)


def _summary(scores: Sequence[_Scores], text_sha256: str) -> Divergence:
    klds = np.concatenate([s.kld for s in scores])
    sequences = [float(s.kld.mean()) for s in scores]
    mean, error = _clustered(sequences)
    extra = (
        np.concatenate([s.loss for s in scores]).mean()
        - np.concatenate([s.expected_loss for s in scores]).mean()
    )
    return Divergence(
        kld=mean,
        kld_stderr=error,
        kld_p99=float(np.percentile(klds, 99)),
        kld_p999=float(np.percentile(klds, 99.9)),
        same_top=float(np.concatenate([s.same for s in scores]).mean()),
        ppl_ratio=float(np.exp(extra)),
        tokens=len(klds),
        text_sha256=text_sha256,
        sequences=tuple(sequences),
    )


def _clustered(means: Sequence[float]) -> tuple[float, float]:
    """Mean of the sequences' means and its standard error; they are of equal length."""
    return float(np.mean(means)), float(np.std(means, ddof=1) / np.sqrt(len(means)))


def _check_vocabulary(session: Session, reference: Session, path: Path, against: Path) -> None:
    if session.vocabulary != reference.vocabulary:
        raise UsageError(
            f"`{path.name}` has {session.vocabulary} tokens, `{against.name}` has {reference.vocabulary}",
            hint="compare files of the same model",
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
