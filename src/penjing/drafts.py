"""What guessing tokens ahead was found to be worth, kept for the plans that come after."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from statistics import mean

from msgspec import Struct
from msgspec.structs import replace

from penjing import store
from penjing.drafting import Habit
from penjing.figures import Estimate
from penjing.fingerprint import fingerprint
from penjing.machine import Machine
from penjing.model import Model
from penjing.plan import Chosen, Drafting, Settings
from penjing.workload import Workload


class Trial(Struct, frozen=True):
    """A way of guessing, as it would have done on answers that are known.

    Units:
        right: share of the guessed tokens that were drawn, by domain. ratio: time over that of decode without guesses.
        passes: for each drawn token, by how many guesses they check, by domain.
    """

    drafting: Drafting
    right: dict[str, float]
    ratio: dict[str, float]
    passes: dict[str, dict[int, float]] = {}


class Proof(Struct, frozen=True):
    """A way of guessing, as it did, in turn with none; see `Trial` for the units."""

    drafting: Drafting
    right: dict[str, float]
    ratio: dict[str, float]
    same_answers: bool


class Report(Struct, frozen=True):
    """What guessing ahead is worth for one model under some settings.

    Units:
        check_seconds: of one pass, by its tokens. decode_tokens_per_s: without guesses, by domain.
        disturbed: answers during which other work took the cores.
        extra_bytes: memory of the draft model; 0 where none was tried.
    """

    model: str
    engine_version: str
    settings: Settings
    check_seconds: dict[int, float]
    extra_bytes: int
    decode_tokens_per_s: dict[str, float]
    trials: tuple[Trial, ...]
    proofs: tuple[Proof, ...]
    chosen: Drafting
    why: str
    disturbed: int = 0

    @property
    def proof(self) -> Proof | None:
        """Of what was chosen; None where nothing won."""
        return next((p for p in self.proofs if p.drafting == self.chosen), None)


def applied(
    chosen: Chosen, report: Report, workload: Workload, kinds: Collection[str], room_bytes: int | None
) -> Chosen:
    """The plan with the way of guessing that won, where it is one of `kinds` and its memory fits into the room.

    How much it gains depends on the text: the interval reaches from the kind of prompts where it did worst to the best.
    """
    proof, kind = report.proof, report.chosen.kind
    extra = report.extra_bytes if kind == "model" else 0
    if proof is None or kind not in kinds or (room_bytes is not None and extra > room_bytes):
        return chosen
    estimate, ratios = chosen.estimate, proof.ratio.values()
    decode = _quicker(estimate.decode_tokens_per_s, ratios)
    answer = decode.map(lambda rate: workload.answer_tokens / rate)
    return replace(
        chosen,
        settings=replace(chosen.settings, drafting=report.chosen),
        memory=replace(chosen.memory, weights_bytes=chosen.memory.weights_bytes + extra),
        estimate=replace(
            estimate,
            decode_tokens_per_s=decode,
            total_seconds=estimate.first_token_seconds + answer,
            memory_bytes=_more(estimate.memory_bytes, extra),
        ),
        why=f"{chosen.why}; {report.why}",
        is_default=False,
    )


def _quicker(rate: Estimate, ratios: Collection[float]) -> Estimate:
    if rate.value is None or rate.low is None or rate.high is None:
        return rate
    return Estimate(rate.value / mean(ratios), rate.low / max(ratios), rate.high / min(ratios), rate.source)


def _more(size: Estimate, extra: int) -> Estimate:
    return size.map(lambda n: n + extra)


def remember_habits(path: Path, model: Model, report: Report) -> None:
    """Keep how n-grams went in answers of `model`, for plans that choose its formats."""
    seen = [Habit(t.drafting, t.passes) for t in report.trials if t.drafting.kind == "ngram" and t.passes]
    store.remember(_habits_name(path, model), seen)


def habits(path: Path, model: Model) -> tuple[Habit, ...]:
    """What is known of how n-grams go in answers of `model`; nothing where `penjing draft` has not seen it."""
    return store.recall(_habits_name(path, model), tuple[Habit, ...]) or ()


def _habits_name(path: Path, model: Model) -> str:
    return f"habits/{_named(path, model)}.json"


def _named(path: Path, model: Model) -> str:
    return fingerprint([Path(f) for f in model.files] or [path])


def cache_name(path: Path, model: Model, machine: Machine, settings: Settings, engine_version: str) -> str:
    """Where the report is kept: what a check takes depends on the build and the layout that decode uses."""
    place = f"{machine.cpu} {machine.cores} {engine_version} {settings.build} {settings.repack}"
    return f"drafts/{_named(path, model)}-{hashlib.sha256(place.encode()).hexdigest()[:12]}.json"
