"""`penjing draft`: whether guessing tokens ahead pays for a model on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from penjing import drafts, guessing, store
from penjing.cli import setting, show
from penjing.drafts import Proof, Report, Trial
from penjing.engines.llamacpp import LlamaCpp
from penjing.progress import say

_SHOWN = 3  # predicted ways that are printed; JSON has all


def command(args: argparse.Namespace) -> int:
    asked = guessing.prompts(Path(args.prompts).expanduser() if args.prompts else None)
    draft_model = setting.local_model(args.draft_model)[0] if args.draft_model else None
    here = setting.planned(args, args.model)
    engine = LlamaCpp()
    say(f"answering {len(asked)} prompts, with guesses and without")
    report = guessing.measured(
        here.path,
        here.model,
        here.chosen.settings,
        engine,
        asked,
        draft_model=draft_model,
        tokens=args.answer,
    )
    store.remember(
        drafts.cache_name(here.path, here.model, here.question.machine, report.settings, engine.version),
        report,
    )
    drafts.remember_habits(here.path, here.model, report)
    if args.json:
        show.document(report)
    else:
        _show(report)
    return 0


def _show(report: Report) -> None:
    """Decode without guesses, and what each way of guessing would do, or did, by kind of prompt."""
    domains = list(report.decode_tokens_per_s)
    checks = ", ".join(f"{n}: {1000 * s:.3g}" for n, s in report.check_seconds.items())
    print(f"{report.model}: ms of a pass by its tokens {checks}\n")
    rows = [("no drafting", *(f"{rate:.3g} tok/s" for rate in report.decode_tokens_per_s.values()), "")]
    rows += [_row(trial, "predicted", domains) for trial in report.trials[:_SHOWN]]
    rows += [_row(proof, "measured", domains) for proof in report.proofs]
    show.put(show.table(("time of decode (guesses right)", *domains, ""), rows))
    print(f"\n{report.why}")
    if report.disturbed:
        print(
            f"note: other work took the cores during {report.disturbed} answers: try again when it is quiet"
        )


def _row(way: Trial | Proof, how: str, domains: Sequence[str]) -> tuple[str, ...]:
    cells = (f"{way.ratio[d]:.2f} ({way.right[d]:.0%})" for d in domains)
    return (str(way.drafting), *cells, how)
