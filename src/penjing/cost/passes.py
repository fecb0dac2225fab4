"""Seconds of a pass over a model with any types, from passes over slices that have one type each.

A pass is made of matrix products and of what lies between them. The products of all shapes and types are timed alone,
and passes of the engine over slices of the model tell what more there is (`cost.factors`). A model with a mix of
types then takes the sum over its own products and layers, besides attention over what lies before, and the head,
where logits are computed and a token is drawn. The feed-forward part of the last layer and the head are computed only
for tokens whose logits are asked for: in prefill that is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import product
from typing import Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from penjing.cost import speed
from penjing.cost.factors import NOISE, Factors, between, fit
from penjing.cost.memory import Traits
from penjing.cost.variants import DEEP_BY_KIND, LONG, NEAR_BY_KIND, STEPS, Variants, attending
from penjing.drafting import Habit
from penjing.model import Model, Tensor
from penjing.plan import Build, Drafting, Settings
from penjing.quality import stock
from penjing.rates import Kernel, Kind, Knobs, PassRates, Rates, Timing

Phase = Literal["prefill", "decode"]


class Point(Struct, frozen=True):
    """`batch` tokens of one prompt in a pass, or one of each of `batch` sequences."""

    phase: Phase
    batch: int


PREFILLS = tuple(Point("prefill", n) for n in (32, 128, 512))
ONE = Point("decode", 1)
# tokens of passes that check guesses; others are on the line between two of them
CHECKS = (1, 2, 3, 4, 5, 9, 17)
HEAD = REFERENCE = "q8_0"
# of a matrix that is timed, with few tokens and with many; the time of more rows is in proportion
_MOST_ROWS, _MOST_ROWS_AT_ONCE = 16384, 2048
_LATE_SHARE = 0.5  # of the last layer, that prefill does not compute
_ROUNDS = 3
WAVES = 0.06  # relative: within seconds a shared machine changes by so much and back (docs/log.md)
_MUCH = 1.25  # times as long as expected; types differ by some 10 % in what their products take in a pass
_DOUBT = 0.04  # relative half-width: of any composed time
_UNKNOWN_DOUBT = 0.15  # and of products in types without a slice
_LATE = frozenset({"ffn_gate", "ffn_up", "ffn_down", "ffn_gate_up", "expert_gate", "expert_up", "expert_down",
                   "expert_gate_up", "shared_gate", "shared_up", "shared_down"})  # fmt: skip
Array = np.ndarray


class Way(Struct, frozen=True):
    """How a pass is computed, beside its types: the engine's build and the layout of the weights."""

    build: Build
    repack: bool


def matrices(model: Model) -> list[Tensor]:
    """What a token is multiplied with in the layers: without the head, norms, routers and idle drafting heads."""
    return [
        t
        for t in model.tensors
        if stock.is_quantized(t) and t.layer is not None and t.role not in ("draft", "token_embedding")
    ]


def head_of(model: Model) -> Tensor:
    """The matrix that makes the logits: the output, or the token embedding that doubles as one.

    Raises:
        StopIteration: there is none.
    """
    found = next((t for t in model.tensors if t.role == "output" and len(t.shape) > 1), None)
    return found or next(t for t in model.tensors if t.role == "token_embedding")


def points_for(together: Iterable[int]) -> tuple[Point, ...]:
    """What has to be timed for prefill, and for decode of so many sequences together; one alone always is."""
    return (*(Point("decode", n) for n in sorted({1, *together})), *PREFILLS)


def kernels_for(
    model: Model, kinds: Iterable[str], traits: Traits, points: Sequence[Point], threads: int
) -> list[Kernel]:
    """The products whose times `Passes` asks for, with matrices in each of `kinds`."""
    head = head_of(model)
    wanted = [
        _kernel(model, t.shape, kind, Way(build, repack), point.batch, threads, traits)
        for kind in kinds
        for build in traits.builds
        for repack in (False, True)
        for point in points
        for t in (*matrices(model), *([head] if point.phase == "decode" else []))
        if stock.fallback(kind, t.shape[0]) == kind
    ]
    return list(dict.fromkeys(wanted))


