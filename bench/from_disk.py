"""A model of 850 MB on a machine of 600 MB: refused, then run from disk, predicted beside measured.

    python bench/from_disk.py [--memory 600MB]        needs root, for a memory cgroup of its own

The model has random weights in a 1.5B shape at Q4_K; its file is dropped from the page cache before each run,
for pages that somebody else has read are not charged to the group. Prints what happened, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import in_cgroup
import random_model
from penjing.probe import load_average
from penjing.units import parse_size, show_bytes

_BEFOREHAND = re.compile(r"predicted decode ([\d.]+) tok/s \(([\d.]+) to ([\d.]+)\)")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", default="600MB")
    memory_bytes = parse_size(parser.parse_args().memory)
    with tempfile.TemporaryDirectory(prefix="penjing-bench-", dir="/var/tmp") as folder:
        path = Path(folder) / "model.gguf"
        random_model.write(path, "1.5b", "Q4_K")
        refused = _run(path, memory_bytes, [])
        ran = _run(path, memory_bytes, ["--allow-disk", "--fresh"])
    print(f"without --allow-disk: exit {refused.exit_code}: {_text(refused.stderr).splitlines()[-3]}")
    report = {"bench": "from_disk", "memory_bytes": memory_bytes, "refused": refused.exit_code == 2}
    report |= _report(ran) | {"load_average": load_average()}
    print(f"with it: predicted {report['beforehand']:.2f} tok/s before anything was timed, "
          f"{report['predicted']:.2f} after, measured {report['measured']:.2f}, "
          f"peak {show_bytes(ran.peak_bytes or 0)} of {show_bytes(memory_bytes)}")  # fmt: skip
    print(json.dumps(report))
    return 0


def _run(path: Path, memory_bytes: int, options: list[str]) -> in_cgroup.Outcome:
    in_cgroup.drop_cache(path)
    command = [sys.executable, "-m", "penjing", "run", str(path), "Name three rivers.", "--json"]
    return in_cgroup.run(
        [*command, "--max-tokens", "16", *options],
        memory_bytes,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _report(ran: in_cgroup.Outcome) -> dict[str, Any]:
    said = _text(ran.stderr)
    found = _BEFOREHAND.search(said)
    if ran.exit_code != 0 or found is None:
        raise SystemExit(f"the run failed with exit code {ran.exit_code}:\n{said}")
    answer = json.loads(_text(ran.stdout))
    beforehand = float(found.group(1))
    measured = answer["measured"]["decode_tokens_per_s"]
    return {
        "beforehand": beforehand,
        "predicted": answer["predicted"]["decode_tokens_per_s"]["value"],
        "measured": measured,
        "factor_beforehand": max(measured / beforehand, beforehand / measured),
        "peak_bytes": ran.peak_bytes,
    }


def _text(output: bytes | str | None) -> str:
    return output.decode() if isinstance(output, bytes) else output or ""


if __name__ == "__main__":
    sys.exit(main())
