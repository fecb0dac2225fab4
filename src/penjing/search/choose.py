"""The choice: what fits, what it costs, which one wins, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from penjing.cost import roofline, speed
from penjing.cost.memory import Traits, is_repacked, predict_memory
from penjing.figures import Estimate
from penjing.machine import Machine
from penjing.model import Model
from penjing.plan import Chosen, Estimates, Memory, Plan, Refusal, Settings
from penjing.rates import Rates
from penjing.search import candidates
from penjing.units import show_bytes, show_number, show_seconds
from penjing.workload import Workload

_LEAST_GAIN = 0.03  # a plan that saves less than this is not worth leaving the default for
_BUFFER_DOUBT = 0.3  # half-width of the interval of what is not exact: buffers and the engine's base


class Question(Struct, frozen=True):
    """All that a choice depends on. `budget_bytes` is the hard limit, None where nobody knows one."""

    model: Model
    machine: Machine
    workload: Workload
    traits: Traits
    default: Settings
    budget_bytes: int | None
    rates: Rates | None = None

    @property
    def repacks(self) -> bool:
        """The engine has a repacked layout for some tensor of the model."""
        return any(is_repacked(t, self.traits) for t in self.model.tensors)


class Verdict(Struct, frozen=True):
    """The choice with the plans that fit and those that were refused; `chosen` is None if nothing fits."""

    chosen: Chosen | None
    default: Chosen
    fitting: tuple[Chosen, ...]
    refused: tuple[Refusal, ...]


def choose(question: Question, proposed: Iterable[Settings]) -> Verdict:
    """The candidate with the least time for the workload that keeps every limit."""
    default = appraise(question, question.default)
    refused: list[Refusal] = []
    fitting: list[Chosen] = []
    for settings in dict.fromkeys([question.default, *proposed]):
        candidate = default if settings == question.default else appraise(question, settings)
        why = why_not(question, candidate)
        if why:
            refused.append(Refusal(describe(settings, question.default), why))
        else:
            fitting.append(candidate)
    winner = _winner(question, default, fitting)
    refused += [
        Refusal(describe(candidate.settings, question.default), _slower(candidate, winner))
        for candidate in fitting
        if winner is not None and candidates.lean(candidate.settings, question.repacks) != winner.settings
    ]
    return Verdict(winner, default, tuple(fitting), tuple(refused))


def appraise(question: Question, settings: Settings) -> Chosen:
    """What `settings` cost and give, whether they fit or not."""
    memory = memory_of(question, settings)
    from_disk = (
        question.budget_bytes is not None and memory.total_bytes > question.budget_bytes and settings.mapped
    )
    return Chosen(
        engine=question.traits.name,
        engine_version=question.traits.version,
        settings=settings,
        tensor_types=question.model.tensor_types,
        n_bytes=question.model.n_bytes,
        memory=memory,
        estimate=_estimates(question, settings, memory, from_disk),
        is_default=settings == question.default,
        from_disk=from_disk,
        why="",
    )


def memory_of(question: Question, settings: Settings) -> Memory:
    """Predicted memory, corrected by what the engine reported under the same knobs."""
    predicted = predict_memory(question.model, settings, question.traits)
    for seen in question.rates.footprints if question.rates else ():
        here = replace(seen.settings, context_tokens=settings.context_tokens, threads=settings.threads,
                       prefill_threads=settings.prefill_threads, mapped=settings.mapped)  # fmt: skip
        if here == settings and seen.settings.mapped == settings.mapped:
            then = predict_memory(question.model, seen.settings, question.traits)
            return Memory(
                weights_bytes=seen.memory.weights_bytes,
                repacked_bytes=seen.memory.repacked_bytes,
                cache_bytes=predicted.cache_bytes,
                compute_bytes=max(
                    0, seen.memory.compute_bytes + predicted.compute_bytes - then.compute_bytes
                ),
                base_bytes=seen.memory.base_bytes,
            )
    return predicted


def why_not(question: Question, candidate: Chosen) -> str:
    """Why a candidate breaks a limit, empty if it keeps them all."""
    workload, memory, budget = question.workload, candidate.memory, question.budget_bytes
    if budget is not None and memory.total_bytes > budget:
        need = f"it needs {show_bytes(memory.total_bytes)}, the limit is {show_bytes(budget)}"
        if not workload.allow_disk:
            return need
        if memory.pinned_bytes > budget:
            return f"{need}, and {show_bytes(memory.pinned_bytes)} of it cannot be read from disk"
    estimate = candidate.estimate
    limits = (
        (
            workload.min_decode_tokens_per_s,
            estimate.decode_tokens_per_s,
            "decode of {} tok/s is under {}",
            -1,
        ),
        (
            workload.max_first_token_seconds,
            estimate.first_token_seconds,
            "first token after {} s exceeds {}",
            1,
        ),
        (workload.max_kld, estimate.kld, "KL divergence of {} exceeds {}", 1),
    )
    for limit, seen, text, sign in limits:
        if limit is not None and seen.value is not None and sign * (seen.value - limit) > 0:
            return text.format(show_number(seen.value), show_number(limit))
    if question.rates is not None and candidate.estimate.total_seconds.source == "assumed":
        return "it was not timed: the time was over, or no timed prompt was long enough to tell"
    if question.rates is not None and candidate.estimate.kld.value is None:
        return "it changes the answers and by how much is not known"
    return ""


def describe(settings: Settings, default: Settings) -> str:
    """`settings` in words, by what differs from the default."""
    if settings == default:
        return "the engine's default"
    words = [
        (settings.build != default.build, f"{settings.build} build"),
        (_layouts(settings) != _layouts(default), show_layouts(settings)),
        (settings.flash_attention != default.flash_attention, f"flash attention {settings.flash_attention}"),
        (settings.cache_type != default.cache_type, f"cache type {settings.cache_type}"),
        (_threads(settings) != _threads(default), show_threads(settings)),
        (settings.micro_batch != default.micro_batch, f"micro-batch {settings.micro_batch}"),
        (settings.context_tokens != default.context_tokens, f"context {settings.context_tokens}"),
        (settings.drafting != default.drafting, str(settings.drafting)),
    ]
    told = [text for differs, text in words if differs]
    return ", ".join(told) or "the engine's default, read instead of mapped"


def show_threads(settings: Settings) -> str:
    """`1 thread`, `8 threads`, or `8 threads for prefill, 4 for decode`."""
    prefill, decode = _threads(settings)
    counted = f"{prefill} thread{'s' if prefill > 1 else ''}"
    return counted if prefill == decode else f"{counted} for prefill, {decode} for decode"


def show_layouts(settings: Settings) -> str:
    """`repacking on`, `repacking off`, or `repacking for decode only`."""
    if settings.split:
        return f"repacking for {'decode' if settings.repack else 'prefill'} only"
    return f"repacking {'on' if settings.repack else 'off'}"


def _layouts(settings: Settings) -> tuple[bool, bool]:
    return settings.prefill_repack, settings.repack


def _threads(settings: Settings) -> tuple[int, int]:
    return settings.prefill_threads, settings.threads


def _winner(question: Question, default: Chosen, fitting: Sequence[Chosen]) -> Chosen | None:
    """The fastest, or the smallest of those that are nearly as fast.

    But the engine's default, where it fits, yields only to a gain that is outside the noise.
    """
    if not fitting:
        return None
    least = min(map(total_seconds, fitting))
    near = [c for c in fitting if total_seconds(c) <= least * (1 + _LEAST_GAIN)]
    best = min(near, key=lambda c: (c.memory.total_bytes, total_seconds(c)))
    home = _home(question, fitting)
    if home is None:
        return replace(best, why=_why(best, default, default_fits=False))
    if gain(question, best, home) > 0:
        return replace(best, why=_why(best, default, default_fits=True))
    return replace(home, why=_why_home(home, default))


def total_seconds(candidate: Chosen) -> float:
    """Of the workload; infinite where nobody knows."""
    value = candidate.estimate.total_seconds.value
    return float("inf") if value is None else value


def _home(question: Question, fitting: Sequence[Chosen]) -> Chosen | None:
    """The engine's default, or its twin of the same speed and half the memory where that exists."""
    twins = [
        c
        for c in fitting
        if c.settings in (question.default, candidates.lean(question.default, question.repacks))
    ]
    return min(twins, key=lambda c: c.memory.total_bytes, default=None)