def _kernel(
    model: Model, shape: Sequence[int], kind: str, way: Way, batch: int, threads: int, traits: Traits
) -> Kernel:
    columns, rows, *stack = shape
    repack = way.repack and kind in traits.repacked_types and rows % 8 == 0
    experts = (stack[0], model.experts_used) if stack else (0, 0)
    return Kernel(kind, min(rows, _most_rows(batch)), columns, batch, threads, repack, *experts, way.build)


def _most_rows(batch: int) -> int:
    return _MOST_ROWS if batch < PREFILLS[0].batch else _MOST_ROWS_AT_ONCE


def _times_timed(shape: Sequence[int], batch: int) -> float:
    """How many times as many rows a matrix has as were timed."""
    return max(1.0, shape[1] / _most_rows(batch))


class Passes:
    """See the module. `shapes` is any model with these shapes; what its tensors are stored in does not matter.

    `habits`: ways of guessing ahead that times are asked for; their passes are composed of products alone.
    """

    def __init__(self, shapes: Model, rates: PassRates, traits: Traits, habits: Iterable[Habit] = ()) -> None:
        self._shapes, self._traits = shapes, traits
        self.habits = {habit.drafting: habit for habit in habits}
        self.measured = self._rates = rates
        self._seconds = {t.kernel: float(np.median(t.seconds)) for t in rates.kernels.timings}
        self._known = set(rates.slices)
        self._factors = cache(self._fit)
        self._draws = cache(self._draw_seconds)
        self._products = cache(self._product_seconds)
        self._variants = Variants(shapes, rates)

    def product(self, tensor: Tensor, kind: str, way: Way, point: Point) -> Array:
        """Seconds that one tensor in the type `kind` adds to a pass, one number for each round: shape (rounds,).

        Raises:
            KeyError: no such product was timed.
        """
        is_head = tensor.layer is None
        late = is_head or (tensor.layer == self._last and tensor.role in _LATE)
        here = ONE if late and point.phase == "prefill" else point
        return self._products(tensor.shape, kind, way, here)

    def _product_seconds(self, shape: tuple[int, ...], kind: str, way: Way, point: Point) -> Array:
        kernel = _kernel(self._shapes, shape, kind, way, point.batch, self._rates.threads, self._traits)
        factor = self._factors(way.build, point).of((kind, kernel.repack))
        seconds: Array = factor * self._seconds[kernel] * _times_timed(shape, point.batch)
        return seconds

    def step(self, drafting: Drafting, together: int = 1) -> dict[Point, float]:
        """The passes that a token of every sequence takes, and how many of each."""
        if drafting.kind == "none":
            return {Point("decode", together): 1.0}
        return _checks(self.habits[drafting].usual)

    def guess_ratios(self, model: Model, way: Way, drafting: Drafting) -> dict[str, float]:
        """Time of decode with guesses over that without, by kind of prompt."""
        seconds = {n: float(np.median(self.pass_seconds(model, way, Point("decode", n)))) for n in CHECKS}
        return {
            domain: sum(weight * seconds[point.batch] for point, weight in _checks(passes).items())
            / seconds[1]
            for domain, passes in self.habits[drafting].passes.items()
        }

    def for_prompt(self, tensor: Tensor, kind: str, way: Way, tokens: int) -> float:
        """Seconds that one tensor adds to the prefill of `tokens` tokens in micro-batches of 512, the median round."""
        weights = speed.weights([p.batch for p in PREFILLS], tokens).items()
        return float(
            np.median(sum(w * self.product(tensor, kind, way, Point("prefill", n)) for n, w in weights))
        )

    def for_token(self, tensor: Tensor, kind: str, way: Way, step: Mapping[Point, float]) -> float:
        """Seconds that one tensor adds to a drawn token, which takes the passes of `step`; the median round."""
        return float(
            np.median(sum(count * self.product(tensor, kind, way, point) for point, count in step.items()))
        )

    @cached_property
    def _unsteady(self) -> float:
        """What the pace varied by beyond the usual waves."""
        return max(0.0, self.measured.pace_spread - WAVES)

    @cached_property
    def _last(self) -> int:
        """Number of the last layer that is computed; the layers of drafting heads come after it."""
        return max((t.layer for t in matrices(self._shapes) if t.layer is not None), default=0)

    def pass_seconds(self, model: Model, way: Way, point: Point) -> Array:
        """Seconds of a pass after no more than a few tokens, the draws of tokens included: shape (rounds,)."""
        logits = replace(head_of(model), layer=None)
        total = sum(
            (self.product(t, t.type, way, point) for t in (*matrices(model), logits)), np.zeros(_ROUNDS)
        )
        layers = len({t.layer for t in matrices(model)}) - (_LATE_SHARE if point.phase == "prefill" else 0)
        outputs = point.batch if point.phase == "decode" else 1
        between = layers * self._factors(way.build, point).layer_seconds
        seconds: Array = total + between + outputs * self._draws(way.build)
        return seconds

    def text_doubt(self, drafting: Drafting) -> float:
        """Half-width, relative, that a token's time has because texts differ in how well they are guessed."""
        return self.habits[drafting].spread if drafting.kind != "none" else 0.0

    def doubt(self, model: Model) -> float:
        """Half-width, relative, that composing adds to the interval; more where the pace varied meanwhile."""
        unknown = sum(t.n_bytes for t in matrices(model) if t.type not in self._known)
        return _DOUBT + self._unsteady + _UNKNOWN_DOUBT * unknown / max(1, model.n_bytes)

    def rates(self, model: Model, wanted: Iterable[Settings]) -> Rates:
        """Rates of `model` as if it had been timed under each of `wanted`, at depths and lengths that tell the rest.

        The sequences that decode at once have to be one of the numbers that slices were timed with.
        """
        measured = self._rates
        found = Rates(
            measured.engine_version, load_average=measured.load_average, disturbed=measured.disturbed
        )
        kinds: tuple[Kind, ...] = ("prefill", "decode")
        every = [Knobs.of(kind, settings) for settings in wanted for kind in kinds]
        timings = [t for knobs in dict.fromkeys(every) for t in self._timed(model, knobs)]
        return replace(found, timings=tuple(timings))

    # ---- what the timings of slices say -------------------------------------------------------------

    def _fit(self, build: Build, point: Point) -> Factors:
        """Factors of a build at a point, from all slices that were timed there.

        Passes that check guesses were not: they are between one token and the least prompt.
        """
        slices = list(self._slices(build, point))
        sums = [self._sums(kind, way, point) for kind, way, _ in slices]
        times = [seconds for _, _, seconds in slices]
        if not times and ONE.batch < point.batch < PREFILLS[0].batch:
            share = (point.batch - ONE.batch) / (PREFILLS[0].batch - ONE.batch)
            return between(self._factors(build, ONE), self._factors(build, PREFILLS[0]), share)
        layers = [self._slice_layers(point)] * len(sums)
        return fit(sums, layers, np.array(times).reshape(-1, _ROUNDS), NOISE + self._unsteady / 2)

    def _slices(self, build: Build, point: Point) -> Iterator[tuple[str, Way, Array]]:
        """The slices that a build was timed with at a point, and the seconds of a pass."""
        for kind, rates in self._rates.slices.items():
            for repack in (False, True):
                way = Way(build, repack)
                seconds = _seconds(rates, way, point, self._rates.threads)
                if seconds is not None:
                    yield kind, way, seconds

    def _slice_layers(self, point: Point) -> float:
        """Layers of a slice, as far as a pass computes them."""
        return self._rates.layers[point.phase] - (_LATE_SHARE if point.phase == "prefill" else 0)

    def doubtful(self, points: Iterable[Point]) -> list[tuple[str, Way, Point]]:
        """Slices that took much longer than their products and all other slices say: something else took the time."""
        found = []
        for build, point in product(self._traits.builds, points):
            factors = self._factors(build, point)
            between_products = self._slice_layers(point) * factors.layer_seconds
            for kind, way, seconds in self._slices(build, point):
                expected = factors.usual * sum(self._sums(kind, way, point).values()) + between_products
                if np.median(seconds) > _MUCH * np.median(expected):
                    found.append((kind, way, point))
        return found

    def _sums(self, kind: str, way: Way, point: Point) -> dict[tuple[str, bool], float]:
        """Seconds of the products of a slice alone, by type and layout."""
        found: dict[tuple[str, bool], float] = {}
        last = self._rates.layers[point.phase] - 1
        for t in matrices(self._shapes):
            if t.layer is None or t.layer > last:
                continue
            late = point.phase == "prefill" and t.layer == last and t.role in _LATE
            batch = 1 if late else point.batch
            stored = stock.fallback(kind, t.shape[0])
            kernel = _kernel(self._shapes, t.shape, stored, way, batch, self._rates.threads, self._traits)
            key = stored, kernel.repack
            found[key] = found.get(key, 0.0) + self._seconds[kernel] * _times_timed(t.shape, batch)
        return found

    def _draw_seconds(self, build: Build) -> Array:
        """Seconds of drawing a token and of a pass as such: what head and one layer leave of a pass over both."""
        way = Way(build, False)
        seen = _seconds(self._rates.head, way, ONE, self._rates.threads)
        if seen is None:
            return np.zeros(_ROUNDS)
        first = [t for t in matrices(self._shapes) if t.layer == 0]
        head = replace(head_of(self._shapes), layer=None)
        products = sum((self.product(t, stock.fallback(HEAD, t.shape[0]), way, ONE) for t in (*first, head)),
                       np.zeros(_ROUNDS))  # fmt: skip
        rest: Array = np.maximum(0.0, seen - products - self._factors(build, ONE).layer_seconds)
        return rest

    # ---- what a model would take --------------------------------------------------------------------

    def _timed(self, model: Model, knobs: Knobs) -> list[Timing]:
        more, share, left = self._variants.attention(
            knobs.kind, knobs.build, knobs.flash_attention, knobs.cache_type
        )
        layers = attending(model.layers)
        flat = (
            self._flat_prefill(model, knobs) if knobs.kind == "prefill" else self._flat_decode(model, knobs)
        )
        doubt = self.doubt(model) + self.text_doubt(knobs.drafting)
        computed = sum(
            point.batch * count for point, count in self.step(knobs.drafting, knobs.together).items()
        )
        found = []
        for tokens, seconds in flat.items():
            # timings of a short pass differ by more than settings do: what is saved is never more than there is
            seconds = np.maximum(seconds + more * layers * tokens, left * seconds)
            near = NEAR_BY_KIND[knobs.kind]
            depths = (near, DEEP_BY_KIND[knobs.kind]) if tokens in (STEPS, LONG) else (near,)
            for depth in depths:
                added = share * layers * tokens * (depth - depths[0]) * computed
                every = (seconds + added) * self._variants.by_threads(knobs)
                found.append(Timing(knobs, tokens, depth, tuple(float(s) for s in every), doubt))
        return found

    def _flat_decode(self, model: Model, knobs: Knobs) -> dict[int, Array]:
        way, step = Way(knobs.build, knobs.repack), self.step(knobs.drafting, knobs.together)
        total = sum((count * self.pass_seconds(model, way, point) for point, count in step.items()),
                    np.zeros(_ROUNDS))  # fmt: skip
        return {STEPS: STEPS * total}

    def _flat_prefill(self, model: Model, knobs: Knobs) -> dict[int, Array]:
        """Prompts from an empty cache, by length, with what smaller micro-batches take more."""
        way = Way(knobs.build, knobs.repack)
        found = {}
        for tokens in (point.batch for point in PREFILLS):
            each = self.pass_seconds(model, way, Point("prefill", tokens))
            found[tokens] = each * self._variants.in_batches(knobs, tokens)
        return found


