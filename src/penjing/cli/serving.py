"""The options of `serve` and `keys`."""

from __future__ import annotations

import argparse

from penjing.cli import groups
from penjing.cli.options import MODEL


def serve(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing serve                                    then look at http://127.0.0.1:8080
  penjing serve model.gguf --port 8080 --users 4 --context 8192
  penjing plan model.gguf --users 4 --json > plan.json; penjing serve model.gguf --plan plan.json
  penjing keys add alice; penjing serve model.gguf --host 0.0.0.0
  curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50}'

SIGHUP reads the plan again and starts the engine anew, without closing the port; SIGTERM and Ctrl-C let answers end.
"""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    parser.add_argument("--plan", metavar="FILE", help="serve by this plan; left out: a new one")
    group = parser.add_argument_group("who is served")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to listen on; others need keys (127.0.0.1)"
    )
    group.add_argument(
        "--port", type=groups.port, default=8080, metavar="N", help="port, 0 takes a free one (8080)"
    )
    group.add_argument(
        "--keys", metavar="FILE", help="ask for a key of this file, here too (from `penjing keys`)"
    )
    group.add_argument(
        "--queue", type=groups.whole("--queue"), default=64, metavar="N", help="requests that may wait (64)"
    )
    for name, default, text in (
        ("--patience", 60.0, "seconds that a request may wait for its turn (60)"),
        ("--drain", 30.0, "seconds that answers have to end when the server is stopped (30)"),
        ("--stall", None, "seconds without a sign of life before the engine is started again"),
    ):
        group.add_argument(name, type=groups.number(name, "30"), default=default, metavar="S", help=text)
    groups.workload(parser)
    groups.limits(parser)
    groups.drafting(parser)
    groups.fresh(parser)


def keys(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """examples:
  penjing keys add alice
  penjing keys add team --tokens-per-hour 200000
  penjing keys list
  penjing keys remove alice

A key is shown once; its hash is kept. A running server sees changes at once.
"""
    parser.add_argument("action", choices=("add", "list", "remove"))
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the key, for logs and budgets")
    parser.add_argument(
        "--tokens-per-hour", type=groups.whole("--tokens-per-hour"), metavar="N",
        help="of prompts and answers together; left out: as many as come",
    )  # fmt: skip
    parser.add_argument(
        "--keys", metavar="FILE", help="where they are kept ($PENJING_KEYS or ~/.config/penjing/keys.json)"
    )
