"""A plan beside the engine's default, timed in turn on the whole workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from penjing.engines.base import Engine, Sample, Session
from penjing.figures import Measurement
from penjing.plan import Settings
from penjing.workload import Workload

_SLACK = 64  # cache positions beyond prompt and answer


class Run(Struct, frozen=True):
    """One request: `name` tells which settings, load_average what else the machine did."""

    name: str
    round: int
    prefill: Sample
    decode: Sample
    load_average: float | None

    @property
    def total_seconds(self) -> float:
        return self.prefill.seconds + self.decode.seconds


class Result(Struct, frozen=True):
    """Medians and spreads of one contestant over all rounds."""

    name: str
    settings: Settings
    prefill_tokens_per_s: Measurement
    decode_tokens_per_s: Measurement
    first_token_seconds: Measurement
    total_seconds: Measurement


def compare(
    engine: Engine,
    model: Path,
    contestants: dict[str, Settings],
    workload: Workload,
    rounds: int,
    *,
    start_seconds: float = 300,
    say: Callable[[str], None] = lambda _: None,
) -> list[Run]:
    """Every contestant in every round, in turn: A B A B. Each has a child process of its own."""
    from penjing.probe import load_average

    context = -(-(workload.needed_tokens + _SLACK) // 256) * 256
    sessions: dict[str, Session] = {}
    runs: list[Run] = []
    try:
        for name, settings in contestants.items():
            grown = replace(settings, context_tokens=max(context, settings.context_tokens), sequences=1)
            sessions[name] = engine.open(model, grown, start_seconds=start_seconds)
            sessions[name].time("prefill", min(32, workload.prompt_tokens), 0, 1)  # touch the weights once
        for number in range(rounds):
            order = list(sessions.items())
            for name, session in order if number % 2 == 0 else reversed(order):
                (prefill,) = session.time("prefill", workload.prompt_tokens, 0, 1)
                (decode,) = session.time("decode", workload.answer_tokens, workload.prompt_tokens, 1)
                runs.append(Run(name, number, prefill, decode, load_average()))
                say(f"round {number + 1} of {rounds}, {name}: {runs[-1].total_seconds:.2f} s")
    finally:
        for session in sessions.values():
            session.__exit__(None, None, None)
    return runs


def summarize(name: str, settings: Settings, runs: Sequence[Run]) -> Result:
    """Medians of the runs of `name`."""
    mine = [run for run in runs if run.name == name]
    return Result(
        name=name,
        settings=settings,
        prefill_tokens_per_s=Measurement.of([r.prefill.tokens / r.prefill.seconds for r in mine]),
        decode_tokens_per_s=Measurement.of([r.decode.tokens / r.decode.seconds for r in mine]),
        first_token_seconds=Measurement.of([r.prefill.seconds for r in mine]),
        total_seconds=Measurement.of([r.total_seconds for r in mine]),
    )


def ratio(runs: Sequence[Run], mine: str, other: str) -> float:
    """Median over rounds of the total time of `mine` over that of `other` in the same round."""
    totals = {(run.name, run.round): run.total_seconds for run in runs}
    rounds = sorted({run.round for run in runs})
    return median(totals[mine, n] / totals[other, n] for n in rounds)
