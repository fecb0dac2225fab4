"""Guessing ahead: what is guessed, what it saves, that answers stay what they are, and who uses it."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import small_models
from commands import penjing, refused
from gguf_families import FAMILIES, VOCABULARY
from gguf_files import real_model, write
from penjing import drafts, guessing_heads, store
from penjing.drafting import Habit, Known, Lookup, replay, seconds_of
from penjing.drafts import Proof, Report
from penjing.engines.base import Finished, Message, Sampling
from penjing.engines.llamacpp import LlamaCpp
from penjing.errors import EngineError
from penjing.gguf import read_model
from penjing.plan import Drafting, Settings

PLAIN = Settings(2, 2, repack=False, prefill_repack=False, context_tokens=512)
GREEDY = Sampling(temperature=0)
TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=60)
TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))],
    "tokenizer.ggml.scores": [0.0] * VOCABULARY,
    "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (VOCABULARY - 3),
}

# --- what is guessed, and what that saves ---------------------------------------------------------------


def looked_up(text, matched, tokens):
    """llama.cpp's rule for `ngram-simple`, read in common/ngram-map.cpp and written as it is there."""
    *before, sampled = text
    if len(before) <= matched + tokens + 1:
        return []
    pattern = [*before[len(before) - matched + 1 :], sampled]
    for start in range(len(before) - matched - 1, 0, -1):
        if before[start : start + matched] == pattern:
            count = min(tokens, len(before) - (start + matched))
            return before[start + matched :][:count] if count >= matched else []
    return []


@given(TEXTS, st.integers(1, 4), st.integers(1, 8), st.integers(0, 50))
@settings(max_examples=300, deadline=None)
def test_a_lookup_follows_the_engines_rule(text, matched, tokens, seen):
    """However much of the text it saw before."""
    lookup = Lookup(matched, tokens)
    lookup.guess(text[: max(1, seen)], 100)
    assert list(lookup.guess(text, 100)) == looked_up(text, matched, tokens)


@given(TEXTS, TEXTS, st.integers(1, 3), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_every_token_is_drawn_once(prompt, answer, matched, tokens):
    """Each pass draws one token and those that were guessed right before it; without guesses each draws one."""
    passes, right = replay(prompt, answer, Lookup(matched, tokens), tokens)
    assert sum(passes.values()) + right == len(answer) - 1
    assert right <= sum(n * count for n, count in passes.items())
    none, nothing = replay(prompt, answer, Known([]), 0)
    assert nothing == 0 and none.total() == len(answer) - 1


def test_habits_are_means_over_kinds_of_prompts():
    """Passes for each drawn token; how far the kinds are apart is half of what they differ by."""
    habit = Habit(Drafting("ngram", 4, 2), {"edit": {0: 0.2, 4: 0.2}, "chat": {0: 0.6}})
    assert habit.usual == pytest.approx({0: 0.4, 4: 0.1})
    assert habit.spread == pytest.approx(0.2)  # half of 0.6 - 0.4, over 0.5


def test_a_perfect_draft_model():
    """It is right every time, so that passes are as few as can be."""
    text = list(range(100, 140))
    passes, right = replay(text[:8], text[8:], Known([*text[1:], 0]), 4)
    assert dict(passes) == {4: 6, 0: 1} and right == 24


def test_seconds_of_passes():
    """A pass that checks g guesses has g + 1 tokens; between two that were timed it lies on their line."""
    times = {1: 1.0, 3: 2.0, 5: 2.5}
    assert seconds_of({0: 7}, times) == 7
    assert seconds_of({1: 2, 4: 1}, times) == pytest.approx(2 * 1.5 + 2.5)
    assert seconds_of({2: 3}, times, guess_seconds=0.1) == pytest.approx(3 * 2.2)


# --- the engine -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session():
    with LlamaCpp().open(real_model(), PLAIN) as opened:
        yield opened


def answered(session, text, drafting, sampling=GREEDY, tokens=48):
    session.configure(replace(PLAIN, drafting=drafting))
    prompt = session.tokenize(session.render([Message("user", text)]), special=True)
    *_, end = session.generate(prompt, tokens, sampling)
    assert isinstance(end, Finished)
    return end


ASKED = ("Repeat these words three times: apple, pear, plum, cherry, fig, grape.", "Why is the sky blue?")
WAYS = (Drafting("ngram", 8, 2), Drafting("ngram", 4, 4), Drafting("model", 3, draft_model=str(real_model())))


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=7)], ids=["greedy", "drawn"])
def test_answers_stay_what_they_are(session, way, sampling):
    """Token by token, also where they are drawn with a seed; and some guesses were right."""
    right = 0
    for text in ASKED:
        plain, quick = answered(session, text, Drafting(), sampling), answered(session, text, way, sampling)
        assert quick.tokens == plain.tokens
        assert quick.reason == plain.reason and quick.decode.tokens == plain.decode.tokens
        assert 0 <= quick.right <= quick.guessed and plain.guessed == 0
        right += quick.right
    assert right > 0 or sampling != GREEDY


def test_what_a_replay_says_is_what_happens(session):
    """Guesses made and guesses right, counted without running them."""
    way = Drafting("ngram", 8, 2)
    quick = answered(session, ASKED[0], way, tokens=10)
    prompt = session.tokenize(session.render([Message("user", ASKED[0])]), special=True)
    passes, right = replay(prompt, quick.tokens, Lookup(2, 8), 8)
    assert quick.reason == "length"  # an end token would be one more
    assert (sum(n * count for n, count in passes.items()), right) == (quick.guessed, quick.right)


