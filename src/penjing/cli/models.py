"""`penjing models`: what ships as shapes."""

from __future__ import annotations

import argparse

from penjing import catalogue
from penjing.cli import show


def command(args: argparse.Namespace) -> int:
    found = catalogue.models()
    if args.json:
        show.document([show.summary(model) for model in found])
    else:
        show.models(found)
    return 0
