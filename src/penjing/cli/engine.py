"""`penjing engine`: the engine as installed, and the one compiled for this processor."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import msgspec

from penjing.cli import show
from penjing.engines.llamacpp import library, native
from penjing.errors import UserError
from penjing.progress import bar, say
from penjing.units import show_seconds


def command(args: argparse.Namespace) -> int:
    return _build(args) if args.action == "build" else _list(args)


def _build(args: argparse.Namespace) -> int:
    known = native.found()
    if known is None or args.fresh:
        native.check_tools()  # before anything is promised
        say(f"compiling {library.PACKAGE} {library.PINNED} for this processor: some 13 minutes of one core")
        say(f"log: {native.folder()}.log")
        with bar("compiling", 1.0) as shown:
            known = native.build(_rising(shown.advance))
    else:
        say("already built; `--fresh` builds again")
    if args.json:
        show.document(_described(known))
    else:
        print(f"{native.folder()}: {known.compiler}, {show_seconds(known.seconds)}")
    return 0


def _rising(advance: Callable[[float], None]) -> Callable[[float], None]:
    """The build counts to 100 % for each of its parts: only what goes beyond all before moves the bar."""
    most = 0.0

    def told(share: float) -> None:
        nonlocal most
        advance(max(0.0, share - most))
        most = max(most, share)

    return told


def _list(args: argparse.Namespace) -> int:
    found = [_installed(), *(_described(build) for build in [native.found()] if build)]
    if args.json:
        show.document(found)
    else:
        show.engines(found)
    return 0


def _installed() -> dict[str, Any]:
    try:
        library.check()
        return {
            "name": "wheel",
            "version": library.PINNED,
            "usable": True,
            "path": str(library.library_path()),
        }
    except UserError as error:
        return {"name": "wheel", "version": library.PINNED, "usable": False, "why": str(error)}


def _described(build: native.Build) -> dict[str, Any]:
    place = {"usable": True, "path": str(library.path_in(native.folder()))}
    return dict(msgspec.to_builtins(build) | place)
