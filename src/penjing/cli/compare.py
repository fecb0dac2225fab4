"""`penjing compare`: one model on several machines, beside each other."""

from __future__ import annotations

import argparse

from penjing.cli import far, setting, show
from penjing.errors import UsageError


def command(args: argparse.Namespace) -> int:
    from penjing import catalogue
    from penjing.elsewhere import answers
    from penjing.elsewhere.ways import Wish

    if len(args.machines) < 2:
        raise UsageError(
            f"{len(args.machines)} machine given, two or more expected",
            hint=f'penjing compare "{args.machines[0]}" "8x H20" --model {args.model}',
        )
    model, wanted, read = catalogue.model(args.model), setting.workload(args), far.reader(args)
    every = [read(name) for name in args.machines]
    asked = answers.Asked.of(model, wanted, far.prices(args), Wish(format=args.format or ""))
    rows = answers.ranked(asked, every)
    if args.json:
        show.document({"model": model.name, "workload": wanted, "compared": rows})
    else:
        far.put_ranked(model.name, rows)
    return 0
