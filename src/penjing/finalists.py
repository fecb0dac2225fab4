"""Types and settings that compete, each timed as a whole on a file with its types and random weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from penjing import slices
from penjing.build import check_room
from penjing.cost import speed
from penjing.cost.variants import STEPS
from penjing.engines.base import Engine, Session
from penjing.gguf.header import Header
from penjing.gguf.writer import frame_of
from penjing.plan import Chosen, Settings
from penjing.progress import bar
from penjing.quality.allocate import Allocation
from penjing.quantize.native import Native
from penjing.rates import Kind, Knobs, Rates
from penjing.search import choose, joint
from penjing.search.task import Task

_ROUNDS, _REPEATS = 3, 2
_MOST_ROOM = 0.7  # of the memory, that entries may take which are loaded at once
# tokens of a prompt beyond which it is timed once, and the most that are timed
_LONG, _DEEPEST = 512, 2048


class Entry(Struct, frozen=True):
    """One competitor with its figures.

    Units:
        round_seconds: of the workload, as each round would have it; empty where nothing was timed.
    """

    name: str
    allocation: Allocation
    chosen: Chosen
    round_seconds: tuple[float, ...] = ()

    @property
    def total_seconds(self) -> float:
        """Of the workload."""
        return choose.total_seconds(self.chosen)

    def always_faster(self, other: Entry) -> bool:
        """In every round: what wins in some of them alone may owe it to the moment."""
        return all(a < b for a, b in zip(self.round_seconds, other.round_seconds, strict=True))


def timed(
    task: Task, header: Header, entries: Sequence[Entry], engine: Engine, native: Native
) -> list[Entry]:
    """The entries with figures that were corrected by timing each as a whole, in turn.

    All of them are loaded at once where there is room: the memory of a shared machine has fast and slow moments, which
    take turns in seconds. What is loaded last may be faster for as long as it lives, by where its memory lies
    (docs/log.md), so each round begins with another one.
    """
    samples: dict[tuple[int, Kind], list[float]] = {}
    with _files(task, header, entries, native) as files, bar("timing", _ROUNDS * len(entries)) as shown:
        for number in range(_ROUNDS):
            for group in _groups(task, entries):
                first = number % len(group)
                with ExitStack() as stack:
                    sessions = {
                        i: stack.enter_context(engine.open(files[i], _roomy(entries[i].chosen.settings)))
                        for i in (*group[first:], *group[:first])
                    }
                    for i, kind, seconds in _round(task, sessions):
                        samples.setdefault((i, kind), []).append(seconds)
                shown.advance(len(group))
    kinds: tuple[Kind, ...] = ("prefill", "decode")
    return [
        _corrected(task, entry, {kind: samples[i, kind] for kind in kinds}) for i, entry in enumerate(entries)
    ]


def _groups(task: Task, entries: Sequence[Entry]) -> list[list[int]]:
    """Which entries are loaded at the same time, by number."""
    room = task.question.budget_bytes
    every = list(range(len(entries)))
    fits = room is not None and sum(e.chosen.memory.total_bytes for e in entries) <= _MOST_ROOM * room
    return [every] if fits else [[i] for i in every]


def _round(task: Task, sessions: Mapping[int, Session]) -> Iterator[tuple[int, Kind, float]]:
    """One figure of each phase for each session, which take turns.

    Of a short prompt the best one counts, because the first touches new memory.
    """
    kinds: tuple[Kind, ...] = ("prefill", "decode")
    turns = _REPEATS if task.question.workload.prompt_tokens <= _LONG else 1
    for kind in kinds:
        seen: dict[int, list[float]] = {i: [] for i in sessions}
        for _ in range(turns):
            for i, session in sessions.items():
                seen[i].append(_sample(task, session, kind))
        for i, seconds in seen.items():
            yield i, kind, min(seconds) if kind == "prefill" else median(seconds)


@contextmanager
def _files(task: Task, header: Header, entries: Sequence[Entry], native: Native) -> Iterator[list[Path]]:
    """A file with random weights for each entry; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="penjing-finalists-") as folder:
        check_room(Path(folder), sum(frame_of(header, e.allocation.types, {}).n_bytes for e in entries))
        files = [Path(folder) / f"{i}.gguf" for i in range(len(entries))]
        for entry, file in zip(entries, files, strict=True):
            slices.write(
                header, entry.allocation.types, len(task.model.layers), task.model.vocabulary, file, native
            )
        yield files