def gain(question: Question, candidate: Chosen, default: Chosen) -> float:
    """Seconds saved beyond the noise, for the whole request; not positive means no gain that can be trusted."""
    rates, workload = question.rates, question.workload
    if rates is None:
        return 0.0
    tokens = workload.prompt_tokens, workload.answer_tokens
    mine = speed.total_seconds(rates, candidate.settings, *tokens)
    theirs = speed.total_seconds(rates, default.settings, *tokens)
    if mine is None or theirs is None:
        return 0.0
    saved = theirs - mine
    return saved.value - max(2 * saved.error, _LEAST_GAIN * theirs.value)


def _estimates(question: Question, settings: Settings, memory: Memory, from_disk: bool) -> Estimates:
    workload, rates = question.workload, question.rates
    tokens = workload.prompt_tokens, workload.answer_tokens
    found = None if rates is None else speed.request(rates, settings, *tokens)
    if found is None:
        return _unmeasured(question, settings, memory, from_disk)
    return Estimates(
        decode_tokens_per_s=found.decode.per(workload.answer_tokens),
        prefill_tokens_per_s=found.prefill.per(workload.prompt_tokens),
        first_token_seconds=found.first,
        total_seconds=found.total.estimate(),
        memory_bytes=_memory_estimate(question, memory, measured=bool(rates and rates.footprints)),
        kld=_kld(settings, rates),
    )


