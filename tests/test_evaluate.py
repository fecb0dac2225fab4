"""`penjing eval`: divergence from the source and perplexity, against plain NumPy over the same logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import small_models
from commands import penjing
from penjing import evaluate, texts
from penjing.engines.llamacpp import LlamaCpp
from penjing.evaluate import SEQUENCE_TOKENS, Divergence

TEXT = texts.shipped("report")[-6000:]
TOKENS = 4 * SEQUENCE_TOKENS
CONTRACT = {"kld", "kld_stderr", "kld_p99", "same_top", "ppl_ratio", "tokens", "text_sha256"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.write(tmp_path_factory.mktemp("evaluate") / "source.gguf")


@pytest.fixture(scope="module")
def rounded(source: Path) -> Path:
    """The same weights in Q4_0."""
    return small_models.write(source.with_name("rounded.gguf"), "Q4_0")


@pytest.fixture(scope="module")
def other(source: Path) -> Path:
    """A model of the same shape with other weights."""
    return small_models.write(source.with_name("other.gguf"), seed=1)


def compare(source: Path, *files: Path) -> list[Divergence]:
    return evaluate.divergences(
        LlamaCpp(), source, files, TEXT, evaluate.settings(), most_tokens=TOKENS
    )  # fmt: skip


def logits(path: Path) -> tuple[list[list[int]], list[np.ndarray]]:
    """The sequences of `TEXT`, and for each (tokens, vocabulary) in double precision."""
    with evaluate.open_for_logits(LlamaCpp(), path, evaluate.settings()) as session:
        sequences = evaluate.sequences_of(session, TEXT, TOKENS)
        return sequences, [np.concatenate(list(session.logits(s))).astype(np.float64) for s in sequences]


def log_shares(values: np.ndarray) -> np.ndarray:
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def test_a_file_is_no_distance_from_itself(source: Path):
    """No divergence, every top token the same, the perplexity too."""
    (found,) = compare(source, source)

    assert (found.kld, found.kld_stderr, found.kld_p99) == (0, 0, 0)
    assert (found.same_top, found.ppl_ratio, found.tokens) == (1, 1, TOKENS)


def test_divergence_is_what_the_softmax_says(source: Path, rounded: Path):
    """Mean, percentile, equal tops, perplexity ratio and the error over sequences, recomputed from the logits."""
    (found,) = compare(source, rounded)
    sequences, expected = logits(source)
    _, rows = logits(rounded)
    p, q = [log_shares(e) for e in expected], [log_shares(r) for r in rows]
    klds = [(np.exp(a) * (a - b)).sum(axis=1) for a, b in zip(p, q, strict=True)]
    means = [kld.mean() for kld in klds]
    losses = [
        [-x[np.arange(len(s) - 1), s[1:]].mean() for x, s in zip(shares, sequences, strict=True)]
        for shares in (p, q)
    ]

    assert found.kld > 0.01
    assert found.kld == pytest.approx(np.mean(means), abs=1e-6)
    assert found.kld_stderr == pytest.approx(np.std(means, ddof=1) / 2, abs=1e-6)  # four sequences
    assert found.kld_p99 == pytest.approx(np.percentile(np.concatenate(klds), 99), abs=1e-5)
    same = [a.argmax(1) == b.argmax(1) for a, b in zip(expected, rows, strict=True)]
    assert found.same_top == pytest.approx(np.mean(same))
    assert found.ppl_ratio == pytest.approx(np.exp(np.mean(losses[1]) - np.mean(losses[0])), rel=1e-5)


def test_two_files_are_compared_sequence_by_sequence(source: Path, rounded: Path, other: Path):
    """The difference is that of the means; its error is that of the differences, so it does not depend on the order."""
    near, far = compare(source, rounded, other)
    difference, opposite = evaluate.difference(near, far), evaluate.difference(far, near)
    each = np.subtract(near.sequences, far.sequences)

    assert near.kld < far.kld
    assert difference.kld == pytest.approx(near.kld - far.kld)
    assert difference.kld_stderr == pytest.approx(each.std(ddof=1) / np.sqrt(len(each)))
    assert (opposite.kld, opposite.kld_stderr) == (-difference.kld, difference.kld_stderr)


def test_files_measured_together_or_alone_are_the_same(source: Path, rounded: Path, other: Path):
    """What else is open changes no figure."""
    assert compare(source, rounded, other)[0] == compare(source, rounded)[0]


def test_perplexity_is_what_the_softmax_says(rounded: Path):
    """exp of the mean loss of all tokens but the first of each sequence."""
    found = evaluate.perplexity(LlamaCpp(), rounded, TEXT, evaluate.settings(), most_tokens=TOKENS)
    sequences, rows = logits(rounded)
    losses = [
        -log_shares(x)[np.arange(len(s) - 1), s[1:]].mean() for x, s in zip(rows, sequences, strict=True)
    ]

    assert found.ppl == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found.tokens == 4 * (SEQUENCE_TOKENS - 1)
    assert found.ppl_stderr == pytest.approx(found.ppl * np.std(losses, ddof=1) / 2, rel=1e-3)


# ---- the command ---------------------------------------------------------------------------------


def test_eval_keeps_its_contract(source: Path, rounded: Path, other: Path):
    """One JSON document; with `--versus` the other file and the paired difference are in it."""
    words = ("eval", str(rounded), "--against", str(source), "--tokens", "1024")
    alone = json.loads(penjing(*words, "--json").stdout)
    both = json.loads(penjing(*words, "--versus", str(other), "--json").stdout)

    assert CONTRACT <= set(alone) and alone["tokens"] == 1024
    assert alone == {key: both[key] for key in alone}
    assert CONTRACT <= set(both["versus"])
    assert both["difference"]["kld"] == pytest.approx(both["kld"] - both["versus"]["kld"])


def test_eval_speaks_to_people(source: Path, rounded: Path, other: Path):
    """A table and who is nearer; or a perplexity."""
    words = ("eval", str(rounded), "--against", str(source), "--versus", str(other), "--tokens", "1024")
    done = penjing(*words)
    ppl = penjing("eval", str(rounded), "--ppl", "--tokens", "1024")

    assert "KL divergence" in done.stdout and "nats per token" in done.stdout
    assert "this file is nearer" in done.stdout
    assert ppl.stdout.startswith("perplexity ") and ppl.stdout.endswith(" over 1022 tokens\n")


def test_eval_without_a_source(source: Path, refuses):
    """Both ways to go on are offered."""
    problem, hint = refuses("eval", str(source))

    assert problem == "nothing to compare with"
    assert f"penjing eval {source} --against" in hint and "--ppl" in hint


def test_a_text_that_is_too_short(source: Path, tmp_path: Path, refuses):
    """With the tokens that it has and those that it needs."""
    short = tmp_path / "short.txt"
    short.write_text("A short text.")

    for words in (("--ppl",), ("--against", str(source))):
        assert refuses("eval", str(source), "--text", str(short), *words) == (  # one is merged of two
            "the text has 12 tokens, at least 1024 are needed",
            "take a longer text: `--text FILE`; without it the text that ships is used",
        )


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_a_text_that_is_none(command: str, source: Path, tmp_path: Path, refuses):
    """Not UTF-8, a folder, or nothing at all."""
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café ".encode("latin1") * 1000)
    out = ("--out", str(tmp_path / "s")) if command == "calibrate" else ("--ppl",)

    problem, hint = refuses(command, str(source), *out, "--text", str(latin))
    assert problem == f"`{latin}` is not UTF-8 text: byte 3 is no character" and hint.startswith("iconv ")
    assert refuses(command, str(source), *out, "--text", str(tmp_path))[0].endswith("Is a directory")
    assert refuses(command, str(source), *out, "--text", "none.txt")[0].endswith("No such file or directory")


def test_models_of_other_tokens(source: Path, tiny: Path, refuses):
    """A distribution over other tokens cannot be compared."""
    assert refuses("eval", str(tiny), "--against", str(source)) == (
        "`tiny.gguf` has 49152 tokens, `source.gguf` has 258",
        "compare files of the same model",
    )


def test_weights_that_are_no_numbers(source: Path, tmp_path: Path, refuses):
    """The file is named, whether it is the source or the copy, and no figure is printed."""
    nan = Path(shutil.copy(source, tmp_path / "nan.gguf"))
    small_models.spoil(nan, "blk.1.ffn_up.weight")
    problem = f"`{nan}` computes NaN: some of its weights are no numbers"

    assert refuses("eval", str(nan), "--against", str(source))[0] == problem
    assert refuses("eval", str(source), "--against", str(nan))[0] == problem
    assert refuses("eval", str(nan), "--ppl")[0] == problem
