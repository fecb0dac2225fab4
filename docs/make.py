"""Write docs/reference.md: the help text of every command, as `--help` prints it.

    python docs/make.py            write it
    python docs/make.py --check    say whether it is up to date; exit code 1 if not

`make docs` does the first, `make check` the second.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from penjing.cli import make_parser

REFERENCE = Path(__file__).with_name("reference.md")
_TERMINAL = {"COLUMNS": "100", "NO_COLOR": "1"}  # argparse formats for whatever terminal it finds
_OPENING = """# Reference

What `penjing --help` and `penjing COMMAND --help` print; `make docs` writes this page from them.
Results go to stdout and talk to stderr. Exit codes: 0, 2 for an expected error (one line and a `hint:`),
130 after Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if it differs")
    if not parser.parse_args(argv).check:
        REFERENCE.write_text(reference(), "utf-8")
        return 0
    if REFERENCE.exists() and REFERENCE.read_text("utf-8") == reference():
        return 0
    print(f"{REFERENCE.name} differs from the help texts\nhint: python docs/make.py", file=sys.stderr)
    return 1


def reference() -> str:
    """The whole page."""
    sections = (f"## {name}\n\n```text\n{text.rstrip()}\n```\n" for name, text in help_texts().items())
    return "\n".join([_OPENING, *sections])


def help_texts() -> dict[str, str]:
    """Each command, as it is typed, with its help text; `penjing` itself comes first."""
    with mock.patch.dict(os.environ, _TERMINAL):
        return {parser.prog: parser.format_help() for parser in _parsers(make_parser())}


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all commands below it, in the order in which its help lists them."""
    yield parser
    for action in parser._actions:  # argparse has no public way to ask for the commands
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _parsers(command)


if __name__ == "__main__":
    sys.exit(main())
