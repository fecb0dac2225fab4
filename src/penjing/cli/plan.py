"""`penjing plan`: the best way to run a model, here or elsewhere, and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from penjing.cli import setting, show
from penjing.engines.llamacpp import LlamaCpp
from penjing.machine import Machine
from penjing.model import Model
from penjing.plan import Plan
from penjing.planner import plan_elsewhere


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
        return setting.planned(args, args.model).plan
    model = shapes or setting.local_model(args.model)[1]
    return plan_elsewhere(model, _machine(args.on), setting.workload(args), LlamaCpp())


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
