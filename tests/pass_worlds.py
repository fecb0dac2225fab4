"""A machine whose passes are known exactly: products by a formula, times a factor, and some seconds for each layer."""

from __future__ import annotations

from itertools import product

import numpy as np

from penjing.cost.memory import Traits
from penjing.cost.passes import (
    HEAD,
    ONE,
    REFERENCE,
    Passes,
    Point,
    Way,
    head_of,
    kernels_for,
    matrices,
    points_for,
)
from penjing.cost.variants import DEEP_BY_KIND, LONG, NEAR_BY_KIND, STEPS
from penjing.formats import BY_NAME, type_bytes
from penjing.model import Layer, Model, Tensor
from penjing.quality import stock
from penjing.rates import Kernel, KernelRates, KernelTiming, Knobs, PassRates, Rates

KINDS = ("q4_0", "q4_K", "q6_K", "q8_0")
TRAITS = Traits("fake", "1", frozenset({"q4_0", "q4_K"}), 10**6, 0, ("wheel", "native"))
FACTOR, LAYER_SECONDS, DRAW_SECONDS = 1.04, 3e-5, 2e-4
SMALL_BATCHES = 1.2  # times as long for a prompt of several of them
ATTENTION = {"prefill": 1e-9, "decode": 2e-8}  # seconds for each layer, token and position before it
WIDTH, HIDDEN, VOCABULARY = 512, 1024, 2048
SLICE_LAYERS = {"prefill": 2, "decode": 3}


def shapes(kind: str = "f16", layers: int = 6, hidden: int = HIDDEN) -> Model:
    """A dense model with a tied embedding."""
    sizes = {
        "attn_q": ("attention_q", WIDTH, WIDTH), "attn_k": ("attention_k", WIDTH, 128),
        "attn_v": ("attention_v", WIDTH, 128), "attn_output": ("attention_output", WIDTH, WIDTH),
        "ffn_gate": ("ffn_gate", WIDTH, hidden), "ffn_up": ("ffn_up", WIDTH, hidden),
        "ffn_down": ("ffn_down", hidden, WIDTH),
    }  # fmt: skip
    tensors = [_tensor("token_embd.weight", "token_embedding", WIDTH, VOCABULARY, kind, None)]
    for layer in range(layers):
        tensors += [
            _tensor(f"blk.{layer}.{n}.weight", r, i, o, kind, layer) for n, (r, i, o) in sizes.items()
        ]
    layer = Layer("full", heads=8, key_width=128, value_width=128)
    return Model("known", "llama", True, "test", WIDTH, VOCABULARY, 8192, (layer,) * layers, tuple(tensors))


def _tensor(name: str, role: str, columns: int, rows: int, kind: str, layer: int | None) -> Tensor:
    return Tensor(name, role, (columns, rows), kind, type_bytes(kind, columns * rows, columns), layer)


def product_seconds(kernel: Kernel) -> float:
    """More bits take longer to read; repacked weights are slow in batches and quick alone; native is quicker."""
    bits = BY_NAME[kernel.type].bits_per_weight
    pace = {"q6_K": 0.5, "q4_K": 0.6}.get(kernel.type, 1.0)  # of arithmetic
    reading = 3 * bits * (0.7 if kernel.repack else 1.0)
    arithmetic = 0.2 * kernel.batch * pace * (1.5 if kernel.repack else 1.0)
    return (
        1e-10
        * kernel.rows
        * kernel.columns
        * (reading + arithmetic)
        * (0.6 if kernel.build == "native" else 1)
    )


def pass_seconds(model: Model, way: Way, point: Point, *, layers: float) -> float:
    """Of the layers of `model` as they are stored, without the head; the truth that `Passes` has to find."""
    last = max(t.layer for t in matrices(model))
    total = layers * LAYER_SECONDS
    for t in matrices(model):
        late = point.phase == "prefill" and t.layer == last and t.role.startswith("ffn")
        repack = way.repack and t.type in TRAITS.repacked_types
        kernel = Kernel(
            t.type, t.shape[1], t.shape[0], 1 if late else point.batch, 2, repack, build=way.build
        )
        total += FACTOR * product_seconds(kernel)
    return total


