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
    if args.ablate:
        return _ablate(args)
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
    if plan.chosen.settings.drafting.kind != "none":
        say(
            "note: answers are timed on random text, without the guesses that the plan counts: `penjing draft`"
        )
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


def _ablate(args: argparse.Namespace) -> int:
    """What each freedom is worth, from the engine's default to types and settings chosen together."""
    from penjing import ablation, codesign
    from penjing.cli.plan import open_source
    from penjing.quantize.native import Native

    if args.max_kld is None:
        raise UsageError("`--ablate` needs a limit on what types may cost", hint="--max-kld 0.06")
    model = setting.local_model(args.model)[1]
    if not codesign.is_open(model):
        raise UsageError(
            f"the weights of `{model.name}` are quantized already, so that types are not open",
            hint="name a file in F16, BF16 or F32",
        )
    engine, native = LlamaCpp(), Native()
    source, question = open_source(args, engine, native)
    entries = ablation.ablate(source, question, engine, native, fresh=args.fresh, say=say)
    report = {
        "model": model.name,
        "engine_version": engine.version,
        "workload": question.workload,
        "steps": [{"name": e.name, "kld": e.allocation.kld, "chosen": e.chosen} for e in entries],
        "verdict": ablation.verdict(entries),
    }
    if args.json:
        show.document(report)
    else:
        show.ablation(report)
    return 0


def _errors(chosen: Chosen, result: bench.Result) -> dict[str, float | None]:
    """Signed error of each prediction in percent of the measured value."""
    names = ("prefill_tokens_per_s", "decode_tokens_per_s", "first_token_seconds", "total_seconds")
    return {n: _error(getattr(chosen.estimate, n), getattr(result, n).value) for n in names}


def _error(estimate: Estimate, measured: float) -> float | None:
    return None if estimate.value is None else 100 * (estimate.value - measured) / measured
