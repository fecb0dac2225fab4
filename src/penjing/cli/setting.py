"""What the commands share: from arguments to model, machine and plan."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from penjing.engines.llamacpp import LlamaCpp, native
from penjing.errors import BadFile, Unavailable, UsageError, UserError
from penjing.machine import EngineFound, Machine
from penjing.model import Model
from penjing.planner import Here, plan_here, question_for, with_drafting
from penjing.progress import say
from penjing.search.choose import Question
from penjing.workload import Workload

_DRAFTED = ("ngram", "model")
_SERVED = (*_DRAFTED, "mtp")


def workload(
    args: argparse.Namespace, prompt_tokens: int | None = None, answer_tokens: int | None = None
) -> Workload:
    """The workload that the options describe; a context that is too small for it makes it smaller."""
    return Workload(
        prompt_tokens=prompt_tokens or args.prompt,
        answer_tokens=answer_tokens or args.answer,
        users=getattr(args, "users", 1),
        context_tokens=args.context,
        memory_bytes=args.memory,
        max_kld=args.max_kld,
        min_decode_tokens_per_s=_min_decode(args),
        max_first_token_seconds=args.first_token,
        allow_disk=args.allow_disk,
    )


def _min_decode(args: argparse.Namespace) -> float | None:
    """Tokens per second, from either of the two options that limit them."""
    if args.per_token is None:
        return None if args.min_decode is None else float(args.min_decode)
    return max(1 / float(args.per_token), args.min_decode or 0.0)


def local_model(name: str | None) -> tuple[Path, Model]:
    """The model file that `name` means, its header checked.

    Raises:
        BadFile: it is a folder of safetensors, which this engine cannot run.
    """
    from penjing.fetch import resolve
    from penjing.gguf import read_model

    path = resolve(name)
    if path.is_dir():
        raise BadFile(
            f"`{path}` is a folder, but the engine runs GGUF files",
            hint=f"`penjing plan {path}` reads a folder's shapes; to run it, convert it to GGUF first",
        )
    return path, read_model(path)


def output(name: str, sources: Iterable[str | Path], option: str = "--out") -> Path:
    """Where a new file goes, checked before any work is done for it.

    Raises:
        UsageError: it is a folder, or one of the `sources` that it is made from.
        Unavailable: its folder does not exist, or nothing may be written there.
    """
    path = Path(name)
    if not name or path.is_dir():
        raise UsageError(
            f"`{name}` is a folder, but `{option}` names a file", hint=f"{option} {path / 'new-file'}"
        )
    if not path.parent.is_dir():
        raise Unavailable(f"the folder `{path.parent}` does not exist", hint=f"mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise Unavailable(f"cannot write into `{path.parent}`", hint=f"who may? ls -ld {path.parent}")
    if path.exists() and any(path.samefile(source) for source in sources):
        raise UsageError(
            f"`{name}` is the source itself and would be lost",
            hint=f"--out {path.with_name(f'{path.stem}-new{path.suffix}')}",
        )
    return path


def this_machine(path: Path | None, *, fresh: bool = False) -> Machine:
    """This computer as probed, with the disk of `path` and the engines found."""
    from penjing.probe import probe

    return probe(path, fresh=fresh, engines=engines(), progress=say)


def engines() -> tuple[EngineFound, ...]:
    """The engines that penjing knows, and whether they can be used here."""
    engine = LlamaCpp()
    try:
        engine.check()
    except UserError as error:
        return (EngineFound(engine.name, engine.version, usable=False, why=str(error)),)
    found = [EngineFound(engine.name, engine.version, usable=True)]
    if native.found():
        found.append(EngineFound(f"{engine.name}, native build", engine.version, usable=True))
    return tuple(found)


def planned(
    args: argparse.Namespace,
    name: str | None,
    adapt: Callable[[Question, Workload], Workload] = lambda _, wanted: wanted,
    wanted: Workload | None = None,
    may_split: bool = True,
) -> Here:
    """The plan for this machine that the options ask for; `adapt` may widen the workload to what there is."""
    path, model = local_model(name)
    engine = LlamaCpp()
    engine.check()  # before the machine is measured for nothing
    machine = this_machine(path)
    wanted = wanted or workload(args)
    wanted = adapt(question_for(model, machine, wanted, engine), wanted)
    here = plan_here(path, model, machine, wanted, engine, fresh=args.fresh, may_split=may_split, say=say)
    kinds = _SERVED if args.command == "serve" else _DRAFTED
    return with_drafting(here, kinds) if getattr(args, "draft", "off") == "auto" else here