def _roomy(settings: Settings) -> Settings:
    return replace(settings, context_tokens=max(settings.context_tokens, _DEEPEST + 256), sequences=1)


def _lengths(task: Task) -> dict[Kind, tuple[int, int]]:
    """Tokens that are timed in each phase, and how many are before them."""
    prompt = task.question.workload.prompt_tokens
    return {"prefill": (min(prompt, _DEEPEST), 0), "decode": (STEPS, min(prompt, _DEEPEST))}


def _sample(task: Task, session: Session, kind: Kind) -> float:
    tokens, depth = _lengths(task)[kind]
    if kind == "prefill":
        (sample,) = session.time(kind, tokens, depth, 1)
        return sample.seconds
    if session.settings.drafting.kind == "none":
        found = session.time(kind, tokens, depth, _REPEATS, together=task.together)
        return median(s.seconds * tokens / s.tokens for s in found)
    step = task.passes.step(session.settings.drafting)
    checks = {point: session.time("check", point.batch, depth, _REPEATS) for point in step}
    return tokens * sum(count * median(s.seconds for s in checks[point]) for point, count in step.items())


def _corrected(task: Task, entry: Entry, rounds: Mapping[Kind, Sequence[float]]) -> Entry:
    """Composed rates, scaled in each phase by measured over predicted."""
    measured = {kind: median(seconds) for kind, seconds in rounds.items()}
    settings = entry.chosen.settings
    question = joint.typed(task, entry.allocation.types, [settings])
    rates, lengths = question.rates, _lengths(task)
    assert rates is not None
    (prompt, _), (steps, depth) = lengths["prefill"], lengths["decode"]
    predicted = {
        "prefill": speed.prefill_seconds(rates, settings, prompt),
        "decode": speed.decode_seconds(rates, settings, depth, steps),
    }
    factors = {kind: measured[kind] / p.value for kind, p in predicted.items() if p is not None}  # type: ignore[index]
    scaled = _scaled(rates, settings, factors, task.passes.text_doubt(settings.drafting))
    chosen = choose.appraise(replace(question, rates=scaled), settings)
    chosen = replace(chosen, estimate=replace(chosen.estimate, kld=entry.chosen.estimate.kld))
    return replace(entry, chosen=chosen, round_seconds=_by_round(task, chosen, rounds))


def _by_round(task: Task, chosen: Chosen, rounds: Mapping[Kind, Sequence[float]]) -> tuple[float, ...]:
    """Seconds of the workload with each phase as long, beside its median, as it was in that round."""
    total = chosen.estimate.total_seconds.value or 0.0
    prompt = task.question.workload.prompt_tokens / (chosen.estimate.prefill_tokens_per_s.value or 1.0)
    whole: dict[Kind, float] = {"prefill": prompt, "decode": total - prompt}
    shares = ([s / median(rounds[kind]) * whole[kind] for s in rounds[kind]] for kind in whole)
    return tuple(map(sum, zip(*shares, strict=True)))


def _scaled(rates: Rates, settings: Settings, factors: dict[str, float], text_doubt: float) -> Rates:
    """The timings of `settings` as they were measured; how well a text can be guessed stays in doubt."""
    mine = {Knobs.of("prefill", settings), Knobs.of("decode", settings)}
    timings = tuple(
        replace(
            t,
            seconds=tuple(s * factors[t.knobs.kind] for s in t.seconds),
            doubt=text_doubt if t.knobs.kind == "decode" else 0.0,
        )
        for t in rates.timings
        if t.knobs in mine
    )
    return replace(rates, timings=timings)
