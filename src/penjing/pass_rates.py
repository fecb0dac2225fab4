"""Passes over slices of a model, timed by the real engine: what `cost.passes` composes the times of a model from.

A slice has the first layers of the model with random weights in one type. The pace of a machine changes within
minutes, by its clock and by what its neighbours do; so a session of one slice, the reference, stays open all the
while, and every timing is taken relative to what that one shows meanwhile. Rates that were taken before are scaled to
what the reference shows now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import product
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from penjing import kernel_rates, store
from penjing.cost import pace
from penjing.cost.memory import Traits
from penjing.cost.pace import Pace
from penjing.cost.passes import (
    HEAD,
    ONE,
    PREFILLS,
    REFERENCE,
    Passes,
    Point,
    Way,
    head_of,
    kernels_for,
    matrices,
    points_for,
)
from penjing.cost.variants import DEEP_BY_KIND, LONG, NEAR_BY_KIND, SMALL_BATCH, STEPS
from penjing.engines.base import Engine, Sample, Session
from penjing.formats import BY_NAME
from penjing.gguf.header import Header
from penjing.machine import Machine
from penjing.model import Model
from penjing.plan import Settings
from penjing.probe import memory_rate
from penjing.progress import Bar, bar
from penjing.quality import stock
from penjing.quantize.native import Native
from penjing.rates import KernelRates, Kind, Knobs, PassRates, Rates, Timing
from penjing.reference import Reference

_REPEATS, _LONG_REPEATS = 3, 2  # of a sample, and of a long one
_LONG_SECONDS = 1.5  # of a prompt that is timed once
_MOST_REPEATS, _POINT_SECONDS = 12, 0.4  # of short ones, and what they should come to
# of decode at depth: attention is little beside few layers, and a difference of two timings
_DEEP_LAYERS, _DEEP_REPEATS = 28, 7
_COMMON = ("q4_0", "q8_0")
_SLICE_BITS = 4.25  # per weight, of the smallest type whose slice must not fit into the last-level cache
_COLD, _MOST_COLD_BYTES = 6, 2**29  # of a slice for decode, in bytes that count as cold for a single matrix
_LEAST_LAYERS, _PREFILL_WEIGHTS = 2, 8e7
_LEAST_STEPS = 2  # of decode in a sample
_MOST_SECONDS = 3.0  # of a sample of decode
_MEMORY_SECONDS, _KINDS_A_LOOK = 0.5, 2  # of a look at the memory, and types from one to the next
_LEAST_CPU_SHARE = 0.7
_CHANGES: tuple[dict[str, str], ...] = ({}, {"flash_attention": "off"}, {"cache_type": "q8_0"})
_TURNS = 3  # of all jobs of a session, and of a prompt in either micro-batches


def measured(
    header: Header, model: Model, kinds: Sequence[str], machine: Machine, engine: Engine, threads: Sequence[int],
    native: Native, *, together: Sequence[int] = (1,), checks: Sequence[int] = (), fresh: bool = False,
) -> PassRates:  # fmt: skip
    """Rates of the shapes of `model` in each of `kinds`: from the cache as far as it knows, else taken now.

    `threads`: counts to try; the first one is that of most timings. `together`: sequences that decode at once.
    `checks`: tokens of passes that check guesses, of which only the products are timed.
    """
    points = points_for(together)
    traits = engine.traits(machine.isa)
    name = _cache_name(model, machine, traits, f"{threads} {points}")
    known = None if fresh else store.recall(name, PassRates)
    none = Rates(engine.version)
    rates = known or PassRates(engine.version, _layers(model, machine), threads[0], {}, {}, none, none,
                               KernelRates(engine.version), machine.load_average)  # fmt: skip
    usable = _usable(model, (*kinds, HEAD, REFERENCE))
    multiplied = (*points, *(Point("decode", n) for n in checks))
    wanted = kernels_for(model, _stored(model, usable), traits, multiplied, threads[0])
    rates = replace(rates, kernels=kernel_rates.measured(wanted, machine, engine, fresh=fresh))
    missing = [kind for kind in usable if kind not in rates.slices]
    if missing or not rates.others.timings:
        with (
            Reference(header, model, rates.layers, threads[0], engine, native) as reference,
            bar("timing slices", len(missing) + 2) as shown,
        ):
            rates = replace(rates, pace_seconds=rates.pace_seconds or reference.look())
            rates = _Slicer(rates, traits, model, points, reference).all(missing, threads, shown)
            if known is None:  # the pace of all these minutes says more than that of the first seconds
                usual = {kind: s / rates.pace_seconds[kind] for kind, s in reference.usual().items()}
                rates = replace(pace.at(rates, model, Pace(**usual)), kernels=rates.kernels)
    if rates != known:
        store.remember(name, rates)
    return rates


def _usable(model: Model, kinds: Sequence[str]) -> list[str]:
    """Those of `kinds` in whose blocks the rows of some matrix go up."""
    columns = {t.shape[0] for t in (*matrices(model), head_of(model))}
    return [k for k in dict.fromkeys(kinds) if any(c % BY_NAME[k].block_weights == 0 for c in columns)]


def _stored(model: Model, kinds: Sequence[str]) -> list[str]:
    """What the matrices of slices in `kinds` are stored in: some fall back to types with smaller blocks."""
    columns = {t.shape[0] for t in (*matrices(model), head_of(model))}
    return sorted({stock.fallback(kind, c) for kind in kinds for c in columns})


def _layers(model: Model, machine: Machine) -> dict[Kind, int]:
    cold = 8 / _SLICE_BITS * min(_MOST_COLD_BYTES, _COLD * kernel_rates.cold_bytes(machine))
    return {"decode": _layers_with(model, cold), "prefill": _layers_with(model, _PREFILL_WEIGHTS)}


def _layers_with(model: Model, least_weights: float) -> int:
    """As many as have so many weights, and more than one: of the last one prefill computes only a part."""
    count, weights = 0, 0
    while count < len(model.layers) and (weights < least_weights or count < _LEAST_LAYERS):
        weights += sum(t.n_weights for t in matrices(model) if t.layer == count)
        count += 1
    return count


class _Job(Struct, frozen=True):
    """What a session is timed at: passes of `tokens` tokens or steps, or of `together` sequences, after `depth` others.

    `n_bytes`: what a pass reads of the weights.
    """

    settings: Settings
    kind: Kind
    tokens: int
    depth: int
    n_bytes: float
    together: int = 1


class _Slicer:
    """Times slices one after the other, beside the reference."""

    def __init__(
        self, rates: PassRates, traits: Traits, model: Model, points: Sequence[Point], reference: Reference
    ) -> None:
        self._rates, self._traits, self._model, self._points = rates, traits, model, points
        self._reference = reference
        self._reading = pace.reading(model, rates)
        self._disturbed = 0
        self._memory: list[float] = []

    def all(self, kinds: Sequence[str], threads: Sequence[int], shown: Bar) -> PassRates:
        rates = self._rates
        for number, kind in enumerate(kinds):
            if number % _KINDS_A_LOOK == 0:
                self._look_at_memory()
            rates = replace(rates, slices={**rates.slices, kind: self._slice(kind)})
            shown.advance(1)
        rates = self._again(rates)
        if not rates.head.timings:
            rates = replace(rates, head=self._head())
            shown.advance(1)
        if not rates.others.timings:
            rates = replace(rates, others=self._others(threads))
            shown.advance(1)
        self._look_at_memory()
        return replace(
            rates,
            disturbed=rates.disturbed + self._disturbed,
            pace_spread=max(rates.pace_spread, self._reference.spread),
            memory_bytes_per_s=(*rates.memory_bytes_per_s, *self._memory),
        )

    def _look_at_memory(self) -> None:
        """The reference computes too much to show all of what the memory does (docs/log.md: it gave 33 and 58 GB/s)."""
        if rate := memory_rate(_MEMORY_SECONDS):
            self._memory.append(rate)

    def _slice(self, kind: str) -> Rates:
        found = Rates(self._rates.engine_version)
        for phase in self._rates.layers:
            path = self._reference.slice(kind, phase, "slice")
            points = [p for p in self._points if p.phase == phase]
            for way in self._ways(kind):
                with self._reference.open(path, way) as session:
                    jobs = [self._job(session, point, self._read(kind, point)) for point in points]
                    found = self._timed(found, session, jobs)
        return found

    def _again(self, rates: PassRates) -> PassRates:
        """Slices that something else seems to have slowed down, timed once more; the faster timing counts."""
        for kind, way, point in Passes(self._model, rates, self._traits).doubtful(self._points):
            path = self._reference.slice(kind, point.phase, "slice")
            with self._reference.open(path, way) as session:
                job = self._job(session, point, self._read(kind, point))
                again = self._timed(Rates(rates.engine_version), session, [job])
            slices = {**rates.slices, kind: rates.slices[kind].with_faster(again.timings[0])}
            rates = replace(rates, slices=slices)
        return rates

    def _read(self, kind: str, point: Point) -> float:
        return pace.read_bytes(self._model, kind, self._rates.layers[point.phase], point.batch)

    def _job(self, session: Session, point: Point, n_bytes: float) -> _Job:
        if point.phase == "prefill":
            return _Job(session.settings, "prefill", point.batch, 0, n_bytes)
        steps = max(_LEAST_STEPS, STEPS // point.batch)
        return _Job(session.settings, "decode", steps, NEAR_BY_KIND["decode"], n_bytes, point.batch)

    def _ways(self, kind: str) -> list[Way]:
        """Every build, and the repacked layout where the engine has one for some matrix of the slice.

        Beside a native build the wheel is timed in the commonest types alone; the others borrow from them.
        """
        stored = {stock.fallback(kind, t.shape[0]) for t in matrices(self._model)}
        layouts = (False, True) if stored & self._traits.repacked_types else (False,)
        *lesser, best = self._traits.builds
        builds = [*(lesser if kind in _COMMON else []), best]
        return [Way(build, repack) for build, repack in product(builds, layouts)]

    def _head(self) -> Rates:
        path = self._reference.write(HEAD, 1, self._model.vocabulary, "head")
        found = Rates(self._rates.engine_version)
        for build in self._traits.builds:
            with self._reference.open(path, Way(build, False)) as session:
                found = self._timed(found, session, [self._job(session, ONE, pace.head_bytes(self._model))])
        return found

    def _others(self, threads: Sequence[int]) -> Rates:
        """At depth with each build, with other settings with the one that plans take, and with other threads."""
        found, best = Rates(self._rates.engine_version), self._traits.builds[-1]
        for build, kind in product(self._traits.builds, NEAR_BY_KIND):
            with self._reference.open(self._reference.file(kind), Way(build, False)) as session:
                usual, changes = session.settings, _CHANGES if build == best else _CHANGES[:1]
                jobs = [
                    self._other(kind, replace(usual, **change), depth)
                    for change in changes
                    for depth in (NEAR_BY_KIND[kind], DEEP_BY_KIND[kind])
                ]
                for n in threads[1:] if build == "wheel" else ():
                    with_threads = replace(usual, threads=n, prefill_threads=n)
                    jobs.append(self._other(kind, with_threads, NEAR_BY_KIND[kind]))
                found = self._timed(found, session, jobs)
                if kind == "prefill" and build == best:
                    found = _in_small_batches(found, session, usual)
        return found

    def _other(self, kind: Kind, settings: Settings, depth: int) -> _Job:
        tokens = LONG if kind == "prefill" else STEPS
        return _Job(settings, kind, tokens, depth, self._read(REFERENCE, Point(kind, 1)))

    def _timed(self, rates: Rates, session: Session, jobs: Sequence[_Job]) -> Rates:
        """All `jobs` in turn, as if the machine had kept the pace that others were taken at.

        It goes up and down within tenths of a second and within minutes. So a job has its samples at several moments,
        and its time is taken over the median of what the reference showed meanwhile.
        """
        samples: dict[_Job, list[Sample]] = {job: [] for job in jobs}
        self._look(jobs[0].kind)
        turns = [job for turn in range(_TURNS) for job in jobs if turn in self._turns(job)]
        for job in turns:
            session.configure(job.settings)
            samples[job] += self._samples(session, job)
            self._look(job.kind)
        now = self._reference.recent(self._rates.pace_seconds, 1 + len(turns))
        for job, found in samples.items():
            rates = self._add(rates, job, found, now)
        return rates

    def _look(self, kind: Kind) -> None:
        for phase in dict.fromkeys(("prefill", kind)):
            self._reference.sample(phase)

    def _add(self, rates: Rates, job: _Job, samples: Sequence[Sample], now: Pace) -> Rates:
        knobs = replace(Knobs.of(job.kind, job.settings), together=job.together)
        calm = self._calm(samples, knobs.threads)
        taken = Timing(knobs, job.tokens, job.depth, tuple(s.seconds * job.tokens / s.tokens for s in calm))
        near = job.depth <= NEAR_BY_KIND[job.kind]
        flat = None if near else pace.flat_seconds(rates, knobs, job.tokens)
        usual = pace.undone(taken, flat, now, job.n_bytes / self._reading)
        return rates.add(knobs, job.tokens, job.depth, usual.seconds)

    def _samples(self, session: Session, job: _Job) -> list[Sample]:
        """Those of one turn."""
        if job.kind == "prefill" and job.tokens >= LONG:
            session.time("prefill", PREFILLS[0].batch, 0, 1)  # the first of a session takes a little longer
        repeats = -(-self._repeats(job) // len(self._turns(job)))
        return session.time(job.kind, job.tokens, job.depth, repeats, _MOST_SECONDS, job.together)

    def _turns(self, job: _Job) -> Sequence[int]:
        """What takes long, or needs a cache to be filled or made anew, is timed in the middle of the others, once."""
        deep = job.depth > NEAR_BY_KIND[job.kind]
        times = 1 if deep or job.together > 1 else min(_TURNS, self._repeats(job))
        return [int((i + 0.5) * _TURNS / times) for i in range(times)]

    def _expected(self, job: _Job) -> float:
        """Seconds of a sample, roughly."""
        seconds: float = self._rates.pace_seconds[job.kind] * job.tokens * job.together**0.5
        return seconds

    def _repeats(self, job: _Job) -> int:
        """More of what is short: the pace of a shared machine goes up and down within tenths of a second."""
        if job.tokens >= LONG:
            return _LONG_REPEATS if self._expected(job) < _LONG_SECONDS else 1
        repeats = int(min(_MOST_REPEATS, max(_REPEATS, _POINT_SECONDS / self._expected(job))))
        if job.depth < DEEP_BY_KIND[job.kind]:
            return repeats
        return max(repeats, min(_DEEP_REPEATS, _DEEP_LAYERS // self._rates.layers[job.kind]))

    def _calm(self, samples: Sequence[Sample], threads: int) -> Iterator[Sample]:
        """Samples whose threads got their cores; the best one where none did."""
        kept = [s for s in samples if s.cpu_seconds >= _LEAST_CPU_SHARE * threads * s.seconds]
        self._disturbed += len(samples) - len(kept)
        yield from kept or [min(samples, key=lambda s: s.seconds)]


def _in_small_batches(rates: Rates, session: Session, usual: Settings) -> Rates:
    """A prompt in smaller micro-batches: the time of the usual ones, by what both take in turn.

    They differ by less than the pace of a machine from one moment to the next.
    """
    sizes = (usual.micro_batch, SMALL_BATCH)
    seen: dict[int, list[float]] = {size: [] for size in sizes}
    for size in _TURNS * sizes:
        session.configure(replace(usual, micro_batch=size))
        seen[size] += (sample.seconds for sample in session.time("prefill", LONG, 0, 1))
    large, small = (median(seen[size]) for size in sizes)
    knobs = Knobs.of("prefill", usual)
    (known,) = (t for t in rates.timings if (t.knobs, t.tokens, t.depth) == (knobs, LONG, 0))
    scaled = tuple(small / large * seconds for seconds in known.seconds)
    return rates.add(replace(knobs, micro_batch=SMALL_BATCH), LONG, 0, scaled)


def _cache_name(model: Model, machine: Machine, traits: Traits, what: str) -> str:
    """Names the shapes, the machine and the engine: models with the same shapes share their rates."""
    shapes = sorted((t.name, t.shape) for t in (*matrices(model), head_of(model)))
    place = f"{machine.cpu} {machine.cores} {traits.version} {traits.builds}"
    known = f"{model.architecture} {shapes} {place} {what} in turns"
    return f"passes/{hashlib.sha256(known.encode()).hexdigest()[:20]}.json"
