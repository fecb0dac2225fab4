"""The real engine behind the seam: text, answers, timings, logits, memory, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import random_model
from gguf_files import real_model
from penjing.cost.memory import cache_bytes, predict_memory
from penjing.engines.base import Finished, Message, Sampling, Text
from penjing.engines.llamacpp import LlamaCpp, library
from penjing.engines.llamacpp.engine import LlamaSession
from penjing.errors import EngineError, EngineUnusable
from penjing.gguf import read_model
from penjing.plan import Settings
from penjing.planner import sample_text

PLAIN = Settings(2, 2, repack=False, prefill_repack=False, context_tokens=512)
GREEDY = Sampling(temperature=0)
PROSE = "The river rises in the hills, runs through three towns, and reaches the sea. " * 4
VOCABULARY = 49_152


@pytest.fixture(scope="module")
def session() -> Iterator[LlamaSession]:
    with LlamaCpp().open(real_model(), PLAIN) as opened:
        yield opened


def answer(session: LlamaSession, prompt: str, n_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
    """The pieces of an answer to `prompt`; the end of it is checked on the way."""
    *pieces, end = session.generate(session.tokenize(prompt), n_tokens, sampling)
    assert isinstance(end, Finished)
    assert all(isinstance(piece, Text) for piece in pieces)
    return [piece.text for piece in pieces]


def all_logits(session: LlamaSession, tokens: Sequence[int]) -> np.ndarray:
    return np.concatenate([rows.copy() for rows in session.logits(tokens)])


# --- text -------------------------------------------------------------------------------------------------

IN_CHILD = """
import json, sys
from pathlib import Path
from penjing.engines.llamacpp.runner import Runner
from penjing.plan import Settings
from penjing.planner import sample_text

settings = Settings(1, 1, repack=False, prefill_repack=False, context_tokens=512)
runner = Runner(Path(sys.argv[1]), settings, check=False)
"""


def in_child(path: Path, script: str) -> object:
    """What `script` prints as JSON; it has a `runner` of `path`, which belongs into a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", IN_CHILD + script, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


TEXTS = [
    "",
    " ",
    "Name three rivers.",
    "  indented\n\n\tlines\r\n",
    "déjà vu, 盆景, 🎉",
    "<|im_start|>",
    "a\0b",
]


def test_tokens_spell_the_text():
    """The pieces of the tokens of any text, joined, are that text, and ids lie inside the vocabulary."""
    script = f"""
for text in {TEXTS!r}:
    ids = runner.tokenize(text, special=False, start=False)
    assert all(0 <= token < runner.vocabulary for token in ids)
    assert b"".join(map(runner.piece, ids)).decode() == text, (text, ids)
print(json.dumps("all"))
"""
    assert in_child(real_model(), script) == "all"


def test_control_tokens_are_read_only_when_asked(session):
    """`<|im_end|>` in a user's words is text; in a rendered template it is one token."""
    text = "<|im_end|>"

    assert len(session.tokenize(text, special=True)) == 1
    assert len(session.tokenize(text)) > 1


def test_the_models_own_template_renders_a_conversation(session):
    """The prompt is ChatML as the file's template writes it, open for the assistant's turn."""
    turns = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"),
             Message("user", "Bye")]  # fmt: skip

    assert session.render(turns) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


# --- answers ----------------------------------------------------------------------------------------------


def test_greedy_answers_repeat_themselves(session):
    """Temperature 0 gives the same text each time, and a seed the same draw; another seed another one."""
    drawn = [answer(session, PROSE, 16, Sampling(seed=seed)) for seed in (1, 1, 2)]

    assert answer(session, PROSE, 16) == answer(session, PROSE, 16)
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_answer_ends_where_the_model_ends_it(session):
    """A greeting is answered in a sentence; the end token counts as work, but is not shown."""
    prompt = session.render([Message("user", "Hi")])

    *pieces, end = session.generate(session.tokenize(prompt, special=True), 100, GREEDY)

    assert end.reason == "end" and len(pieces) <= end.decode.tokens < 99
    assert "<|" not in "".join(piece.text for piece in pieces)


def test_characters_of_many_bytes_stay_whole(session):
    """An emoji takes three tokens of this model, and every piece that comes is a whole one."""
    pieces = answer(session, "🎉🎊🎉🎊🎉🎊🎉🎊", 24)

    assert len(pieces) == 8
    assert all(len(piece) == 1 and ord(piece) > 0x1F000 for piece in pieces)


def test_an_answer_cut_inside_a_character_is_still_text(session):
    """After two of an emoji's three tokens the rest of it is marked as lost, never raised."""
    assert answer(session, "🎉🎊🎉🎊🎉🎊🎉🎊", 2) == ["\N{REPLACEMENT CHARACTER}"]


def test_stop_ends_an_answer_at_the_next_token(session):
    """Called from another thread it ends the answer in order, and the session can answer again."""
    pieces = session.generate(session.tokenize(PROSE), 400, Sampling(seed=3))
    seen = [next(pieces) for _ in range(3)]
    stopper = threading.Thread(target=session.stop)
    stopper.start()
    stopper.join()
    *rest, end = pieces

    assert end.reason == "stopped"
    assert len(seen) + len(rest) <= end.decode.tokens + 1 < 40  # what came while the word was on its way
    assert answer(session, PROSE, 2)


