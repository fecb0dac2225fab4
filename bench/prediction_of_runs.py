"""Predicted beside measured decode speed over ten runs of `penjing run`.

    python bench/prediction_of_runs.py [MODEL] [--runs 10]

Each run is the whole command in a process of its own, as a user types it. Prints a line a run, how many were
within 15 percent, and as the last line one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from penjing.probe import load_average

WITHIN_PERCENT = 15


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    _run(args.model, seed=0)  # the first one measures the machine and the model, if nobody has yet
    rows = [_row(_run(args.model, seed)) for seed in range(1, args.runs + 1)]
    near = sum(abs(row["error_percent"]) <= WITHIN_PERCENT for row in rows)
    print(f"{near} of {len(rows)} within {WITHIN_PERCENT} percent")
    print(
        json.dumps(
            {"bench": "prediction_of_runs", "load_average": load_average(), "near": near, "rows": rows}
        )
    )
    return 0


def _run(model: str | None, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "penjing", "run", *([model] if model else []), "Name three rivers."]
    options = ["--json", "--max-tokens", "64", "--seed", str(seed)]
    done = subprocess.run([*command, *options], capture_output=True, check=True, timeout=600)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _row(answer: dict[str, Any]) -> dict[str, float]:
    predicted = answer["predicted"]["decode_tokens_per_s"]
    measured = answer["measured"]["decode_tokens_per_s"]
    row = {
        "predicted": predicted["value"],
        "measured": measured,
        "error_percent": 100 * (predicted["value"] - measured) / measured,
        "inside_interval": predicted["low"] <= measured <= predicted["high"],
        "first_token_seconds": answer["measured"]["first_token_seconds"],
    }
    print(
        f"predicted {row['predicted']:6.1f}  measured {measured:6.1f} tok/s  {row['error_percent']:+5.1f} %"
    )
    return row


if __name__ == "__main__":
    sys.exit(main())