def _seconds(rates: Rates, way: Way, point: Point, threads: int) -> Array | None:
    """Seconds of a pass in each of `_ROUNDS` rounds; None if it was not timed."""
    for t in rates.timings:
        k = t.knobs
        batch = t.tokens if k.kind == "prefill" else k.together
        if (k.kind, batch, k.build, k.repack, k.threads) == (
            point.phase,
            point.batch,
            way.build,
            way.repack,
            threads,
        ):
            each = _in_rounds(t.seconds)
            return each if k.kind == "prefill" else each / t.tokens
    return None


def _checks(passes: Mapping[int, float]) -> dict[Point, float]:
    """Passes by their guesses as passes over so many tokens as are timed."""
    found: dict[Point, float] = {}
    for guesses, count in passes.items():
        for tokens, share in speed.weights(CHECKS, guesses + 1).items():
            if share:
                point = Point("decode", tokens)
                found[point] = found.get(point, 0.0) + share * count
    return found


def _in_rounds(seconds: Sequence[float]) -> Array:
    """Medians of a third of the samples each; of few, some count twice."""
    if len(seconds) < _ROUNDS:
        return np.resize(np.array(seconds), _ROUNDS)
    return np.array([np.median(seconds[i::_ROUNDS]) for i in range(_ROUNDS)])
