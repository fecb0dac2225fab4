"""`penjing need`: how few of each device would do."""

from __future__ import annotations

import argparse

from penjing.cli import far, setting, show

_MOST = 64


def command(args: argparse.Namespace) -> int:
    from penjing import catalogue
    from penjing.elsewhere import answers
    from penjing.elsewhere.ways import Wish

    model, read = catalogue.model(args.model), far.reader(args)
    if args.have:
        kinds = far.inventory(args.have, read)
    elif args.of:
        kinds = [(read(name.strip()), _MOST) for name in args.of.split(",")]
    else:
        kinds = [(one, _MOST) for one in far.every_device(args.device_class, args.rules, read)]
    wanted = setting.workload(args)
    asked = answers.Asked.of(model, wanted, far.prices(args), Wish(format=args.format or ""))
    rows = answers.needed(asked, kinds)
    if args.json:
        show.document({"model": model.name, "workload": wanted, "needed": rows})
    else:
        far.put_ranked(model.name, rows, most=20)
    return 0