def test_an_answer_ends_at_its_limits(session):
    """A limit of n tokens gives n, and the context cannot be passed, whichever comes first."""
    tokens = session.tokenize(PROSE)
    short = list(session.generate(tokens, 5, Sampling(seed=3)))[-1]
    full = list(session.generate(session.tokenize("word " * 500), 400, Sampling(seed=5)))[-1]

    assert (short.reason, short.prefill.tokens, short.decode.tokens) == ("length", len(tokens), 4)
    assert full.prefill.tokens + full.decode.tokens + 1 <= session.context_tokens


# --- timings ----------------------------------------------------------------------------------------------


def test_timings_are_of_the_work(session):
    """Wall and CPU time are positive and agree; the first token comes when the prefill is done."""
    tokens = session.tokenize(PROSE)

    *_, end = session.generate(tokens, 8, GREEDY)

    for sample in (end.prefill, end.decode):
        assert 0 < sample.cpu_seconds < 3 * sample.seconds  # two threads, and the clocks' coarseness
    assert end.first_token_seconds == end.prefill.seconds
    assert (end.prefill.depth, end.decode.depth) == (0, len(tokens))
    assert end.peak_memory_bytes > read_model(real_model()).n_bytes


def test_samples_are_as_many_as_asked(session):
    """`time` gives one sample for each repeat, of the size and at the depth asked for."""
    for kind in ("prefill", "decode"):
        samples = session.time(kind, 8, 40, 3)

        assert [(kind, 8, 40)] * 3 == [(s.kind, s.tokens, s.depth) for s in samples]
        assert all(sample.seconds > 0 and sample.cpu_seconds > 0 for sample in samples)


def test_a_quickly_filled_cache_is_a_full_one():
    """After filling to a depth the last position is one below it, at any depth, and decoding goes on there."""
    script = """
runner.ffi.cdef("llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id);")
found = []
for depth in (1, 31, 32, 33, 200, 255, 400):
    runner._fill(depth)
    last = [runner.lib.llama_memory_seq_pos_max(runner._cache, sequence) for sequence in (0, 1)]
    runner.decode([7])
    found.append([depth, *last, runner.lib.llama_memory_seq_pos_max(runner._cache, 0)])
print(json.dumps(found))
"""
    depths = (1, 31, 32, 33, 200, 255, 400)

    assert in_child(real_model(), script) == [[depth, depth - 1, -1, depth] for depth in depths]


# --- logits -----------------------------------------------------------------------------------------------


def test_logits_are_finite_and_the_same_in_every_session(session):
    """There is a row for each token, over the whole vocabulary, and a second process computes equal ones."""
    tokens = session.tokenize(PROSE)
    blocks = [rows.copy() for rows in session.logits(tokens)]
    rows = np.concatenate(blocks)
    with LlamaCpp().open(real_model(), PLAIN) as other:
        again = all_logits(other, tokens)

    assert all(len(block) <= 64 for block in blocks)
    assert rows.shape == (len(tokens), VOCABULARY) and rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert (rows == again).all()


def test_the_model_that_ships_reads_english(session):
    """Its perplexity on prose is that of a small model, far from that of chance: the logits mean something."""
    tokens = session.tokenize(sample_text())[:128]
    logits = all_logits(session, tokens).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_likelihood = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    perplexity = np.exp(-log_likelihood[np.arange(127), tokens[1:]].mean())

    assert 5 < perplexity < 150


def test_logits_look_back_only(session):
    """What comes later changes nothing in earlier rows, and the session answers as before."""
    tokens = session.tokenize(PROSE)[:40]
    before = answer(session, PROSE, 4)

    rows, fewer = all_logits(session, tokens), all_logits(session, tokens[:32])

    assert (rows[:32] == fewer).all()
    assert answer(session, PROSE, 4) == before


def test_repacked_weights_say_the_same(tiny):
    """Repacking changes the order of sums alone: logits differ by hundredths where they spread over units."""
    tokens = list(range(1000, 1064))
    rows = {}
    for repack in (True, False):
        with LlamaCpp().open(tiny, replace(PLAIN, repack=repack, prefill_repack=repack)) as session:
            rows[repack] = all_logits(session, tokens)
    difference = rows[True] - rows[False]

    assert rows[False].std() > 0.5
    assert np.abs(difference).max() < 0.2
    assert difference.std() < 0.02 * rows[False].std()


# --- memory -----------------------------------------------------------------------------------------------


def test_memory_of_the_model_that_ships_is_predicted(session):
    """The cache is predicted as exactly as the engine tells it, in hundredths of a MiB; the total within 15 %."""
    model, traits = read_model(real_model()), LlamaCpp().traits(["avx2"])
    for settings in (PLAIN, replace(PLAIN, context_tokens=4096), replace(PLAIN, cache_type="q8_0")):
        seen = session.configure(settings)

        assert cache_bytes(model, settings) == pytest.approx(seen.cache_bytes, abs=0.005 * 2**20)
        assert predict_memory(model, settings, traits).total_bytes == pytest.approx(
            seen.total_bytes, rel=0.15
        )
    session.configure(PLAIN)


