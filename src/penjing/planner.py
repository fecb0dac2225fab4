"""A plan for this computer: read the model, probe the machine, measure, choose."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection
from importlib.resources import files
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from penjing import drafts, store, tune
from penjing.engines.base import Engine
from penjing.errors import UsageError
from penjing.fingerprint import fingerprint
from penjing.machine import Machine
from penjing.model import Model
from penjing.plan import Chosen, Plan, Refusal, Settings
from penjing.progress import bar
from penjing.rates import Rates
from penjing.search import candidates, choose, fit
from penjing.search.choose import Question
from penjing.units import MIB, show_bytes, show_number
from penjing.workload import Workload

Say = Callable[[str], None]
_MEASURE_SECONDS = 45.0
_LOAD_BYTES_PER_S = 50 * MIB  # a slow disk; only bounds how long loading may take
_CELLS = 256
_BUSY_SHARE = 0.25


class Here(Struct, frozen=True):
    """A plan for this computer and what it was made from."""

    plan: Plan
    path: Path
    question: Question
    drafts: drafts.Report | None = None

    @property
    def model(self) -> Model:
        return self.question.model

    @property
    def chosen(self) -> Chosen:
        return self.plan.chosen

    @property
    def start_seconds(self) -> float:
        """How long loading may take before it counts as hanging."""
        return start_seconds(self.model)


def with_drafting(here: Here, kinds: Collection[str]) -> Here:
    """The plan with the way of guessing ahead that was found to pay, if it is one of `kinds` and one user asks."""
    question, engine = here.question, here.question.traits.version
    if question.workload.users > 1 or here.chosen.from_disk:
        return here
    report = store.recall(
        drafts.cache_name(here.path, here.model, question.machine, here.chosen.settings, engine),
        drafts.Report,
    )
    if report is None:
        return here
    here = replace(here, drafts=report)
    return replace(here, plan=replace(here.plan, chosen=drafted(here, here.chosen, kinds)))


def drafted(here: Here, chosen: Chosen, kinds: Collection[str]) -> Chosen:
    """`chosen` with what is known of guessing ahead; unchanged where that is nothing."""
    if here.drafts is None:
        return chosen
    budget = here.question.budget_bytes
    room = None if budget is None else budget - chosen.memory.total_bytes
    return drafts.applied(chosen, here.drafts, here.plan.workload, kinds, room)


def start_seconds(model: Model) -> float:
    return 60 + model.n_bytes / _LOAD_BYTES_PER_S


def plan_here(
    path: Path,
    model: Model,
    machine: Machine,
    workload: Workload,
    engine: Engine,
    *,
    fresh: bool = False,
    may_split: bool = True,
    say: Say,
) -> Here:
    """The best measured way to run `model` on this computer.

    `may_split` admits plans that use two layouts of the weights, which the engine's server cannot.

    Raises:
        DoesNotFit: no way to run it keeps the memory limit; says what would.
        EngineError: the engine cannot run the file.
    """
    engine.check()
    question = question_for(model, machine, workload, engine)
    tried, left = candidates.singles(question.default, model, machine.cores, question.traits, workload)
    fits = replace(question, workload=_without_speed_limits(workload))
    verdict = choose.choose(fits, tried)
    if verdict.chosen is None:
        verdict = choose.choose(fits, candidates.frugal(question.default))
    feasible = [c.settings for c in verdict.fitting]
    if verdict.chosen is None:
        raise _refuse(question, verdict)
    from_disk = verdict.chosen.from_disk
    if from_disk:
        say(_slow_warning(question, verdict.chosen))
    measured = measure(path, question, engine, _order(question, feasible), from_disk, fresh=fresh, say=say)
    question = replace(question, rates=measured)
    mixed = [] if from_disk else candidates.combinations(question.default, feasible, question.repacks)
    known = [s for s in mixed if tune.timed(measured, s) and (may_split or not s.split)]
    final = choose.choose(question, [*feasible, *known])
    if final.chosen is None:
        raise _refuse(question, final)
    refused = (*_unasked(verdict.refused, final), *final.refused, *left)
    plan = choose.plan_of(question, final, final.chosen, notes(question, final.chosen))
    return Here(replace(plan, refused=refused), path, question)


def question_for(model: Model, machine: Machine, workload: Workload, engine: Engine) -> Question:
    """The question that a workload puts to a machine; the context is rounded up to the engine's 256 positions."""
    if workload.cache_tokens > model.context_tokens:
        raise UsageError(
            f"a context of {workload.cache_tokens} tokens exceeds the {model.context_tokens} of `{model.name}`",
            hint=f"--context {model.context_tokens}",
        )
    context = -(-workload.cache_tokens * workload.users // _CELLS) * _CELLS
    physical = min(machine.cores.physical or 1, max(1, int(machine.cores.logical or 1)))
    return Question(
        model=model,
        machine=machine,
        workload=workload,
        traits=engine.traits(machine.isa),
        default=engine.default(physical, context, workload.users),
        budget_bytes=_budget(machine, workload),
    )


def measure(
    path: Path,
    question: Question,
    engine: Engine,
    tried: list[Settings],
    from_disk: bool,
    *,
    fresh: bool,
    say: Say,
) -> Rates:
    """Rates that decide the question: from the cache as far as it knows, else by short timings."""
    name = _cache_name(path, question, from_disk)
    known = None if fresh else store.recall(name, Rates)
    rates = known or Rates(question.traits.version, load_average=question.machine.load_average)
    budget = question.budget_bytes
    together = budget is None or 2 * question.model.n_bytes < 0.7 * budget
    with tune.Sessions(
        engine,
        path,
        together=together,
        repacks=question.repacks,
        start_seconds=start_seconds(question.model),
        check_weights=not rates.timings,
        warm_up=not from_disk,
    ) as sessions:
        new = [s for s in tried if not rates.was_tried(s)]
        if new:
            ways = f"{len(new)} ways" if len(new) > 1 else "one way"
            say(f"measuring {ways} to run `{question.model.name}`, at most {_MEASURE_SECONDS:.0f} s")
        with bar("measuring", _MEASURE_SECONDS) as progress:
            rates = tune.tune(
                sessions,
                rates,
                tried,
                question.workload,
                seconds=_MEASURE_SECONDS,
                patient=from_disk,
                passed=progress.advance,
            )
        if question.workload.max_kld and rates.cache_kld is None and not from_disk:
            say("measuring what a quantized cache costs in quality")
            session = sessions.under(question.default)
            rates = replace(rates, cache_kld=tune.cache_kld(session, sample_text()))
    if rates != known:
        store.remember(name, rates)
    return rates


def notes(question: Question, chosen: Chosen) -> list[str]:
    """What a reader of the plan should know about its figures."""
    told = []
    rates = question.rates
    if rates is not None and rates.disturbed:
        told.append(f"{rates.disturbed} disturbed samples were thrown away: other work takes the cores")
    if _busy():
        told.append("other work keeps the processors busy: speeds will be lower and vary more")
    if chosen.from_disk:
        told.append("the weights exceed the memory limit and are read from disk again for every token")
    if not question.model.known_family:
        told.append(
            f"architecture `{question.model.architecture}` is not known: shapes were read from the tensors"
        )
    return told


def sample_text() -> str:
    """English prose of our own, for measurements that need real text."""
    return files("penjing").joinpath("data/sample.txt").read_text("utf-8")


def _budget(machine: Machine, workload: Workload) -> int | None:
    """The tightest of what the user allows, what is free, and what the cgroup or the machine has."""
    known = (workload.memory_bytes, machine.memory_available_bytes, machine.usable_memory_bytes)
    return min((n for n in known if n is not None), default=None)


@functools.cache
def _busy() -> bool:
    """Other work takes a quarter of the processors before we start ours, and not only in passing."""
    from penjing.probe.load import busy_share

    return all((busy_share(seconds) or 0.0) > _BUSY_SHARE for seconds in (0.1, 0.3))


def _without_speed_limits(workload: Workload) -> Workload:
    """For the question what fits at all: how fast it is will be measured, not assumed."""
    return replace(workload, min_decode_tokens_per_s=None, max_first_token_seconds=None)


def _order(question: Question, feasible: list[Settings]) -> list[Settings]:
    """What to time, the reference first: the default if it fits (its unmapped twin has the same speed)."""
    twin = candidates.lean(question.default, question.repacks)
    if twin in feasible or question.default in feasible:
        rest = [s for s in feasible if s not in (twin, question.default)]
        return [question.default, *rest]
    return feasible


def _unasked(before: tuple[Refusal, ...], final: choose.Verdict) -> list[Refusal]:
    told = {r.what for r in final.refused}
    return [r for r in before if r.what not in told and "limit" in r.why]


def _refuse(question: Question, verdict: choose.Verdict) -> Exception:
    budget, default = question.budget_bytes, verdict.default
    if budget is not None and all("limit is" in r.why for r in verdict.refused):
        return fit.does_not_fit(question, budget)
    reasons = "; ".join(dict.fromkeys(f"{r.what}: {r.why}" for r in verdict.refused))
    return UsageError(
        f"no way to run `{question.model.name}` keeps all limits: {reasons}",
        hint=f"the nearest is {show_number(default.estimate.decode_tokens_per_s.value or 0)} tok/s decode, "
        f"{show_bytes(default.memory.total_bytes)}; relax a limit",
    )


def _slow_warning(question: Question, chosen: Chosen) -> str:
    speed = chosen.estimate.decode_tokens_per_s
    text = f"`{question.model.name}` exceeds the memory limit and will run from disk"
    if speed.value is None or speed.low is None or speed.high is None:
        return f"{text}; how fast is not known"
    return (
        f"{text}: predicted decode {show_number(speed.value)} tok/s "
        f"({show_number(speed.low)} to {show_number(speed.high)})"
    )


def _cache_name(path: Path, question: Question, from_disk: bool) -> str:
    machine, engine = question.machine, question.traits.version
    place = f"{machine.cpu} {machine.cores} {machine.memory_total_bytes} {engine}"
    if from_disk:
        place += f" disk {question.budget_bytes and question.budget_bytes // (32 * MIB)}"
        place += f" of {machine.memory_limit_bytes}"
    where = hashlib.sha256(place.encode()).hexdigest()[:12]
    what = fingerprint([Path(f) for f in question.model.files] or [path])
    return f"rates/{what}-{where}-{'busy' if _busy() else 'quiet'}.json"
