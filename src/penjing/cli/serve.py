"""`penjing serve`: the engine's OpenAI-compatible server, under a plan."""

from __future__ import annotations

import argparse
import signal
from types import FrameType

from penjing.cli import setting, show
from penjing.engines.llamacpp import LlamaCpp
from penjing.progress import say

_HOST = "127.0.0.1"


def command(args: argparse.Namespace) -> int:
    here = setting.planned(args, args.model)
    signal.signal(signal.SIGTERM, _interrupt)
    serving = LlamaCpp().serve(
        here.path, here.chosen.settings, host=_HOST, port=args.port, alias=here.model.name,
        start_seconds=here.start_seconds,
    )  # fmt: skip
    with serving:
        if args.json:
            show.document({"url": f"{serving.url}/v1", "model": here.model.name, "plan": here.plan})
        else:
            show.serving(serving.url, here)
        try:
            serving.wait()
        except KeyboardInterrupt:
            say("stopping")
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
