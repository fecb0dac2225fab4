"""`penjing plan`: the best way to run a model, here or elsewhere, and why."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from penjing.cli import setting, show
from penjing.engines.llamacpp import LlamaCpp
from penjing.errors import UsageError
from penjing.machine import Machine
from penjing.model import Model
from penjing.plan import Plan
from penjing.planner import plan_elsewhere
from penjing.progress import say

if TYPE_CHECKING:
    from penjing.codesign import Source
    from penjing.quantize.native import Native
    from penjing.search.choose import Question


def command(args: argparse.Namespace) -> int:
    plan = _plan(args)
    if args.json:
        show.document(plan)
    else:
        show.plan(plan)
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    shapes = _shapes(args.model)
    if shapes is None and args.on is None:
        return _open(args) or setting.planned(args, args.model).plan
    model = shapes or setting.local_model(args.model)[1]
    return plan_elsewhere(model, _machine(args.on), setting.workload(args), LlamaCpp())


def _open(args: argparse.Namespace) -> Plan | None:
    """The plan in which types are chosen as well; None if nobody asks for it, or the weights are quantized."""
    if args.max_kld is None:
        if args.sensitivity:
            hint = "--max-kld 0.05"
            raise UsageError("`--sensitivity` is for choosing types, which `--max-kld` asks for", hint=hint)
        return None
    from penjing import codesign
    from penjing.quantize.native import Native

    model = setting.local_model(args.model)[1]
    if not codesign.is_open(model):
        if args.sensitivity:
            raise UsageError(
                f"the weights of `{model.name}` are quantized already, so that types are not open",
                hint="leave `--sensitivity` out, or name a file in F16 or BF16",
            )
        return None
    engine, native = LlamaCpp(), Native()
    source, question = open_source(args, engine, native)
    return codesign.plan(source, question, engine, native, fresh=args.fresh, say=say)


def open_source(args: argparse.Namespace, engine: LlamaCpp, native: Native) -> tuple[Source, Question]:
    """A model whose types are open, what they would cost it, and what the options ask."""
    from penjing.cli.build import sensitivity_for
    from penjing.codesign import Source
    from penjing.gguf import read_header
    from penjing.planner import question_for

    engine.check()
    path, model = setting.local_model(args.model)
    header = read_header(path)
    sensitivity = sensitivity_for(args.sensitivity, header, model, native)
    question = question_for(model, setting.this_machine(path), setting.workload(args), engine)
    return Source.of(header, model, sensitivity, native, question.budget_bytes), question


def _shapes(name: str | None) -> Model | None:
    """A model of which only the shapes are known: a folder, or a name from the catalogue."""
    from penjing import catalogue, hf

    if not name:
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        return hf.read_folder(path)
    if path.exists() or "/" in name or name.endswith(".gguf"):
        return None
    return catalogue.model(name)


def _machine(name: str | None) -> Machine:
    from penjing import catalogue

    return setting.this_machine(None) if name is None else catalogue.machine(name)
