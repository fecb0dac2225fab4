"""Types and settings that compete, each timed as a whole on a file with its types and random weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from penjing import slices
from penjing.build import check_room
from penjing.cost import speed
from penjing.cost.passes import STEPS
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

_ROUNDS = 3
_LONGEST_PROMPT, _DEEPEST = 512, 2048  # tokens that are timed of a finalist


class Entry(Struct, frozen=True):
    """One competitor with its figures."""

    name: str
    allocation: Allocation
    chosen: Chosen

    @property
    def total_seconds(self) -> float:
        """Of the workload."""
        return choose.total_seconds(self.chosen)


def timed(
    task: Task, header: Header, entries: Sequence[Entry], engine: Engine, native: Native
) -> list[Entry]:
    """The entries with figures that were corrected by timing each as a whole, in turn."""
    samples: dict[tuple[int, Kind], list[float]] = {}
    with _files(task, header, entries, native) as files, bar("timing", _ROUNDS * len(entries)) as shown:
        for _ in range(_ROUNDS):
            for i, (entry, file) in enumerate(zip(entries, files, strict=True)):
                with engine.open(file, _roomy(entry.chosen.settings)) as session:
                    for kind in ("prefill", "decode"):
                        samples.setdefault((i, kind), []).append(_sample(task, session, kind))
                shown.advance(1)
    return [
        _corrected(task, entry, {kind: median(s) for (n, kind), s in samples.items() if n == i})
        for i, entry in enumerate(entries)
    ]


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
    return {"prefill": (min(prompt, _LONGEST_PROMPT), 0), "decode": (STEPS, min(prompt, _DEEPEST))}


def _sample(task: Task, session: Session, kind: Kind) -> float:
    tokens, depth = _lengths(task)[kind]
    if kind == "prefill":
        return min(s.seconds for s in session.time(kind, tokens, depth, 2))
    if session.settings.drafting.kind == "none":
        found = session.time(kind, tokens, depth, 2, together=task.together)
        return median(s.seconds * tokens / s.tokens for s in found)
    step = task.passes.step(session.settings.drafting)
    checks = {point: session.time("check", point.batch, depth, 2) for point in step}
    return tokens * sum(count * median(s.seconds for s in checks[point]) for point, count in step.items())


def _corrected(task: Task, entry: Entry, measured: dict[Kind, float]) -> Entry:
    """Composed rates, scaled in each phase by measured over predicted."""
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
    return replace(
        entry, chosen=replace(chosen, estimate=replace(chosen.estimate, kld=entry.chosen.estimate.kld))
    )


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
