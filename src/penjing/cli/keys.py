"""`penjing keys`: who may ask a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from penjing.cli import show
from penjing.errors import UsageError
from penjing.progress import say
from penjing.serve import keys


def command(args: argparse.Namespace) -> int:
    path = Path(args.keys).expanduser() if args.keys else keys.usual_file()
    if args.action == "list":
        return _list(path, as_json=args.json)
    if not args.name:
        raise UsageError(f"`keys {args.action}` needs a name", hint=f"penjing keys {args.action} alice")
    if args.action == "remove":
        keys.remove(path, args.name)
        say(f"removed `{args.name}`")
        if args.json:
            show.document({"removed": args.name})
        return 0
    secret = keys.add(path, args.name, args.tokens_per_hour)
    say(f"the key of `{args.name}`; it is not shown again:")
    if args.json:
        show.document({"name": args.name, "key": secret})
    else:
        print(secret)
    return 0


def _list(path: Path, *, as_json: bool) -> int:
    found = keys.load(path)
    if as_json:
        show.document([{"name": k.name, "tokens_per_hour": k.tokens_per_hour} for k in found])
        return 0
    rows = [(k.name, "no limit" if k.tokens_per_hour is None else str(k.tokens_per_hour)) for k in found]
    show.put(show.table(("key", "tokens per hour"), rows))
    return 0
