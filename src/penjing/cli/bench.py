"""`penjing bench`: predicted beside measured, and the plan beside the engine's default."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from penjing import bench, store
from penjing.cli import setting, show
from penjing.engines.llamacpp import LlamaCpp
from penjing.errors import UsageError
from penjing.figures import Estimate
from penjing.plan import Chosen, Plan
from penjing.progress import say


def command(args: argparse.Namespace) -> int:
    path, model = setting.local_model(args.model)
    if args.plan:
        plan = store.read_json(Path(args.plan), Plan)
        workload = plan.workload
        if plan.model != model.name:
            raise UsageError(
                f"`{args.plan}` is a plan for `{plan.model}`, not for `{model.name}`",
                hint=f"penjing plan {path} --json > plan.json",
            )
    else:
        plan = setting.planned(args, args.model).plan
        workload = setting.workload(args)
    engine = LlamaCpp()
    contestants = {"plan": plan.chosen.settings}
    if plan.default is not None and not plan.chosen.from_disk:
        contestants["default"] = plan.default.settings
    runs = bench.compare(engine, path, contestants, workload, args.rounds, say=say)
    results = {name: bench.summarize(name, settings, runs) for name, settings in contestants.items()}
    report: dict[str, Any] = {
        "model": model.name,
        "engine_version": engine.version,
        "workload": workload,
        "predicted": plan.chosen.estimate,
        "measured": results["plan"],
        "error_percent": _errors(plan.chosen, results["plan"]),
        "default": results.get("default"),
        "ratio_to_default": bench.ratio(runs, "plan", "default") if "default" in results else None,
        "runs": runs,
    }
    if args.json:
        show.document(report)
    else:
        show.bench(report)
    return 0


def _errors(chosen: Chosen, result: bench.Result) -> dict[str, float | None]:
    """Signed error of each prediction in percent of the measured value."""
    names = ("prefill_tokens_per_s", "decode_tokens_per_s", "first_token_seconds", "total_seconds")
    return {n: _error(getattr(chosen.estimate, n), getattr(result, n).value) for n in names}


def _error(estimate: Estimate, measured: float) -> float | None:
    return None if estimate.value is None else 100 * (estimate.value - measured) / measured
