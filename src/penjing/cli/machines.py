"""`penjing machines`: what ships as a description of hardware."""

from __future__ import annotations

import argparse

from penjing import catalogue
from penjing.cli import show


def command(args: argparse.Namespace) -> int:
    found = catalogue.machines()
    if args.json:
        show.document(found)
    else:
        show.machines(found)
    return 0
