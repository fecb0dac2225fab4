"""`penjing build`: the best file of a model within a limit, measured against its source."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

# Costs are measured by threads of ours; a second pool inside each would fight with them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import msgspec
from msgspec.structs import replace

from penjing import prior, sensitivities, store, texts
from penjing.cli import setting, show
from penjing.cost.roofline import main_tier
from penjing.engines.llamacpp import LlamaCpp
from penjing.errors import Unavailable, UsageError
from penjing.gguf import Header, read_header
from penjing.model import Model
from penjing.progress import say
from penjing.quality import menu
from penjing.quality.sensitivity import Sensitivity
from penjing.quantize.native import Native
from penjing.quantize.tensors import Tensors
from penjing.shrink import Built, Goal, Shrinker
from penjing.units import show_bytes, show_number

_LIMITS = ("size", "bpw", "max_kld", "min_decode", "plan")


def command(args: argparse.Namespace) -> int:
    """Build the finalists within the limit, measure them, and keep the best."""
    _check_limits(args)
    source, model = setting.local_model(args.model)
    header = read_header(source)
    out = setting.output(args.out, header.files)
    native = Native()
    sensitivity = sensitivity_for(args.sensitivity, header, model, native)
    if menu.needs_warning(model):
        say(
            f"most weights of `{model.name}` are quantized already: what is lost now comes on top of what was "
            "lost then; where there is a file in F16, BF16 or Q8_0, start from that"
        )
    goal = _planned(args.plan, model) if args.plan else _goal(args, source)
    shrinker = Shrinker(header, model, sensitivity, LlamaCpp(), native, refined=not args.plain, say=say)
    pages = texts.shipped("choose"), texts.shipped("report")
    with store.alone(out):
        built = shrinker.shrink(goal, out, finalists=args.finalists, texts=pages)
    _say_if_missed(goal.max_kld, built.measured.kld)
    if args.json:
        show.document(described(built))
    else:
        show.built(built)
    return 0


def _say_if_missed(limit: float | None, measured: float) -> None:
    if limit and measured > limit:
        say(
            f"the limit of {show_number(limit)} is for the text by which the choice is made; on the text of the report "
            f"it is {show_number(measured)}; for a nearer file: `--max-kld {show_number(limit**2 / measured)}`"
        )


def described(built: Built) -> dict[str, Any]:
    """What was built as the JSON document has it: without the mean of each sequence."""
    report: dict[str, Any] = msgspec.to_builtins(built)
    for one in (report, *report["finalists"]):
        if one["measured"]:
            del one["measured"]["sequences"]
    return report


def _check_limits(args: argparse.Namespace) -> None:
    given = [f"--{name.replace('_', '-')}" for name in _LIMITS if getattr(args, name) is not None]
    if not given:
        raise UsageError("the limit is missing: how small?", hint="one of `--size 4GiB`, `--bpw 4.5`, "
                         "`--max-kld 0.05`, `--min-decode 10`, `--plan FILE`")  # fmt: skip
    if len(given) > 1:
        raise UsageError(
            f"{len(given)} limits are given, one is expected: {', '.join(given)}", hint=f"keep `{given[0]}`"
        )


def _planned(name: str, model: Model) -> Goal:
    """The types that a plan chose for this model.

    Raises:
        UsageError: it is a plan for another model, or one that takes the file as it is.
    """
    from penjing.plan import Plan

    plan = store.read_json(Path(name), Plan)
    again = f"penjing plan {shlex.quote(model.source)} --max-kld 0.05 --json > {shlex.quote(name)}"
    if plan.model != model.name:
        raise UsageError(f"`{name}` is a plan for `{plan.model}`, not for `{model.name}`", hint=again)
    if not plan.chosen.types:
        raise UsageError(f"`{name}` runs the file as it is: it chooses no types", hint=again)
    missing = plan.chosen.types.keys() - {t.name for t in model.tensors}
    if missing:
        raise UsageError(
            f"`{name}` has a type for `{min(missing)}`, which `{model.name}` does not have", hint=again
        )
    return Goal(types=plan.chosen.types)


def _goal(args: argparse.Namespace, source: Path) -> Goal:
    if args.min_decode is None:
        return Goal(args.size, args.bpw, args.max_kld)
    tier = main_tier(setting.this_machine(source))
    rate = tier.read_bytes_per_s.value if tier else None
    if rate is None:
        raise Unavailable(
            "nobody knows how fast this machine reads its memory, so `--min-decode` says nothing about bytes",
            hint="penjing probe --fresh; or say the bytes: `--size 4GiB`",
        )
    n_bytes = int(rate / args.min_decode)
    say(
        f"assumed: every token reads the whole file from memory, at {show_bytes(rate)}/s as measured here, and "
        f"nothing else takes time; {show_number(args.min_decode)} tok/s then allow {show_bytes(n_bytes)}"
    )
    return Goal(max_bytes=n_bytes)


def sensitivity_for(name: str | None, header: Header, model: Model, native: Native) -> Sensitivity:
    if name:
        return sensitivities.load_for(Path(name), header)
    say(
        "no sensitivity is given, so a prior is assumed: what matters in models like this one; `penjing calibrate` "
        "measures what matters in this one, for less loss in the same bytes and a prediction to go by"
    )
    found = prior.sensitivity(model, Tensors(header, native))
    return replace(found, model=sensitivities.model_hash(header))
