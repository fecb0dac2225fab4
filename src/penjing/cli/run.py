"""`penjing run`: answer a prompt, or hold a conversation."""

from __future__ import annotations

import argparse
import re
import select
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from msgspec import Struct
from msgspec.structs import replace

from penjing.cli import setting, show
from penjing.engines.base import Finished, Message, Sampling, Session, Text
from penjing.engines.llamacpp import LlamaCpp
from penjing.errors import UsageError
from penjing.figures import Estimate
from penjing.plan import Drafting, Estimates, Plan
from penjing.planner import Here, drafted
from penjing.progress import say
from penjing.search import choose
from penjing.tune import disturbed

_BYTES_PER_TOKEN = 4  # of English; only for the first guess of a prompt's length
_TEMPLATE_TOKENS = 40
_CELLS = 256
_MODEL = re.compile(r"\S+\.gguf|[./~]\S*|[\w.-]+/[\w.-]+(:[\w.-]+)?")  # a file, a path, owner/name:type


class Predicted(Struct, frozen=True):
    """What the plan said before the answer began."""

    decode_tokens_per_s: Estimate
    prefill_tokens_per_s: Estimate
    first_token_seconds: Estimate
    peak_memory_bytes: Estimate


class Measured(Struct, frozen=True):
    """What the answer took; a rate is None if nothing of its kind was done."""

    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    first_token_seconds: float
    peak_memory_bytes: int
    prompt_tokens: int
    answer_tokens: int
    cpu_seconds: float


class Answer(Struct, frozen=True):
    """The document of `run --json`."""

    text: str
    finish_reason: str
    plan: Plan
    predicted: Predicted
    measured: Measured


def command(args: argparse.Namespace) -> int:
    model, prompt = _model_and_prompt(args.words)
    if prompt is None and not sys.stdin.isatty():
        prompt = _piped_prompt()
    guess = len(prompt or "") // _BYTES_PER_TOKEN + _TEMPLATE_TOKENS
    answer_tokens = (
        args.max_tokens if args.context is None else max(1, min(args.max_tokens, args.context - guess))
    )
    here = setting.planned(args, model, wanted=setting.workload(args, guess, answer_tokens))
    with LlamaCpp().open(here.path, here.chosen.settings, start_seconds=here.start_seconds) as session:
        if prompt is None:
            return _converse(session, here, args)
        return _answer(session, here, args, _opening(args, prompt))[0]


def _piped_prompt() -> str:
    """All of stdin; raises UsageError if that is nothing, or no text."""
    try:
        prompt = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the prompt is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}",
            hint="iconv -f latin1 -t utf-8 letter.txt | penjing run",
        ) from error
    if not prompt.strip():
        raise _empty_prompt()
    return prompt


def _empty_prompt() -> UsageError:
    return UsageError("the prompt is empty", hint='penjing run "Name three rivers."')


def _model_and_prompt(words: Sequence[str]) -> tuple[str | None, str | None]:
    """One word alone is a model if it looks like one, and else a prompt."""
    if len(words) > 2:
        raise UsageError(
            f"{len(words)} words given, a model and a prompt expected", hint='quote the prompt: "..."'
        )
    if len(words) == 2:
        return words[0], words[1]
    if not words:
        return None, None
    return (words[0], None) if _MODEL.fullmatch(words[0]) or Path(words[0]).exists() else (None, words[0])


def _opening(args: argparse.Namespace, prompt: str) -> list[Message]:
    system = [Message("system", args.system)] if args.system else []
    return [*system, Message("user", prompt)]


def _converse(session: Session, here: Here, args: argparse.Namespace) -> int:
    """One turn for each line typed, until the end of input."""
    messages = [Message("system", args.system)] if args.system else []
    while True:
        line = _typed()
        if not line:
            print(file=sys.stderr)
            return 0
        if line.strip():
            messages.append(Message("user", line.removesuffix("\n")))
            _, text = _answer(session, here, args, messages)
            messages.append(Message("assistant", text))


def _typed() -> str:
    """A line with its end, or nothing at the end of input.

    `input` loses a Ctrl-C that comes between its prompt and its read; here it wakes the waiting.
    """
    print("> ", end="", flush=True)
    woken, wakes = socket.socketpair()
    with woken, wakes:
        wakes.setblocking(False)
        before = signal.set_wakeup_fd(wakes.fileno())
        try:
            select.select([sys.stdin, woken], [], [])
            return sys.stdin.readline()
        finally:
            signal.set_wakeup_fd(before)


