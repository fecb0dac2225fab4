"""Settings that are worth a measurement, one knob away from the engine's default, and their combinations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from statistics import median

from msgspec.structs import replace

from penjing.cost.memory import Traits, is_repacked
from penjing.cost.variants import SMALL_BATCH
from penjing.machine import Cores
from penjing.model import Model
from penjing.plan import FlashAttention, Refusal, Settings
from penjing.rates import Knobs, Rates
from penjing.workload import Workload

_FREE = {
    "threads", "prefill_threads", "repack", "prefill_repack", "flash_attention", "cache_type", "micro_batch",
    "build",
}  # fmt: skip


def thread_counts(cores: Cores) -> list[int]:
    """Counts to try, most promising first: what may be used, all logical, one less, half, one.

    More threads than cores that we may use only wait for each other at barriers.
    """
    usable = max(1, int(cores.usable or cores.logical or 1))
    physical = min(cores.physical or usable, usable)
    wanted = [physical, usable, physical - 1, physical // 2, 1]
    return list(dict.fromkeys(n for n in wanted if n >= 1))


def lean(settings: Settings, repacks: bool) -> Settings:
    """`settings` without a second copy: a map of the file beside repacked weights serves nothing.

    `repacks` tells whether the engine has a repacked layout for any tensor of the model.
    """
    return replace(settings, mapped=not (repacks and settings.repack and settings.prefill_repack))


def relaid(settings: Settings, repack: bool) -> Settings:
    """`settings` with one layout of the weights for both phases."""
    return replace(settings, repack=repack, prefill_repack=repack)


def singles(
    default: Settings, model: Model, cores: Cores, traits: Traits, workload: Workload
) -> tuple[list[Settings], list[Refusal]]:
    """The default and its neighbours by one knob, and why some knobs are left alone."""
    found, refused = [default], []
    repacks = any(is_repacked(t, traits) for t in model.tensors)
    frugal = lean(default, repacks)
    if repacks:
        found += [frugal, lean(relaid(default, not default.repack), repacks)]
    else:
        refused.append(Refusal("repacking on", "no tensor of this file has a type with a repacked kernel"))
    for build in traits.builds:
        if build != default.build:  # what it gains depends on the layout, so both of them are tried
            other = replace(default, build=build)
            found += [lean(relaid(other, on), repacks) for on in ((True, False) if repacks else (True,))]
    flash: Sequence[FlashAttention] = ("off",) if default.flash_attention != "off" else ("auto",)
    found += [replace(frugal, flash_attention=choice) for choice in flash]
    found += [
        replace(frugal, threads=n, prefill_threads=n) for n in thread_counts(cores) if n != default.threads
    ]
    found.append(replace(frugal, micro_batch=SMALL_BATCH))
    if workload.max_kld:
        found.append(replace(frugal, cache_type="q8_0"))
    else:
        refused.append(
            Refusal("cache type q8_0", "it changes the answers a little; allow it with `--max-kld 0.01`")
        )
    return found, refused


def frugal(default: Settings) -> list[Settings]:
    """For when memory is short: nothing copied, and smaller micro-batches, which need smaller buffers."""
    return [replace(relaid(default, False), mapped=True, micro_batch=m) for m in (512, 128, 32)]


def combinations(default: Settings, tried: Iterable[Settings], repacks: bool) -> list[Settings]:
    """Every product of the knob values among `tried`; threads and layout are chosen for each phase by itself.

    Without flash attention the engine refuses a quantized V cache, so that pair is left out.
    """
    known = [default, *tried]
    names = [name for name in Settings.__struct_fields__ if name in _FREE]
    values = [dict.fromkeys(getattr(s, name) for s in known) for name in names]
    mixed = (replace(default, **dict(zip(names, choice, strict=True))) for choice in product(*values))
    return [lean(s, repacks) for s in mixed if not (s.flash_attention == "off" and s.cache_type != "f16")]


def composed(rates: Rates, default: Settings, settings: Settings) -> Rates | None:
    """`rates` with a guess for `settings`: the default's times, scaled by what each single knob changed.

    None if some knob of it was never timed by itself.
    """
    for kind in ("prefill", "decode"):
        knobs, base = Knobs.of(kind, settings), Knobs.of(kind, default)
        if rates.points(knobs):
            continue
        alone = _steps(base, knobs)
        if not all(rates.points(single) for single in alone):
            return None
        for point in rates.points(base):
            factor = 1.0
            for single in alone:
                factor *= _ratio(rates, single, base, point.tokens, point.depth)
            rates = rates.add(knobs, point.tokens, point.depth, tuple(s * factor for s in point.seconds))
    return rates


def _steps(base: Knobs, target: Knobs) -> list[Knobs]:
    names = [n for n in Knobs.__struct_fields__ if n != "kind" and getattr(base, n) != getattr(target, n)]
    return [replace(base, **{name: getattr(target, name)}) for name in names]


def _ratio(rates: Rates, single: Knobs, base: Knobs, tokens: int, depth: int) -> float:
    """Median of the single over that of the base at the nearest point that both have."""
    mine = {(t.tokens, t.depth): median(t.seconds) for t in rates.points(single)}
    theirs = {(t.tokens, t.depth): median(t.seconds) for t in rates.points(base)}
    shared = sorted(mine.keys() & theirs.keys(), key=lambda p: (abs(p[1] - depth), abs(p[0] - tokens)))
    return mine[shared[0]] / theirs[shared[0]] if shared else 1.0
