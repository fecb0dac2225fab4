"""What the page shows, as plain values: machine, plan, types by layer, memory, roofline, load."""

from __future__ import annotations

import time
from typing import Any

from penjing.formats import BY_NAME
from penjing.model import Model
from penjing.plan import Chosen
from penjing.serve.desk import Desk
from penjing.serve.spec import Spec


def still(spec: Spec) -> dict[str, Any]:
    """All that stays as it is until another plan comes."""
    plan, model = spec.plan, spec.model
    return {
        "model": {
            "name": model.name,
            "architecture": model.architecture,
            "layers": len(model.layers),
            "bytes": model.n_bytes,
            "weights": model.n_weights,
        },
        "machine": spec.roof,
        "points": points(model, plan.chosen),
        "types": types(model),
        "memory": plan.chosen.memory,
        "plan": {
            "why": plan.chosen.why,
            "workload": plan.workload,
            "settings": plan.chosen.settings,
            "estimate": plan.chosen.estimate,
            "default": plan.default.estimate if plan.default else None,
            "refused": plan.refused,
            "notes": plan.notes,
            "frontier": [_brief(c) for c in plan.frontier],
            "chosen": _brief(plan.chosen),
        },
        "server": {
            "slots": spec.limits.slots,
            "context_tokens": spec.context_tokens,
            "queue": spec.most_waiting,
        },
    }


def live(desk: Desk, server: str, started: float) -> dict[str, Any]:
    """What changes all the time; also sets the gauges of the metrics. `server` is another one after each start."""
    gate, keeper = desk.gate, desk.keeper
    load = {
        "in_flight": gate.in_flight,
        "waiting": gate.waiting,
        "slots": gate.rules.slots,
        "engine_up": int(keeper.state == "up"),
        "engine_restarts": keeper.restarts,
    }
    desk.metrics.load(**load)
    now = time.monotonic()
    return {
        **load, "engine": keeper.state, "at": now, "seconds": now - started, "tokens": desk.tokens_seen,
        "server": server, "plans": desk.plans, "recent": desk.metrics.recent(),
    }  # fmt: skip


def points(model: Model, chosen: Chosen) -> list[dict[str, Any]]:
    """Where the plan's phases stand under the roof, predicted: a token does two operations for each active weight."""
    per_byte = 2 * model.active_weights / model.active_bytes
    speeds = chosen.estimate.decode_tokens_per_s, chosen.estimate.prefill_tokens_per_s
    batches = chosen.settings.sequences, chosen.settings.micro_batch
    found = []
    for name, speed, batch in zip(("decode", "prefill"), speeds, batches, strict=True):
        if speed.value is not None:
            users = batch if name == "decode" else 1
            rate = 2 * model.active_weights * speed.value * users
            found.append({"name": name, "at": (per_byte * batch, rate), "tokens_per_s": speed})
    return found


def types(model: Model) -> dict[str, Any]:
    """The type of every matrix by role and layer, with its bits per weight."""
    roles: dict[str, None] = {}
    cells = []
    for tensor in model.tensors:
        if len(tensor.shape) < 2:
            continue
        roles.setdefault(tensor.role)
        kind = BY_NAME.get(tensor.type)
        bits = kind.bits_per_weight if kind else 8 * tensor.n_bytes / tensor.n_weights
        cells.append((tensor.role, tensor.layer, tensor.type, round(bits, 2), tensor.n_bytes))
    return {"roles": list(roles), "cells": cells}


def _brief(chosen: Chosen) -> dict[str, Any]:
    e = chosen.estimate
    return {
        "why": chosen.why,
        "bytes": chosen.n_bytes,
        "memory_bytes": e.memory_bytes.value,
        "decode_tokens_per_s": e.decode_tokens_per_s.value,
        "total_seconds": e.total_seconds.value,
        "kld": e.kld.value,
        "settings": chosen.settings,
    }
