"""`penjing machines`: what ships as a description of hardware, and its class under an export rule."""

from __future__ import annotations

import argparse

from penjing import catalogue
from penjing.catalogue.controls import class_of
from penjing.cli import lists, show
from penjing.errors import UnknownName


def command(args: argparse.Namespace) -> int:
    rules = catalogue.rules(args.rules)
    judged = [(machine, class_of(machine, rules)) for machine in catalogue.machines()]
    if args.kind_of_class is not None:
        there = sorted({verdict.name for _, verdict in judged})
        judged = [pair for pair in judged if _is_in(pair[1].name, args.kind_of_class)]
        if not judged:
            raise UnknownName(
                f"no machine is in class `{args.kind_of_class[:60]}` of {rules.name}",
                hint=f"classes are {', '.join(f'`{name}`' for name in there)}",
            )
    if args.json:
        show.document([lists.machine_document(machine, verdict) for machine, verdict in judged])
    else:
        lists.machines(judged, rules)
    return 0


def _is_in(name: str, asked: str) -> bool:
    """`3A090.a` takes in `3A090.a.1`; case does not matter."""
    return name.lower() == asked.lower() or name.lower().startswith(f"{asked.lower()}.")
