"""`penjing launch`: what serves a model on big hardware, as a command, a compose file or a Kubernetes manifest."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from penjing import catalogue
from penjing.cli import setting, show
from penjing.deployment import LOOPBACK, Deployment
from penjing.elsewhere.hardware import counted, hardware
from penjing.errors import UsageError, UserError
from penjing.formats import BY_NAME
from penjing.launch import check, files
from penjing.launch.arguments import arguments, program
from penjing.launch.arrange import arranged
from penjing.launch.asked import Asked
from penjing.launch.formats import FORMATS, published
from penjing.machine import Machine
from penjing.model import Model
from penjing.progress import say
from penjing.store import write_atomically
from penjing.units import show_number
from penjing.workload import Workload

_USUAL_CONTEXT = 8192
_KEY = "PENJING_API_KEY"
_FORMATS = {"fp16": "BF16", "awq": "INT4", "gptq": "INT4"}  # by the names that the cost model knows
_STORED = {"bf16": "bf16", "f16": "fp16", "f32": "bf16", "f8_e4m3": "fp8", "mxfp4": "mxfp4"}


def command(args: argparse.Namespace) -> int:
    deployment = _deployment(args)
    inside = files.served(deployment, args.form)
    validation = check.by_engine(inside, args.engine_path) if _is_asked(args) else check.by_list(inside)
    if validation.why:
        say(f"validated no further: {validation.why}")
    text = files.text(deployment, args.form, validation.words)
    if args.out:
        path = setting.output(args.out, ())
        write_atomically(path, text.encode())
        say(f"wrote {path}")
    if args.json:
        show.document(_document(inside, validation, args, text))
    elif not args.out:
        sys.stdout.write(text)
    return 0


def _is_asked(args: argparse.Namespace) -> bool:
    return bool(args.check or args.engine_path)


def _document(
    inside: Deployment, validation: check.Validation, args: argparse.Namespace, text: str
) -> dict[str, Any]:
    nodes = range(inside.nodes)
    return {
        "model": inside.served_as,
        "machine": inside.device,
        "deployment": inside,
        "form": args.form,
        "program": program(inside),
        "arguments": [arguments(inside, node) for node in nodes],
        "validated": {"level": validation.level, "by": validation.engine, "why": validation.why},
        "text": text,
    }


def _deployment(args: argparse.Namespace) -> Deployment:
    model, weights, held = _model(args.model, _gguf_type(args))
    context = args.context or min(_USUAL_CONTEXT, model.context_tokens)
    answer = max(1, context // 4)
    workload = Workload(max(1, context - answer), answer, users=args.users, context_tokens=max(2, context))
    count, name = counted(args.on)
    asked = _asked(args, weights, held, model, count * args.count)
    machine = catalogue.machine(name)
    first = arranged(model, machine, workload, asked)
    if args.tp or args.pp or args.dp or args.ep or first.engine == "llama.cpp":
        return first
    return _fastest(first, model, machine, workload, asked) or first


def _fastest(
    first: Deployment, model: Model, machine: Machine, workload: Workload, asked: Asked
) -> Deployment | None:
    """The same with the degrees that are predicted to be fastest; None where the cost model cannot tell."""
    from penjing.elsewhere import answers
    from penjing.elsewhere.ways import Wish

    try:
        where = hardware(machine.name).of(asked.count * machine.count)
        wish = Wish(format=_FORMATS.get(first.weight_format, first.weight_format))
        plan = answers.plan(answers.Asked.of(model, workload, wish=wish), where)
        way, rate = plan.chosen.settings, plan.chosen.estimate.decode_tokens_per_s
        degrees = replace(
            asked, tensor_parallel=way.tensor, pipeline_parallel=way.pipeline, data_parallel=way.data,
            expert_parallel=way.expert,
        )  # fmt: skip
        found = arranged(model, machine, workload, degrees)
    except UserError:  # nobody knows how fast it is, or the engine forbids what would be fastest
        return None
    told = f"the fastest by prediction: {show_number(rate.value or 0)} tok/s for each of {workload.users}"
    return replace(found, plan=told)


def _asked(args: argparse.Namespace, weights: str, held: str, model: Model, count: int) -> Asked:
    if not (weights or args.repository):
        raise UsageError(
            f"nobody wrote down which repository holds `{model.name}`", hint="--repository OWNER/NAME"
        )
    return Asked(
        weights=_local(args.repository) if args.repository else weights,
        published=held,
        own_weights=args.repository is not None,
        engine=args.engine,
        count=count,
        per_node=args.per_node,
        tensor_parallel=args.tp,
        pipeline_parallel=args.pp,
        data_parallel=args.dp,
        expert_parallel=args.ep,
        weight_format=args.format,
        kv_cache_type=args.cache,
        host=args.host,
        port=args.port,
        api_key_env="" if args.host in LOOPBACK else _KEY,
    )


def _gguf_type(args: argparse.Namespace) -> str | None:
    """The type of the weights in a repository of GGUF files: `:Q4_K_M` is taken for q4_K, a few percent too small."""
    if args.format != "gguf":
        return None
    tag = (args.repository or "").rpartition(":")[2].lower()
    found = {kind.lower(): kind for kind in BY_NAME}.get(re.sub(r"_(xs|s|m|l|xl)$", "", tag))
    found = {kind.lower(): kind for kind in BY_NAME}.get(tag, found)
    if found is None and not args.model.endswith(".gguf"):
        raise UsageError(
            "of a repository of GGUF files, the type is needed to know their size",
            hint="--format gguf --repository OWNER/NAME-GGUF:Q4_K_M",
        )
    return found


def _model(name: str, gguf_type: str | None) -> tuple[Model, str, str]:
    """The model, the weights that its makers give it, and the format that they hold."""
    from penjing import hf

    path = Path(name).expanduser()
    if path.is_dir():
        model = hf.read_folder(path)
        return model, str(path.resolve()), _held(model)
    if path.suffix == ".gguf":
        path, model = setting.local_model(name)
        return model, str(path.resolve()), "gguf"
    model = catalogue.model(name, gguf_type)
    return model, catalogue.shape(name).repository, published(model)


def _held(model: Model) -> str:
    """The format of a folder's weights: that of most of their bytes."""
    n_bytes: dict[str, int] = {}
    for tensor in model.tensors:
        n_bytes[tensor.type] = n_bytes.get(tensor.type, 0) + tensor.n_bytes
    most = max(n_bytes, key=lambda kind: n_bytes[kind])
    found = _STORED.get(most, "bf16")
    assert found in FORMATS
    return found


def _local(name: str) -> str:
    """A folder or file of this machine by its whole path; a repository as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
