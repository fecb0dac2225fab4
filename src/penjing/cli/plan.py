"""`penjing plan`: the best way to run a model, here or elsewhere, and why."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from penjing.cli import far, setting, show
from penjing.engines.llamacpp import LlamaCpp
from penjing.errors import UsageError
from penjing.model import Model
from penjing.plan import Plan
from penjing.progress import say

if TYPE_CHECKING:
    from penjing.codesign import Source
    from penjing.quantize.native import Native
    from penjing.search.choose import Question


_SHOWN = 20  # machines of a ranked list; JSON has all


def command(args: argparse.Namespace) -> int:
    shapes = _shapes(args.model)
    if shapes is None and args.on is None:
        return _show(args, _open(args) or setting.planned(args, args.model).plan)
    model, fixed = (shapes, False) if shapes else (setting.local_model(args.model)[1], True)
    return _elsewhere(args, model, fixed=fixed)


def _show(args: argparse.Namespace, plan: Plan) -> int:
    if args.json:
        show.document(plan)
    else:
        show.plan(plan)
    return 0


def _elsewhere(args: argparse.Namespace, model: Model, *, fixed: bool) -> int:
    """The plan for a machine that is described, not present, or all of them ranked."""
    from penjing.elsewhere import answers
    from penjing.elsewhere.hardware import hardware_of
    from penjing.elsewhere.ways import Wish

    wanted, prices, read = setting.workload(args), far.prices(args), far.reader(args)
    wish = Wish(fixed, args.format or "", wanted.allow_disk)
    if args.on == "all":
        devices = far.every_device(args.device_class, args.rules, read)
        every = [one.of(n) for one in devices for n in far.COUNTS]
        rows = answers.ranked(answers.Asked.of(model, wanted, prices, replace(wish, all_devices=True)), every)
        if args.json:
            show.document({"model": model.name, "workload": wanted, "ranked": rows})
        else:
            far.put_ranked(model.name, rows, most=_SHOWN)
        return 0
    picture = setting.output(args.picture, (), "--picture") if args.picture is not None else None
    where = read(args.on) if args.on else hardware_of(setting.this_machine(None))
    asked = answers.Asked.of(model, wanted, prices, wish)
    plan = answers.plan(asked, where)
    if picture is not None:
        from penjing.cli import far_picture

        far_picture.draw(picture, asked, where, plan)
    if args.json:
        show.document(plan)
    else:
        far.put_plan(plan)
    return 0


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
    from penjing import drafts
    from penjing.cli.build import sensitivity_for
    from penjing.codesign import Source
    from penjing.gguf import read_header
    from penjing.planner import question_for

    engine.check()
    path, model = setting.local_model(args.model)
    header = read_header(path)
    sensitivity = sensitivity_for(args.sensitivity, header, model, native)
    question = question_for(model, setting.this_machine(path), setting.workload(args), engine)
    source = Source.of(header, model, sensitivity, native, question.budget_bytes)
    guessed = getattr(args, "draft", "off") == "auto"
    return replace(source, habits=drafts.habits(path, model) if guessed else None), question


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
