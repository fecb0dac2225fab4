"""Total time under penjing's plan over total time under the engine's default, measured in one run.

    python bench/default_ratio.py                       everything: about 30 minutes on two cores
    python bench/default_ratio.py --only Q4_K --workload 2000+50

Models: SmolLM2-135M as it ships, and random weights in a 1.5B shape at Q4_0, Q4_K and Q8_0 (speed only).
For each workload a plan is made, then plan and default answer in turn (A B B A …), each in a child process of its
own, a new one in every round. Where the plan is the default, both still run: what they differ by is the noise of
the comparison.
The table shows the least, the median and the greatest ratio of all rounds; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

import random_model
from penjing.bench import compare
from penjing.cli.setting import this_machine
from penjing.engines.llamacpp import LlamaCpp
from penjing.fetch import resolve
from penjing.gguf import read_model
from penjing.planner import plan_here
from penjing.probe import load_average
from penjing.progress import say
from penjing.search.choose import describe
from penjing.workload import Workload

WORKLOADS = ("50+500", "512+128", "2000+50")
TYPES = ("SmolLM2", "Q4_0", "Q4_K", "Q8_0")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=TYPES, action="append", help="one model; may be given again")
    parser.add_argument(
        "--workload", choices=WORKLOADS, action="append", help="one workload; may be given again"
    )
    parser.add_argument("--rounds", type=int, default=4, help="even, so that each is first as often (4)")
    parser.add_argument("--fresh", action="store_true", help="measure anew for the plans")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="penjing-bench-", dir="/var/tmp") as folder:
        for name, path in _models(Path(folder), args.only or TYPES):
            for text in args.workload or WORKLOADS:
                rows.append(_row(name, path, text, args.rounds, fresh=args.fresh))
                _show(rows[-1], header=len(rows) == 1)
    print(json.dumps({"bench": "default_ratio", "load_average": load_average(), "rows": rows}))
    return 0


def _models(folder: Path, names: list[str]) -> Iterator[tuple[str, Path]]:
    for name in names:
        if name == "SmolLM2":
            yield name, resolve(None)
            continue
        path = folder / f"{name}.gguf"
        say(f"writing random weights at {name}")
        random_model.write(path, "1.5b", name)
        yield name, path
        path.unlink()


def _row(name: str, path: Path, text: str, rounds: int, *, fresh: bool) -> dict[str, Any]:
    prompt, answer = map(int, text.split("+"))
    workload = Workload(prompt_tokens=prompt, answer_tokens=answer)
    here = plan_here(path, read_model(path), this_machine(path), workload, LlamaCpp(), fresh=fresh, say=say)
    default = here.question.default
    runs = compare(
        LlamaCpp(), path, {"plan": here.chosen.settings, "default": default}, workload, rounds, say=say
    )
    totals = {(run.name, run.round): run.total_seconds for run in runs}
    ratios = sorted(totals["plan", n] / totals["default", n] for n in range(rounds))
    plan_seconds = median(totals["plan", n] for n in range(rounds))
    predicted = here.chosen.estimate.total_seconds.value
    return {
        "model": name,
        "workload": text,
        "plan": describe(here.chosen.settings, default),
        "plan_seconds": plan_seconds,
        "default_seconds": median(totals["default", n] for n in range(rounds)),
        "predicted_seconds": predicted,
        "error_percent": None if predicted is None else 100 * (predicted - plan_seconds) / plan_seconds,
        "ratio_min": ratios[0],
        "ratio_median": median(ratios),
        "ratio_max": ratios[-1],
        "runs": msgspec.to_builtins(runs),
    }


def _show(row: dict[str, Any], *, header: bool) -> None:
    if header:
        print(f"{'model':8} {'workload':9} {'plan s':>7} {'default s':>9} {'off by':>7} "
              f"{'ratio min':>9} {'median':>7} {'max':>6}  plan")  # fmt: skip
    print(f"{row['model']:8} {row['workload']:9} {row['plan_seconds']:7.2f} {row['default_seconds']:9.2f} "
          f"{row['error_percent']:+6.0f}% {row['ratio_min']:9.3f} {row['ratio_median']:7.3f} "
          f"{row['ratio_max']:6.3f}  {row['plan']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
