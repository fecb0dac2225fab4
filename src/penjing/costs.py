"""What each format would cost each matrix of a model: measured once, kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from msgspec import Struct

from penjing import __version__, store
from penjing.engines.llamacpp.library import PINNED
from penjing.model import Model, Tensor
from penjing.progress import bar
from penjing.quality import menu, stock
from penjing.quality.allocate import Item
from penjing.quality.sensitivity import Sensitivity
from penjing.quantize.errors import Cost, cost, gain
from penjing.quantize.native import Native
from penjing.quantize.rounding import WAY
from penjing.quantize.tensors import Tensors

_GAIN_STEPS = 8  # what trying out a gain takes, in costs


class _Tables(Struct, frozen=True):
    """Costs by tensor and format, and what refining leaves of them by role and format."""

    costs: dict[str, dict[str, Cost]]
    gains: dict[str, dict[str, float]]


def menu_of(
    tensors: Tensors,
    native: Native,
    model: Model,
    sensitivity: Sensitivity,
    *,
    refined: bool,
    least_bits: float,
    source_hash: str,
) -> list[Item]:
    """Every matrix with what each format costs it, from samples of rows; kept in the cache."""
    matrices = [t for t in model.tensors if stock.is_quantized(t) and t.name in sensitivity.moments]
    s = sensitivity
    basis = f"{s.tokens} {s.text_sha256} {s.seed} {s.source} {s.version}"
    key = f"{source_hash} {basis} {least_bits} {PINNED} {WAY} {__version__} {menu.KINDS}"
    name = f"costs/{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    tables = store.recall(name, _Tables)
    if tables is None:
        tables = _measured(tensors, native, matrices, sensitivity, least_bits)
        store.remember(name, tables)
    return [_item(t, tables, refined=refined) for t in matrices]


def _item(tensor: Tensor, tables: _Tables, *, refined: bool) -> Item:
    gains = tables.gains.get(tensor.role, {}) if refined else {}
    costs = tables.costs[tensor.name]
    return menu.item(tensor, {kind: c.kld * gains.get(kind, 1.0) + c.noise for kind, c in costs.items()})


def _measured(
    tensors: Tensors, native: Native, matrices: Sequence[Tensor], sensitivity: Sensitivity, least_bits: float
) -> _Tables:
    """Costs of all matrices; the gain of refining, which is slow to try, of two matrices of each role."""
    samples = _representatives(matrices)
    with bar("costs of formats", len(matrices) + _GAIN_STEPS * len(samples)) as shown:

        def work(call: Callable[..., dict[str, Any]], steps: int, tensor: Tensor) -> dict[str, Any]:
            kinds = menu.kinds_for(tensor, least_bits)
            found = call(tensors, native, tensor.name, kinds, sensitivity.moments[tensor.name])
            shown.advance(steps)
            return found

        with ThreadPoolExecutor(native.threads) as pool:
            gains = list(pool.map(partial(work, gain, _GAIN_STEPS), samples))
            costs = list(pool.map(partial(work, cost, 1), matrices))
    return _Tables(
        costs=dict(zip((t.name for t in matrices), costs, strict=True)),
        gains={role: _mean_gain([g for t, g in zip(samples, gains, strict=True) if t.role == role])
               for role in {t.role for t in samples}},
    )  # fmt: skip


def _representatives(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Of each role the tensors at a third and at two thirds of the depth."""
    by_role: dict[str, list[Tensor]] = {}
    for tensor in matrices:
        by_role.setdefault(tensor.role, []).append(tensor)
    found = []
    for group in by_role.values():
        found += [group[i] for i in sorted({len(group) // 3, 2 * len(group) // 3} & set(range(len(group))))]
    return found


def _mean_gain(gains: Sequence[dict[str, float]]) -> dict[str, float]:
    """Geometric means of what all have."""
    kinds = set.intersection(*(set(g) for g in gains))
    return {kind: float(np.exp(np.mean([np.log(max(g[kind], 1e-6)) for g in gains]))) for kind in kinds}
