"""A plan beside the engine's default, timed in turn on the whole workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
    """Every contestant in every round, in turn: A B B A.

    Each has a child process of its own, and a new one in every round: a process keeps its luck with the placement of
    its pages, and of two equal ones the first is 1 to 2 % slower. So they take turns in being the first.
    """
    from penjing.probe import load_average

    runs: list[Run] = []
    for number in range(rounds):
        order = list(contestants.items())
        with ExitStack() as stack:
            sessions = [
                (name, stack.enter_context(_open(engine, model, settings, workload, start_seconds)))
                for name, settings in (order if number % 2 == 0 else reversed(order))
            ]
            for name, session in sessions:
                (prefill,) = session.time("prefill", workload.prompt_tokens, 0, 1)
                (decode,) = session.time("decode", workload.answer_tokens, workload.prompt_tokens, 1)
                runs.append(Run(name, number, prefill, decode, load_average()))
                say(f"round {number + 1} of {rounds}, {name}: {runs[-1].total_seconds:.2f} s")
    return runs


def _open(
    engine: Engine, model: Path, settings: Settings, workload: Workload, start_seconds: float
) -> Session:
    """A session with room for the workload that has touched its weights once."""
    context = -(-(workload.needed_tokens + _SLACK) // 256) * 256
    grown = replace(settings, context_tokens=max(context, settings.context_tokens), sequences=1)
    session = engine.open(model, grown, start_seconds=start_seconds)
    try:
        session.time("prefill", min(32, workload.prompt_tokens), 0, 1)
    except BaseException:
        session.__exit__(None, None, None)
        raise
    return session


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
