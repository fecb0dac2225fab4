"""What other settings change in a pass than those of the slices, from timings of one slice.

Flash attention, types of the cache and micro-batches do not depend on what matrices are stored in; they are timed on
one slice, after few tokens and at depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penjing.model import Layer, Model
from penjing.plan import Build, CacheType, FlashAttention
from penjing.rates import Kind, Knobs, PassRates

NEAR_BY_KIND: dict[Kind, int] = {
    "prefill": 0,
    "decode": 1,
}  # positions before what is timed: few, to be filled soon
DEEP_BY_KIND: dict[Kind, int] = {"prefill": 1024, "decode": 2048}  # where attention is timed
STEPS, LONG = 8, 512  # of decode, and tokens of prefill, in a timing of attention
SMALL_BATCH = 128  # of prefill: activations that stay in the cache, against fewer passes over the weights
_USUAL_DEPTH = 1024  # positions


class Variants:
    """See the module. `shapes` is any model with these shapes."""

    def __init__(self, shapes: Model, rates: PassRates) -> None:
        self._shapes, self._rates = shapes, rates

    def attention(
        self, kind: Kind, build: Build, flash: FlashAttention, cached: CacheType
    ) -> tuple[float, float, float]:
        """Seconds for each layer: what a token takes more than under the settings of the slices, and what every
        token adds for each one before it; and the share of a pass that settings which are faster leave of it.

        Raises:
            KeyError: these settings were not timed.
        """
        near, depth = NEAR_BY_KIND[kind], DEEP_BY_KIND[kind]
        plain = self._seconds(kind, build, "auto", "f16", near)
        here = self._seconds(kind, build, flash, cached, near)
        deep = self._seconds(kind, build, flash, cached, depth)
        tokens = LONG if kind == "prefill" else STEPS
        layers = max(1.0, attending(self._shapes.layers[: self._rates.layers[kind]])) * tokens
        return (
            (here - plain) / layers,
            max(0.0, deep - here) / layers / (depth - near),
            min(1.0, here / plain),
        )

    def in_batches(self, knobs: Knobs, tokens: int) -> float:
        """Time of a prompt in micro-batches over that in one pass, after others if it was timed there.

        Raises:
            KeyError: prompts were not timed in such micro-batches.
        """
        if tokens <= knobs.micro_batch:
            return 1.0
        usual, small = (
            self._seconds("prefill", knobs.build, "auto", "f16", 0, micro_batch)
            for micro_batch in (LONG, knobs.micro_batch)
        )
        return small / usual

    def by_threads(self, knobs: Knobs) -> float:
        """Time with the threads of `knobs` over that with the threads of the slices."""
        if knobs.threads == self._rates.threads:
            return 1.0
        tokens, depth = LONG if knobs.kind == "prefill" else STEPS, NEAR_BY_KIND[knobs.kind]
        seen = {
            t.knobs.threads: float(np.median(t.seconds))
            for t in self._rates.others.timings
            if (t.knobs.kind, t.tokens, t.depth) == (knobs.kind, tokens, depth)
            and (t.knobs.flash_attention, t.knobs.cache_type) == ("auto", "f16")
            and t.knobs.micro_batch in (0, LONG)
            and t.knobs.build == "wheel"
        }
        return seen[knobs.threads] / seen[self._rates.threads]

    def _seconds(
        self, kind: Kind, build: Build, flash: FlashAttention, cached: CacheType, depth: int,
        micro_batch: int = LONG,
    ) -> float:  # fmt: skip
        tokens, batch = (LONG, micro_batch) if kind == "prefill" else (STEPS, 0)
        wanted = (kind, build, flash, cached, batch, tokens, depth, self._rates.threads)
        for t in self._rates.others.timings:
            k = t.knobs
            known = (
                k.kind,
                k.build,
                k.flash_attention,
                k.cache_type,
                k.micro_batch,
                t.tokens,
                t.depth,
                k.threads,
            )
            if known == wanted:
                return float(np.median(t.seconds))
        raise KeyError(wanted)


def attending(layers: Sequence[Layer]) -> float:
    """Layers that look at what lies before; one with a window counts for what it sees of `_USUAL_DEPTH`."""
    return sum(
        min(1.0, (layer.window_tokens or _USUAL_DEPTH) / _USUAL_DEPTH)
        for layer in layers
        if layer.key_width and layer.heads
    )