def rates(
    model: Model,
    kinds: tuple[str, ...] = KINDS,
    together: tuple[int, ...] = (1,),
    checks: tuple[int, ...] = (),
) -> PassRates:
    points = points_for(together)
    multiplied = (*points, *(Point("decode", n) for n in checks))
    kernels = kernels_for(model, (*kinds, "f16"), TRAITS, multiplied, 2)
    timed = tuple(KernelTiming(k, (product_seconds(k),), (product_seconds(k),)) for k in kernels)
    slices = {kind: _slice(model, kind, points) for kind in kinds}
    reference = _cut(model, REFERENCE, SLICE_LAYERS["decode"])
    step = pass_seconds(reference, Way("wheel", False), ONE, layers=SLICE_LAYERS["decode"])
    return PassRates(
        "1",
        SLICE_LAYERS,
        2,
        {"prefill": 0.5, "decode": step},
        slices,
        _head(model),
        _others(),
        KernelRates("1", timed),
    )


def passes(model: Model, **options: object) -> Passes:
    return Passes(model, rates(model, **options), TRAITS)


def _slice(model: Model, kind: str, points: tuple[Point, ...]) -> Rates:
    found = Rates("1")
    for point, build, repack in product(points, TRAITS.builds, (False, True)):
        layers = SLICE_LAYERS[point.phase]
        cut = _cut(model, kind, layers)
        count = layers - (0.5 if point.phase == "prefill" else 0)
        seconds = pass_seconds(cut, Way(build, repack), point, layers=count)
        found = _add(found, point, build, repack, seconds)
    return found


def _cut(model: Model, kind: str, layers: int) -> Model:
    from penjing.quality.menu import retyped

    kept = [t for t in model.tensors if t.layer is None or t.layer < layers]
    names = {t.name: kind for t in kept if stock.is_quantized(t)}
    short = Model("cut", "llama", True, "test", WIDTH, VOCABULARY, 8192, model.layers[:layers], tuple(kept))
    return retyped(short, names)


def _add(found: Rates, point: Point, build: str, repack: bool, seconds: float) -> Rates:
    prefill = point.phase == "prefill"
    knobs = Knobs(
        point.phase, 2, repack, "auto", "f16", 512 if prefill else 0, build, 1 if prefill else point.batch
    )
    tokens = point.batch if prefill else STEPS
    return found.add(knobs, tokens, NEAR_BY_KIND[point.phase], (seconds * (1 if prefill else STEPS),) * 3)


def _head(model: Model) -> Rates:
    found = Rates("1")
    for build in TRAITS.builds:
        cut = _cut(model, HEAD, 1)
        head = head_of(cut)
        seconds = pass_seconds(cut, Way(build, False), Point("decode", 1), layers=1) + DRAW_SECONDS
        seconds += FACTOR * product_seconds(Kernel(HEAD, head.shape[1], head.shape[0], 1, 2, build=build))
        found = _add(found, Point("decode", 1), build, False, seconds)
    return found


def _others() -> Rates:
    """Attention without flash takes half as long again; one thread takes twice the time. The wheel is timed as is."""
    found = Rates("1")
    changed = [("native", *change) for change in product(("auto", "off"), ("f16", "q8_0"))]
    for (build, flash, cached), kind in product([("wheel", "auto", "f16"), *changed], ATTENTION):
        tokens = LONG if kind == "prefill" else STEPS
        for depth in (NEAR_BY_KIND[kind], DEEP_BY_KIND[kind]):
            slope = ATTENTION[kind] * (1.5 if flash == "off" else 1.0)
            seconds = 0.01 + tokens * SLICE_LAYERS[kind] * slope * (depth - NEAR_BY_KIND[kind])
            for threads in (2, 1):
                knobs = Knobs(kind, threads, False, flash, cached, 512 if kind == "prefill" else 0, build)
                found = found.add(knobs, tokens, depth, (seconds * 2 / threads,) * 3)
    small = Knobs("prefill", 2, False, "auto", "f16", 128, "native")
    return found.add(small, LONG, 0, (SMALL_BATCHES * 0.01,) * 3)


def known_step(model: Model, way: Way, together: int = 1) -> float:
    """Seconds of a step of decode, the head and the draws included."""
    head = head_of(model)
    repack = way.repack and head.type in TRAITS.repacked_types
    logits = FACTOR * product_seconds(
        Kernel(head.type, head.shape[1], head.shape[0], together, 2, repack, build=way.build)
    )
    body = pass_seconds(model, way, Point("decode", together), layers=len(model.layers))
    return body + logits + together * DRAW_SECONDS


def mixed(model: Model, seed: int = 0) -> dict[str, str]:
    """A type drawn for every matrix."""
    draw = np.random.default_rng(seed)
    return {t.name: str(draw.choice(KINDS)) for t in model.tensors if stock.is_quantized(t)}
