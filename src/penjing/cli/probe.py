"""`penjing probe`: this machine, measured."""

from __future__ import annotations

import argparse
from pathlib import Path

from penjing.cli import setting, show
from penjing.errors import BadFile


def command(args: argparse.Namespace) -> int:
    path = Path(args.path).expanduser() if args.path else None
    if path is not None and not path.exists():
        raise BadFile(
            f"there is no `{args.path}`", hint="name a file or folder on the disk to measure: `--path .`"
        )
    machine = setting.this_machine(path, fresh=args.fresh)
    if args.json:
        show.document(machine)
    else:
        show.machine(machine)
    return 0