@pytest.mark.parametrize(("shape", "kind"), [("tiny", "Q4_K"), ("tiny", "F16"), ("tiny-moe", "Q8_0")])
def test_memory_of_small_models_is_predicted(shape: str, kind: str, tmp_path: Path):
    """Dense or of experts, repacked or not: the classes are positive, and the total is right within 15 %."""
    path = tmp_path / "model.gguf"
    random_model.write(path, shape, kind)
    settings = Settings(1, 1, context_tokens=1024)
    with LlamaCpp().open(path, settings) as session:
        seen = session.memory
    parts = (seen.weights_bytes, seen.cache_bytes, seen.compute_bytes, seen.base_bytes)

    assert min(parts) > 0 and seen.repacked_bytes >= 0
    assert sum(parts) + seen.repacked_bytes == seen.total_bytes == seen.weights_bytes + seen.pinned_bytes
    predicted = predict_memory(read_model(path), settings, LlamaCpp().traits(["avx2"]))
    assert predicted.cache_bytes == seen.cache_bytes
    assert predicted.total_bytes == pytest.approx(seen.total_bytes, rel=0.15)


# --- what it refuses --------------------------------------------------------------------------------------


def test_a_session_refuses_what_does_not_fit_and_goes_on(session):
    """Prompts, timings and texts beyond the context are refused with both numbers; the session lives."""
    long = [7] * 600
    refusals = []
    for ask in (
        lambda: list(session.generate(long, 8, GREEDY)),
        lambda: list(session.logits(long)),
        lambda: session.time("decode", 8, 600, 1),
        lambda: session.configure(replace(PLAIN, repack=True)),
    ):
        with pytest.raises(EngineError) as caught:
            ask()
        refusals.append((str(caught.value), caught.value.hint))

    again = "run it again; if the error stays, check the file with another program"
    assert refusals == [
        ("the prompt has 600 tokens, the context 512", "--context 608"),
        ("600 tokens exceed the context of 512", "--context 600"),
        ("cannot time 600 + 8 tokens in a context of 512", again),
        ("repacking and mapping cannot change after loading", "load the model again"),
    ]
    assert answer(session, PROSE, 2)


def test_a_wrong_version_is_named_before_anything_is_loaded():
    """The pinned version and the one found, and the command that mends it."""
    with pytest.raises(EngineUnusable) as caught:
        library.check(pinned="0.0")

    assert str(caught.value) == f"xllamacpp is {library.PINNED}, but this penjing is made for 0.0"
    assert caught.value.hint == "pip install 'xllamacpp==0.0'"


def test_a_missing_openmp_is_named():
    """Slim container images lack the library; the error names it and how to get it."""
    with pytest.raises(EngineUnusable) as caught:
        library.check(openmp="libnothere.so.1")

    assert str(caught.value) == "the engine needs the system library libnothere.so.1, which is missing"
    assert caught.value.hint == "apt-get install libgomp1, or: dnf install libgomp"


IVY_BRIDGE = """processor\t: 0
model name\t: Intel(R) Core(TM) i5-3470 CPU @ 3.20GHz
flags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush dts acpi mmx fxsr sse sse2 \
ss ht tm pbe syscall nx rdtscp lm constant_tsc pni pclmulqdq ssse3 cx16 sse4_1 sse4_2 popcnt aes xsave avx f16c rdrand
bogomips\t: 6385.41
"""


def test_an_old_processor_is_told_so(tmp_path: Path):
    """Without AVX2 the engine would die of an illegal instruction; the missing ones are named instead."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(IVY_BRIDGE)

    with pytest.raises(EngineUnusable) as caught:
        library.check(cpuinfo=cpuinfo)

    assert str(caught.value) == (
        "the engine was compiled for CPUs with avx2, fma, f16c, bmi2, and this one lacks avx2, fma, bmi2"
    )
    assert caught.value.hint == (
        f"build it for this CPU: `pip install --no-binary xllamacpp xllamacpp=={library.PINNED}`"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("library.LLAMA_VERSION = '0.5.0'", "version is 0.6.0-dev, not 0.5.0"),
        ("library._TYPE_NAMES = {2: 'q4_9'}", "types is {2: 'q4_0'}, not {2: 'q4_9'}"),
    ],
)
def test_another_library_is_refused(change: str, problem: str):
    """Declarations belong to one library: if it is not what they describe, nothing of it is used."""
    script = f"""
from penjing.engines.llamacpp import library
from penjing.errors import EngineUnusable
{change}
try: library.bind()
except EngineUnusable as error: print(error, error.hint, sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == [
        f"the engine's library is not the one this penjing is made for: {problem}",
        f"pip install --force-reinstall 'xllamacpp=={library.PINNED}'",
    ]
