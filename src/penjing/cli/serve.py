"""`penjing serve`: the engine's OpenAI-compatible server, under a plan."""

from __future__ import annotations

import argparse
import signal
from types import FrameType

from msgspec.structs import replace

from penjing.cli import setting, show
from penjing.engines.llamacpp import LlamaCpp
from penjing.engines.llamacpp.serving import check_port
from penjing.progress import say
from penjing.search import candidates, fit
from penjing.search.choose import Question
from penjing.workload import Workload

_HOST = "127.0.0.1"
_USUAL_CONTEXT = 4096


def command(args: argparse.Namespace) -> int:
    check_port(_HOST, args.port)  # before a plan is measured for nothing
    here = setting.planned(args, args.model, _roomy, may_split=False)
    signal.signal(signal.SIGTERM, _interrupt)
    serving = LlamaCpp().serve(
        here.path, here.chosen.settings, host=_HOST, port=args.port, alias=here.model.name,
        start_seconds=here.start_seconds,
    )  # fmt: skip
    with serving:
        try:
            if args.json:
                show.document({"url": f"{serving.url}/v1", "model": here.model.name, "plan": here.plan})
            else:
                show.serving(serving.url, here)
            serving.wait()
        except KeyboardInterrupt:
            say("stopping")
    return 0


def _roomy(question: Question, wanted: Workload) -> Workload:
    """A server is asked for more than one workload: without --context, as much as fits, up to 4096 tokens."""
    if wanted.context_tokens is not None:
        return wanted
    context = min(_USUAL_CONTEXT, question.model.context_tokens)
    if question.budget_bytes is not None and not wanted.allow_disk:
        lean = candidates.lean(question.default, question.repacks)
        context = min(context, fit.largest_context(question, lean, question.budget_bytes) // wanted.users)
    return replace(wanted, context_tokens=max(wanted.needed_tokens, context))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
