"""Heads for drafting (MTP) that lie in a model's own file, run by the engine's server, in turn with none.

They read hidden states of the model, so what they would guess is known only by running them.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from penjing.drafts import Proof
from penjing.engines.base import Engine
from penjing.errors import EngineError
from penjing.model import Model
from penjing.plan import Drafting, Settings

TOKENS = (1, 2, 3)
_ROUNDS = 2
_ANSWER_SECONDS = 600.0


class _Served(Struct, frozen=True):
    """One answer of the server."""

    domain: str
    tokens: tuple[int, ...]
    seconds: float
    guessed: int
    right: int


def has_heads(model: Model) -> bool:
    """The file has heads for drafting."""
    return any(t.role == "draft" for t in model.tensors)


def proofs(
    path: Path, settings: Settings, engine: Engine, asked: Sequence[tuple[str, Sequence[int]]], tokens: int
) -> list[Proof]:
    """A proof for each number of tokens guessed ahead; none where the engine cannot run the heads.

    `asked`: kind and tokens of each prompt. `tokens`: the longest answer.
    """
    settings = replace(settings, drafting=Drafting(), prefill_repack=settings.repack)
    ways = [Drafting(), *(Drafting("mtp", n) for n in TOKENS)]
    answers: dict[Drafting, list[_Served]] = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way in ways:
            try:
                answers[way] += _answers(path, replace(settings, drafting=way), engine, asked, tokens)
            except (EngineError, OSError):  # heads of a family that this engine does not know
                if way.kind == "none":
                    raise
                return []
    return [_proof(way, answers[way], answers[ways[0]]) for way in ways[1:]]


def _answers(
    path: Path, settings: Settings, engine: Engine, asked: Sequence[tuple[str, Sequence[int]]], tokens: int
) -> list[_Served]:
    with engine.serve(path, settings, host="127.0.0.1", port=0, alias="model") as serving:
        return [_answer(serving.url, domain, prompt, tokens) for domain, prompt in asked]


def _answer(url: str, domain: str, prompt: Sequence[int], tokens: int) -> _Served:
    wanted = {
        "prompt": list(prompt), "n_predict": tokens, "temperature": 0, "return_tokens": True, "cache_prompt": False,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as reply:
        found = json.load(reply)
    timings = found["timings"]
    return _Served(
        domain, tuple(found["tokens"]), timings["predicted_ms"] / 1000,
        timings.get("draft_n", 0), timings.get("draft_n_accepted", 0),
    )  # fmt: skip


def _proof(way: Drafting, quick: Sequence[_Served], plain: Sequence[_Served]) -> Proof:
    right, ratio = {}, {}
    for domain in dict.fromkeys(a.domain for a in plain):
        mine, theirs = ([a for a in answers if a.domain == domain] for answers in (quick, plain))
        right[domain] = sum(a.right for a in mine) / max(1, sum(a.guessed for a in mine))
        ratio[domain] = sum(a.seconds for a in mine) / max(1e-9, sum(a.seconds for a in theirs))
    same = all(a.tokens == b.tokens for a, b in zip(quick, plain, strict=True))
    return Proof(way, right, ratio, same)