def test_checking_several_tokens_in_one_pass(session):
    """A pass over more tokens takes longer, and less than as many passes over one."""
    session.configure(replace(PLAIN, drafting=Drafting("ngram", 15, 2)))
    one, many = (min(s.seconds for s in session.time("check", n, 64, 3)) for n in (1, 16))
    assert one < many < 16 * one


def test_a_draft_model_with_other_tokens(session, tmp_path):
    """It is refused by name of the option, and the session lives on."""
    other = small_models.write(tmp_path / "small.gguf")
    with pytest.raises(EngineError, match="49152"):
        answered(session, "Hi", Drafting("model", 2, draft_model=str(other)))
    assert answered(session, "Hi", Drafting(), tokens=2).tokens


def test_drafting_heads_change_nothing(tmp_path):
    """Heads in the model's own file run in the engine's server, on a model that keeps no state and one that does."""
    for family in ("glm4moe", "qwen35"):
        path = write(tmp_path / f"{family}.gguf", FAMILIES[family], extra=TOKENIZER)
        assert guessing_heads.has_heads(read_model(path))
        found = guessing_heads.proofs(path, PLAIN, LlamaCpp(), [("any", [1, 5, 6, 7, 8])], 12)
        assert [p.drafting.tokens for p in found] == [1, 2, 3]
        assert all(p.same_answers and p.ratio["any"] > 0 for p in found)


# --- the commands ---------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n---\n".join(ASKED))
    return path


@pytest.fixture
def place(measured: Path, tmp_path: Path) -> dict[str, str]:
    """An environment whose cache knows this machine, and may be changed."""
    cache = tmp_path / "cache"
    shutil.copytree(measured, cache)
    return {"PENJING_CACHE": str(cache)}


def document(*words: str, place: dict[str, str]) -> Any:
    done = penjing(*words, "--json", env=place)
    assert done.code == 0, done.stderr
    return json.loads(done.stdout)


def test_the_command_measures_and_remembers(place: dict[str, str], prompts: Path, monkeypatch):
    """Times, what was tried and a verdict, kept for plans; and how guesses went, for those that choose formats."""
    monkeypatch.setenv("PENJING_CACHE", place["PENJING_CACHE"])
    report = document("draft", "--prompts", str(prompts), "--answer", "24", place=place)
    assert set(report["decode_tokens_per_s"]) == {"yours"} and report["check_seconds"]["1"] > 0
    assert {t["drafting"]["kind"] for t in report["trials"]} == {"ngram"} and report["why"]
    habits = drafts.habits(real_model(), read_model(real_model()))
    told = {str(Drafting(**t["drafting"])): t["passes"]["yours"] for t in report["trials"]}
    assert {str(h.drafting): {str(n): p for n, p in h.passes["yours"].items()} for h in habits} == told
    (kept,) = (Path(place["PENJING_CACHE"]) / "drafts").iterdir()
    assert json.loads(kept.read_text())["why"] == report["why"]
    shown = penjing("draft", "--prompts", str(prompts), "--answer", "24", env=place)
    assert "yours" in shown.stdout and "predicted" in shown.stdout and "time of decode" in shown.stdout


def test_what_won_is_used(place: dict[str, str], prompts: Path):
    """By plans and answers of one user, unless it is switched off; the answer stays what it is."""
    document("draft", "--prompts", str(prompts), "--answer", "24", place=place)
    (kept,) = (Path(place["PENJING_CACHE"]) / "drafts").iterdir()
    way = Drafting("ngram", 8, 2)
    proof = Proof(way, {"yours": 0.9}, {"yours": 0.5}, same_answers=True)
    won = replace(store.read_json(kept, Report), chosen=way, proofs=(proof,), why="it wins")
    kept.write_bytes(msgspec.json.encode(won))
    plans = [
        document("plan", *words, place=place)["chosen"]
        for words in (["--draft", "off"], [], ["--users", "2"])
    ]
    assert [p["settings"]["drafting"]["kind"] for p in plans] == ["none", "ngram", "none"]
    rates = [p["estimate"]["decode_tokens_per_s"]["value"] for p in plans]
    assert rates[1] > 1.4 * rates[0] and "it wins" in plans[1]["why"]  # beside load rates are taken anew
    words = ("run", ASKED[0], "--max-tokens", "24", "--temperature", "0")
    quick, plain = (document(*words, *more, place=place) for more in ([], ["--draft", "off"]))
    assert quick["plan"]["chosen"]["settings"]["drafting"]["tokens"] == 8
    assert quick["text"] == plain["text"]


def test_the_server_guesses_ahead_as_well():
    """The engine's own n-grams, with the same answer and guesses that were right."""
    found = []
    for way in (Drafting(), Drafting("ngram", 8, 2)):
        with LlamaCpp().serve(
            real_model(), replace(PLAIN, drafting=way), host="127.0.0.1", port=0, alias="m"
        ) as serving:
            asked = {"prompt": ASKED[0], "n_predict": 48, "temperature": 0, "return_tokens": True}
            request = urllib.request.Request(f"{serving.url}/completion", json.dumps(asked).encode())
            with urllib.request.urlopen(request, timeout=60) as answer:
                reply = json.load(answer)
            found.append((reply["tokens"], reply["timings"].get("draft_n_accepted", 0)))
    (plain, none), (quick, right) = found
    assert quick == plain and none == 0 and right > 0


def test_what_cannot_be_drafted(tmp_path: Path, place: dict[str, str]):
    """No prompts, no such file."""
    empty = tmp_path / "empty.txt"
    empty.write_text("\n---\n  \n")
    assert "no prompt" in refused("draft", "--prompts", str(empty), env=place)[0]
    assert "none.txt" in refused("draft", "--prompts", str(tmp_path / "none.txt"), env=place)[0]
    assert "none.gguf" in refused("draft", "--draft-model", str(tmp_path / "none.gguf"), env=place)[0]
