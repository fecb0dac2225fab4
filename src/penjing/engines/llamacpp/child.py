"""The child process: reads requests, works, answers. `engines.process.Child` starts it."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from penjing.engines.base import Finished
from penjing.engines.llamacpp import protocol as p
from penjing.engines.llamacpp.runner import Runner
from penjing.engines.llamacpp.template import render
from penjing.engines.process import die_with_parent, pack, read_frame, take_stdout, write_all
from penjing.errors import UserError

_DECODER = msgspec.json.Decoder(p.Request)


class Inbox:
    """Requests in order; `Stop` overtakes them, and the end of input ends the process."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[p.Request] = queue.Queue()
        self.stop = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while frame := read_frame(sys.stdin.buffer):
            request = _DECODER.decode(frame[0])
            if isinstance(request, p.Stop):
                self.stop.set()
            else:
                self._waiting.put(request)
        os._exit(0)  # the owner is gone or done: even a running computation ends here

    def next(self) -> p.Request:
        return self._waiting.get()


def main() -> None:
    die_with_parent()
    out = take_stdout()
    inbox = Inbox()
    runner: Runner | None = None

    def send(reply: p.Reply, payload: bytes | memoryview = b"") -> None:
        write_all(out, pack(msgspec.json.encode(reply), payload))

    while True:
        request = inbox.next()
        try:
            if isinstance(request, p.Load):
                runner = Runner(
                    Path(request.path), request.settings, check=request.check, warm_up=request.warm_up
                )
                send(_ready(runner))
            elif runner is not None:
                for reply, payload in _answer(runner, request, inbox):
                    send(reply, payload)
        except UserError as error:
            send(p.Failed(str(error), error.hint))


def _ready(runner: Runner) -> p.Ready:
    return p.Ready(runner.memory, runner.context_tokens, runner.vocabulary)


def _answer(runner: Runner, request: p.Request, inbox: Inbox) -> Iterator[tuple[p.Reply, bytes | memoryview]]:
    match request:
        case p.Configure(settings):
            runner.configure(settings)
            yield _ready(runner), b""
        case p.Tokenize(text, special, start):
            yield p.Tokens(runner.tokenize(text, special=special, start=start)), b""
        case p.Render(messages):
            yield p.Rendered(render(runner.template(), messages, runner.special_texts())), b""
        case p.Generate(tokens, max_tokens, sampling):
            inbox.stop.clear()
            for item in runner.generate(tokens, max_tokens, sampling, inbox.stop.is_set):
                yield p.Answered(item) if isinstance(item, Finished) else p.Piece(item), b""
        case p.Time(_, count, depth, repeats, most_seconds, together) if together > 1:
            yield p.Timed(runner.time_together(together, count, depth, repeats, most_seconds)), b""
        case p.Time(kind, count, depth, repeats, most_seconds):
            yield p.Timed(runner.time(kind, count, depth, repeats, most_seconds)), b""
        case p.Logits(tokens):
            for rows in runner.logits(tokens):
                yield p.Rows(len(rows)), rows.tobytes()
            yield p.Rows(0), b""


if __name__ == "__main__":
    main()
