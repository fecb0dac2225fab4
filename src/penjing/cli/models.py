"""`penjing models`: what ships as shapes."""

from __future__ import annotations

import argparse

from penjing import catalogue
from penjing.cli import lists, show


def command(args: argparse.Namespace) -> int:
    found = catalogue.models()
    if args.json:
        show.document([lists.model_document(model) for model in found])
    else:
        lists.models(found)
    return 0
