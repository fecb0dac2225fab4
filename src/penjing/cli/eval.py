"""`penjing eval`: what a file lost against its source, or the perplexity of one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from penjing import evaluate, texts
from penjing.cli import setting, show
from penjing.engines.llamacpp import LlamaCpp
from penjing.errors import UsageError
from penjing.evaluate import Divergence
from penjing.progress import bar


def command(args: argparse.Namespace) -> int:
    """Divergence against `--against`, paired with `--versus` if asked; or `--ppl` alone."""
    text = texts.read_text(Path(args.text)) if args.text else texts.shipped("report")
    path, _ = setting.local_model(args.model)
    if args.ppl:
        found: Any = evaluate.perplexity(LlamaCpp(), path, text, evaluate.settings(), most_tokens=args.tokens)
        report = msgspec.to_builtins(found)
    elif args.against:
        report = _compared(args, path, text)
    else:
        raise UsageError(
            "nothing to compare with",
            hint=f"penjing eval {path} --against SOURCE.gguf, or: penjing eval {path} --ppl",
        )
    if args.json:
        show.document(report)
    else:
        show.evaluation(report)
    return 0


def _compared(args: argparse.Namespace, path: Path, text: str) -> dict[str, Any]:
    reference, _ = setting.local_model(args.against)
    files = [path, *([setting.local_model(args.versus)[0]] if args.versus else [])]
    with bar("comparing", None) as shown:
        found = evaluate.divergences(
            LlamaCpp(), reference, files, text, evaluate.settings(), most_tokens=args.tokens, bar=shown
        )
    report = described(found[0])
    if len(found) > 1:
        report["versus"] = described(found[1])
        report["difference"] = msgspec.to_builtins(evaluate.difference(found[0], found[1]))
    return report


def described(found: Divergence) -> dict[str, Any]:
    """A divergence as the JSON document has it: without the mean of each sequence."""
    report: dict[str, Any] = msgspec.to_builtins(found)
    del report["sequences"]
    return report
