"""What was measured of one model file on one machine with one engine."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from penjing.plan import Build, CacheType, Drafting, FlashAttention, Memory, Settings

Kind = Literal["prefill", "decode"]


class Knobs(Struct, frozen=True):
    """The settings that the speed of one phase depends on; `micro_batch` is 0 for decode.

    `together`: so many sequences take each step of decode; the tokens of a timing then count steps. With `drafting`
    they count what is drawn.
    """

    kind: Kind
    threads: int
    repack: bool
    flash_attention: FlashAttention
    cache_type: CacheType
    micro_batch: int
    build: Build = "wheel"
    together: int = 1
    drafting: Drafting = Drafting()

    @classmethod
    def of(cls, kind: Kind, settings: Settings) -> Knobs:
        prefill = kind == "prefill"
        return cls(
            kind,
            settings.prefill_threads if prefill else settings.threads,
            settings.prefill_repack if prefill else settings.repack,
            settings.flash_attention,
            settings.cache_type,
            settings.micro_batch if prefill else 0,
            settings.build,
            1 if prefill else settings.sequences,
            Drafting() if prefill else settings.drafting,
        )


class Timing(Struct, frozen=True):
    """Seconds that `tokens` tokens took after `depth` others, one number for each sample.

    `doubt`: the half-width, relative, by which seconds that were composed instead of timed may be off.

    Raises:
        ValueError: nothing was timed, or in no time; a file that says so is damaged.
    """

    knobs: Knobs
    tokens: int
    depth: int
    seconds: tuple[float, ...]
    doubt: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens < 1 or not self.seconds or min(self.seconds) <= 0:
            raise ValueError(f"{self.tokens} tokens in {self.seconds} seconds are no timing")


class Kernel(Struct, frozen=True, order=True):
    """A product of a matrix with a batch of activations, as the engine computes it.

    Units:
        rows, columns: of the matrix; of each, where it is a stack of `experts` of which every token uses some.
        batch: tokens at once.
    """

    type: str
    rows: int
    columns: int
    batch: int
    threads: int
    repack: bool = False
    experts: int = 0
    experts_used: int = 0
    build: Build = "wheel"


class KernelTiming(Struct, frozen=True):
    """Wall and CPU seconds (of all threads) of one product, one number for each round."""

    kernel: Kernel
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]


class KernelRates(Struct, frozen=True):
    """Products timed on one machine with one engine build."""

    engine_version: str
    timings: tuple[KernelTiming, ...] = ()


class Footprint(Struct, frozen=True):
    """Memory by class as the engine reported it under `settings`."""

    settings: Settings
    memory: Memory


class Rates(Struct, frozen=True):
    """Every timing of one model, with the circumstances.

    Units:
        load_average: of the last minute, when the measuring began.
        disturbed: samples that were thrown away because other work took the cores.
        tried: settings that were given a chance, whether or not it came to timings; without their context.
        cache_kld: mean KL divergence of a q8_0 cache to an f16 cache in nats per token, if measured.
    """

    engine_version: str
    timings: tuple[Timing, ...] = ()
    footprints: tuple[Footprint, ...] = ()
    tried: tuple[Settings, ...] = ()
    load_average: float | None = None
    disturbed: int = 0
    cache_kld: float | None = None

    def add(self, knobs: Knobs, tokens: int, depth: int, seconds: tuple[float, ...]) -> Rates:
        """These rates and more samples of one point."""
        same = [t for t in self.timings if (t.knobs, t.tokens, t.depth) == (knobs, tokens, depth)]
        others = tuple(t for t in self.timings if t not in same)
        joined = sum((t.seconds for t in same), ()) + seconds
        return replace(self, timings=(*others, Timing(knobs, tokens, depth, joined)))

    def with_faster(self, timing: Timing) -> Rates:
        """These rates with `timing` in place of one of the same point that was slower."""
        same = [
            t
            for t in self.timings
            if (t.knobs, t.tokens, t.depth) == (timing.knobs, timing.tokens, timing.depth)
        ]
        best = min(*same, timing, key=lambda t: median(t.seconds))
        return replace(self, timings=(*(t for t in self.timings if t not in same), best))

    def with_footprint(self, settings: Settings, memory: Memory) -> Rates:
        others = tuple(f for f in self.footprints if f.settings != settings)
        return replace(self, footprints=(*others, Footprint(settings, memory)))

    def with_tried(self, settings: Iterable[Settings]) -> Rates:
        return replace(self, tried=(*self.tried, *map(_without_context, settings)))

    def was_tried(self, settings: Settings) -> bool:
        return _without_context(settings) in self.tried

    def points(self, knobs: Knobs) -> tuple[Timing, ...]:
        """All timings of one phase under one setting."""
        return tuple(t for t in self.timings if t.knobs == knobs)


class PassRates(Struct, frozen=True):
    """What passes over the shapes of one model cost on this machine, whatever its matrices are stored in.

    Units:
        layers: of every slice, a file with the first layers of the model and next to no vocabulary, by phase: decode
            reads more weights than the last-level cache holds, and for prefill that would only take time.
        threads: of all timings but those that `others` holds.
        pace_seconds: a token of the reference, by phase: the pace that all timings of passes were scaled to.
        slices: by the type of all matrices: passes at several batches.
        head: passes of one layer with the whole vocabulary, in the type `HEAD`.
        others: passes of the slice `REFERENCE` with other threads, flash attention, cache types, and at depth.
        kernels: products of single matrices, which tell what share of a pass each matrix has.
        disturbed: samples that were thrown away because other work took the cores.
        pace_spread: relative deviation of the machine's pace meanwhile, of the phase where it was larger.
        memory_bytes_per_s: what the memory gave meanwhile, looked at between the slices.
    """

    engine_version: str
    layers: dict[Kind, int]
    threads: int
    pace_seconds: dict[Kind, float]
    slices: dict[str, Rates]
    head: Rates
    others: Rates
    kernels: KernelRates
    load_average: float | None = None
    disturbed: int = 0
    pace_spread: float = 0.0
    memory_bytes_per_s: tuple[float, ...] = ()

    def know(self, settings: Settings) -> bool:
        """Whether such micro-batches, flash attention and cache were timed with the build of `settings`."""
        timed = [t.knobs for t in self.others.timings if t.knobs.build == settings.build]
        attention = {(k.flash_attention, k.cache_type) for k in timed}
        batches = {k.micro_batch for k in timed}
        return (
            settings.micro_batch in batches and (settings.flash_attention, settings.cache_type) in attention
        )


def _without_context(settings: Settings) -> Settings:
    return replace(settings, context_tokens=0)
