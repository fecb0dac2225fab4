"""`penjing serve`: the OpenAI API for many users, under a plan.

The plan is made in this process, which then becomes the server: a new program in its place, without all that planning
has loaded.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from penjing import store
from penjing.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from penjing.planner import Here
    from penjing.search.choose import Question
    from penjing.serve.spec import Roof, Spec
    from penjing.workload import Workload

_USUAL_CONTEXT = 4096
_MOST_SOCKET_BYTES = 90  # of the 108 that a path of a socket may have, less its name


def command(args: argparse.Namespace) -> int:
    if args.spec:
        return _serve(Path(args.spec))
    _check(args)
    _become(_planned(args))
    return None


def _serve(path: Path) -> int:
    """The second half: the server alone."""
    from penjing.engines.llamacpp import LlamaCpp
    from penjing.serve import house
    from penjing.serve.spec import Spec

    spec = store.read_json(path, Spec)
    house.run(spec, path.parent, LlamaCpp(), lambda url: _announce(spec, url))
    return 0


def _check(args: argparse.Namespace) -> None:
    """What would fail is said before a plan is measured for nothing."""
    from penjing.engines.llamacpp import LlamaCpp
    from penjing.engines.llamacpp.serving import check_port
    from penjing.serve import keys, names

    if not names.is_local(args.host) and not keys.load(_keys_file(args)):
        raise UsageError(
            f"others can reach {args.host}, and no key is asked of them: there is none in `{_keys_file(args)}`",
            hint="penjing keys add NAME, or leave `--host` out",
        )
    LlamaCpp().check()
    check_port(args.host, args.port)


def _keys_file(args: argparse.Namespace) -> Path:
    from penjing.serve import keys

    return Path(args.keys).expanduser() if args.keys else keys.usual_file()


def _planned(args: argparse.Namespace) -> Spec:
    from penjing.serve import names
    from penjing.serve.spec import Spec, stall_seconds

    if args.plan:
        path, model, plan, machine, start_seconds = _from_file(args)
    else:
        here = _here(args)
        path, model, plan = here.path, here.model, here.plan
        machine, start_seconds = here.question.machine, here.start_seconds
    with_keys = args.keys is not None or not names.is_local(args.host)
    return Spec(
        path=str(path.resolve()), model=model, plan=plan, roof=_roof(machine), host=args.host, port=args.port,
        start_seconds=start_seconds, stall_seconds=args.stall or stall_seconds(plan),
        plan_file=str(Path(args.plan).resolve()) if args.plan else None,
        keys_file=str(_keys_file(args).resolve()) if with_keys else None, most_waiting=args.queue,
        patience_seconds=args.patience, drain_seconds=args.drain, as_json=args.json,
    )  # fmt: skip


def _here(args: argparse.Namespace) -> Here:
    from penjing.cli import setting

    return setting.planned(args, args.model, _roomy, may_split=False)


def _from_file(args: argparse.Namespace) -> tuple[Any, ...]:
    """What `penjing plan MODEL --json` wrote, for the model that it was made for."""
    from penjing.cli import setting
    from penjing.plan import Plan
    from penjing.planner import start_seconds
    from penjing.serve.spec import check_plan

    path, model = setting.local_model(args.model)
    plan = store.read_json(Path(args.plan), Plan)
    check_plan(plan, args.plan, model, str(path))
    return path, model, plan, setting.this_machine(path), start_seconds(model)


def _roomy(question: Question, wanted: Workload) -> Workload:
    """A server is asked for more than one workload: without --context, as much as fits, up to 4096 tokens."""
    from msgspec.structs import replace

    from penjing.search import candidates, fit

    if wanted.context_tokens is not None:
        return wanted
    context = min(_USUAL_CONTEXT, question.model.context_tokens)
    if question.budget_bytes is not None and not wanted.allow_disk:
        lean = candidates.lean(question.default, question.repacks)
        context = min(context, fit.largest_context(question, lean, question.budget_bytes) // wanted.users)
    return replace(wanted, context_tokens=max(wanted.needed_tokens, context))


def _roof(machine: Any) -> Roof:
    from penjing import kernel_rates
    from penjing.cli.roofline import name_of, place_of
    from penjing.engines.llamacpp import LlamaCpp
    from penjing.serve.spec import Line, Roof

    lines: dict[str, list[tuple[float, float]]] = {}
    for timing in kernel_rates.alike(kernel_rates.known(machine, LlamaCpp())):
        lines.setdefault(name_of(timing.kernel), []).append(place_of(timing))
    return Roof(
        name=machine.cpu or machine.name,
        cores=f"{machine.cores.physical} cores, {machine.cores.logical} threads",
        tiers=tuple((t.name, t.capacity_bytes, t.read_bytes_per_s.value) for t in machine.tiers),
        lines=tuple(Line(name, tuple(sorted(set(places)))) for name, places in sorted(lines.items())),
    )


def _become(spec: Spec) -> NoReturn:
    """The server in the place of this process, with a folder of its own for the spec and the engine's socket."""
    from penjing.serve.spec import SPEC

    folder = Path(tempfile.mkdtemp(prefix="penjing-"))
    if len(os.fsencode(folder)) > _MOST_SOCKET_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="penjing-", dir="/tmp"))
    try:
        (folder / SPEC).write_bytes(msgspec.json.encode(spec))
        sys.stdout.flush()
        words = [sys.executable, "-m", "penjing", "serve", "--spec", str(folder / SPEC)]
        os.execv(sys.executable, words)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unavailable(f"cannot start the server: {error.strerror}", hint="df -h /tmp") from error


def _announce(spec: Spec, url: str) -> None:
    """Where the server listens and how to try it; on stdout, because it is what the user asked for."""
    if spec.as_json:
        from penjing.cli.show import document

        document({"url": f"{url}/v1", "page": url, "model": spec.model.name, "plan": spec.plan})
        return
    slots = spec.limits.slots
    key = " -H 'Authorization: Bearer KEY'" if spec.keys_file else ""
    print(f"{spec.model.name} at {url}/v1  ({slots} at a time, {spec.context_tokens} tokens of context each)")
    print(f"page: {url}")
    print(f"""try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\
       -d '{{"messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 100}}'""")
    print("Ctrl-C stops it", flush=True)