def _unmeasured(question: Question, settings: Settings, memory: Memory, from_disk: bool) -> Estimates:
    model, machine, workload = question.model, question.machine, question.workload
    depth = workload.prompt_tokens + workload.answer_tokens / 2
    decode = roofline.decode_rate(model, machine, depth, settings.cache_type)
    prefill = roofline.prefill_rate(model, machine)
    disk = machine.tier("disk")
    if from_disk and question.budget_bytes is not None:
        room = question.budget_bytes - memory.pinned_bytes
        decode = roofline.disk_decode_rate(model, disk, room) if disk else Estimate.unknown()
        passes = -(-workload.prompt_tokens // settings.micro_batch)
        prefill = decode.map(lambda rate: rate * workload.prompt_tokens / passes)
    first = prefill.map(lambda rate: workload.prompt_tokens / rate)
    rest = decode.map(lambda rate: workload.answer_tokens / rate)
    return Estimates(
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        first_token_seconds=first,
        total_seconds=first + rest,
        memory_bytes=_memory_estimate(question, memory, measured=False),
        kld=_kld(settings, question.rates),
    )


def _memory_estimate(question: Question, memory: Memory, *, measured: bool) -> Estimate:
    """Never more than the limit: what exceeds it is left on disk, or the candidate is refused."""
    doubt = (0.1 if measured else _BUFFER_DOUBT) * (memory.compute_bytes + memory.base_bytes)
    total = memory.total_bytes
    low = total - doubt - memory.cache_bytes  # the system counts a cache only where it is filled
    low, value, high = (min(n, question.budget_bytes or n) for n in (low, total, total + doubt))
    return Estimate(value, low, high, "measured" if measured else "assumed")


def _kld(settings: Settings, rates: Rates | None) -> Estimate:
    """Against the file given: nothing changes but the cache type, whose effect is measured or unknown."""
    if settings.cache_type == "f16":
        return Estimate.exact(0.0, "assumed")
    if rates is None or rates.cache_kld is None:
        return Estimate.unknown()
    return Estimate(rates.cache_kld, 0.5 * rates.cache_kld, 2 * rates.cache_kld, "measured")


def _why(best: Chosen, default: Chosen, *, default_fits: bool) -> str:
    mine, theirs = best.estimate.total_seconds.value, default.estimate.total_seconds.value
    what = describe(best.settings, default.settings)
    if not default_fits:
        need = show_bytes(default.memory.total_bytes)
        return f"{what}: the fastest within the limits; the engine's default needs {need}"
    if mine is None or theirs is None:
        return what
    return f"{what}: {show_seconds(mine)} for the workload, the engine's default {show_seconds(theirs)}"


def _why_home(home: Chosen, default: Chosen) -> str:
    why = "nothing that was measured beats the engine's default outside the noise"
    if home.estimate.total_seconds.source == "assumed":
        why = "the engine's default; nothing was measured"
    saved = default.memory.total_bytes - home.memory.total_bytes
    return f"{why}; weights read once instead of mapped save {show_bytes(saved)}" if saved > 0 else why


def _slower(candidate: Chosen, winner: Chosen) -> str:
    mine, best = candidate.estimate.total_seconds.value, winner.estimate.total_seconds.value
    if mine is None or best is None:
        need, have = candidate.memory.total_bytes, winner.memory.total_bytes
        return f"it needs {show_bytes(need)}, the chosen {show_bytes(have)}"
    if mine <= best:
        return f"{show_seconds(mine)} against {show_seconds(best)}: a difference within the noise"
    return f"{show_seconds(mine)} for the workload, the chosen {show_seconds(best)}"


def plan_of(question: Question, verdict: Verdict, chosen: Chosen, notes: Iterable[str] = ()) -> Plan:
    """The full answer, with the plans that no other beats in both time and memory as its frontier."""
    return Plan(
        model=question.model.name,
        machine=question.machine.name,
        workload=question.workload,
        chosen=chosen,
        default=verdict.default,
        frontier=tuple(frontier([chosen, *verdict.fitting])),
        refused=verdict.refused,
        notes=tuple(notes),
    )


def frontier(appraised: Iterable[Chosen]) -> list[Chosen]:
    """Those that no other candidate beats in total time and memory together, fastest first."""
    timed = {c.settings: c for c in reversed(list(appraised)) if c.estimate.total_seconds.value is not None}
    kept: list[Chosen] = []
    for c in sorted(
        timed.values(), key=lambda c: (c.estimate.total_seconds.value or 0, c.memory.total_bytes)
    ):
        if not kept or c.memory.total_bytes < kept[-1].memory.total_bytes:
            kept.append(c)
    return kept