def _answer(
    session: Session, here: Here, args: argparse.Namespace, messages: Sequence[Message]
) -> tuple[int, str]:
    """Answer the conversation; returns the exit code and the text."""
    tokens = _tokens(session, args.raw, messages)
    if not tokens:
        raise _empty_prompt()
    _make_room(session, here, len(tokens), args)
    plan = _for_this_prompt(here, session, len(tokens), args.max_tokens)
    text, end = _stream(session, tokens, args)
    answer = Answer(text, end.reason, plan, _predicted(plan.chosen.estimate), _measured(end))
    if args.json:
        show.document(answer)
    else:
        show.predicted_beside_measured(answer.predicted, answer.measured, plan.chosen)
        if not plan.chosen.from_disk and disturbed(end.decode, plan.chosen.settings.threads):
            say("note: other work took the cores during this answer, so it is no measure of the plan")
    return (130 if end.reason == "stopped" else 0), answer.text


def _stream(session: Session, tokens: Sequence[int], args: argparse.Namespace) -> tuple[str, Finished]:
    """The whole answer and how it went; without --json it is printed as it comes, and its line is ended."""
    sampling = Sampling(temperature=args.temperature, seed=args.seed)
    pieces: list[str] = []
    try:
        with _stopping(session):
            for item in session.generate(tokens, args.max_tokens, sampling):
                if isinstance(item, Text):
                    pieces.append(item.text)
                    if not args.json:
                        print(item.text, end="", flush=True)
                else:
                    end = item
    finally:
        if pieces and not args.json:
            print(flush=True)  # what comes next, be it an error, has a line of its own
    return "".join(pieces), end


def _tokens(session: Session, raw: bool, messages: Sequence[Message]) -> list[int]:
    if raw:
        return session.tokenize("\n\n".join(m.content for m in messages), start=True)
    prompt = session.render(messages)
    tokens = session.tokenize(prompt, special=True)
    if len(tokens) > 1 and tokens[0] == tokens[1]:  # a template that writes the start token itself
        return tokens[1:]
    return tokens


def _make_room(session: Session, here: Here, prompt_tokens: int, args: argparse.Namespace) -> None:
    """A larger context for a prompt that was longer than guessed, as far as the limits allow."""
    need = -(-(prompt_tokens + args.max_tokens) // _CELLS) * _CELLS
    if args.context is None and need > session.context_tokens and need <= here.model.context_tokens:
        session.configure(replace(session.settings, context_tokens=need))
    if prompt_tokens >= session.context_tokens:
        raise UsageError(
            f"the prompt has {prompt_tokens} tokens, the context holds {session.context_tokens}",
            hint=f"shorten it, or: --context {min(need, here.model.context_tokens)}",
        )


def _for_this_prompt(here: Here, session: Session, prompt_tokens: int, max_tokens: int) -> Plan:
    """The plan with its estimates for the prompt as it is."""
    wanted = replace(
        here.plan.workload, prompt_tokens=prompt_tokens, answer_tokens=max_tokens, context_tokens=None
    )
    question = replace(here.question, workload=wanted)
    drafting = session.settings.drafting
    chosen = choose.appraise(question, replace(session.settings, drafting=Drafting()))
    here = replace(here, plan=replace(here.plan, workload=wanted))
    if drafting.kind != "none":
        chosen = drafted(here, chosen, (drafting.kind,))
    return replace(here.plan, chosen=replace(chosen, why=here.chosen.why))


def _predicted(estimate: Estimates) -> Predicted:
    return Predicted(
        estimate.decode_tokens_per_s,
        estimate.prefill_tokens_per_s,
        estimate.first_token_seconds,
        estimate.memory_bytes,
    )


def _measured(end: Finished) -> Measured:
    return Measured(
        decode_tokens_per_s=end.decode.tokens / end.decode.seconds if end.decode.tokens else None,
        prefill_tokens_per_s=end.prefill.tokens / end.prefill.seconds if end.prefill.tokens else None,
        first_token_seconds=end.first_token_seconds,
        peak_memory_bytes=end.peak_memory_bytes,
        prompt_tokens=end.prefill.tokens,
        answer_tokens=end.decode.tokens + (end.reason == "length"),
        cpu_seconds=end.prefill.cpu_seconds + end.decode.cpu_seconds,
    )


@contextmanager
def _stopping(session: Session) -> Iterator[None]:
    """The first Ctrl-C ends the answer at the next token; a second one ends the program."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        session.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
