"""The command line: parse, call, print. The only place where errors become text and exit codes."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from penjing import __version__
from penjing.cli import launching, options, serving
from penjing.errors import Unavailable, UsageError, UserError

_COMMANDS = {
    "run": ("answer a prompt with a model, planned for this machine", options.run),
    "plan": ("show the best way to run a model here, or on a machine you do not own", options.plan),
    "launch": (
        "write what serves a model on big hardware: a command, a compose file, Kubernetes",
        launching.launch,
    ),
    "probe": ("measure this machine", options.probe),
    "bench": ("time a plan beside the engine's default, predicted beside measured", options.bench),
    "serve": ("serve a model to many users over the OpenAI API, with a page to look at", serving.serve),
    "keys": ("make, list and remove the keys that a server asks for", serving.keys),
    "draft": ("see whether guessing tokens ahead makes answers faster", options.draft),
    "calibrate": ("measure how much every weight of a model matters", options.calibrate),
    "build": ("write the best file of a model within a limit, and measure it", options.build),
    "eval": ("measure what a file lost against its source", options.eval),
    "engine": ("compile the engine for this processor, or list what is there", options.engine),
    "validate": ("judge predictions for any hardware by a table of measurements", options.validate),
    "need": ("say how few of each device would do for a model, users and limits", options.need),
    "compare": ("lay one model on several machines beside each other", options.compare),
    "machines": ("list the machines that ship as descriptions", options.machines),
    "models": ("list the models that ship as shapes", options.models),
}

_EXAMPLES = """examples:
  penjing run "Name three rivers."           the model that ships, planned and measured on first use
  penjing run model.gguf "Hello" --memory 4GiB
  penjing plan Qwen3-8B --on "RTX 4090"      what it would do on a machine you do not own
  penjing serve model.gguf --port 8080
  penjing build model-f16.gguf --out small.gguf --size 4GiB

Every command has --json, and --help with examples. Files it keeps: $PENJING_CACHE or ~/.cache/penjing
"""


class Parser(argparse.ArgumentParser):
    """argparse with our errors: one line, one hint, never a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


def make_parser() -> Parser:
    """The whole command line; the work behind each command is imported when it is called."""
    parser = Parser(
        prog="penjing",
        description="Run large language models on the hardware you have: planned by measurement, "
        "with what was predicted beside what was measured.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"penjing {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, (summary, add_options) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        add_options(command)
        command.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for an expected error, 130 for Ctrl-C."""
    if sys.stdout is None:  # closed by the caller, as `>&-` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # so that a failure to write is met here
        return code
    except UserError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        _drop_output()
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        return _refuse(Unavailable("the disk is full: the output cannot be written", hint="df -h"))


def _refuse(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    print(f"\nhint: {error.hint}", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """What is still buffered goes nowhere, or Python would try to write it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str]) -> int:
    _check_text(argv)
    parser = make_parser()
    _check_command(argv)
    args, unknown = parser.parse_known_args(argv)
    if args.command == "run":  # a prompt may stand after the options, apart from the model
        args.words += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        raise _unknown(args.command, unknown[0])
    if args.command is None:
        parser.print_help()
        return 0
    module = importlib.import_module(f"penjing.cli.{args.command}")
    code: int = module.command(args)
    return code


def _check_text(words: list[str]) -> None:
    """Raises UsageError for bytes that are no text: neither the engine nor JSON could take them."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            hint = "rename the file, or convert the text with `iconv`"
            raise UsageError(f"{word!a} is not UTF-8 text", hint=hint) from None


def _check_command(argv: list[str]) -> None:
    """A word in the place of the command that is none gets the nearest one as its hint."""
    word = argv[0] if argv else "run"
    if not word.startswith("-") and word not in _COMMANDS:
        near = difflib.get_close_matches(word, _COMMANDS, n=1)
        hint = f"did you mean `penjing {near[0]}`?" if near else f'to ask a model: penjing run "{word}"'
        raise UsageError(f"there is no command `{word}`", hint=hint)


def _unknown(command: str | None, word: str) -> UsageError:
    known = [option for action in _actions(command) for option in action.option_strings]
    near = difflib.get_close_matches(word.split("=")[0], known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"penjing {command or ''} --help"
    return UsageError(f"`{word}` is not understood here", hint=hint)


def _actions(command: str | None) -> list[argparse.Action]:
    parser = Parser(add_help=False)
    if command in _COMMANDS:
        _COMMANDS[command][1](parser)
    return parser._actions
