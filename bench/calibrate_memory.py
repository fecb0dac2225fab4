"""Peak memory of `penjing calibrate` on a large model: two layers of Qwen3-8B's shape with random weights.

    python bench/calibrate_memory.py [--tokens 8192]

One layer is in memory at a time, so all 36 take what two take; what grows with the depth (what enters each layer, and
its moments) lies on disk and is extrapolated. The vocabulary is that of the model that ships; the head is computed in
pieces of it, so that a larger one takes no more memory. Prints one line and one JSON document; needs
penjing[calibrate], 5 minutes and 4 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import random_model
from penjing.probe import load_average
from penjing.progress import say
from penjing.units import show_bytes

LIMIT_BYTES = 4 * 10**9
LAYERS = 36


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", default="8192")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penjing-bench-", dir="/var/tmp") as folder:
        source, out = Path(folder) / "qwen3-8b-2.gguf", Path(folder) / "sensitivity.npz"
        say("writing random weights")
        random_model.write(source, "qwen3-8b-2", "F16")
        command = [sys.executable, "-m", "penjing", "calibrate", str(source), "--out", str(out), "--json"]
        command += ["--tokens", args.tokens]
        done = subprocess.run(command, capture_output=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        file_bytes = out.stat().st_size
    peak = found["peak_memory_bytes"]
    print(
        f"peak {show_bytes(peak)} (aim: {show_bytes(LIMIT_BYTES)}), {found['seconds']:.0f} s for 2 layers and "
        f"the head; sensitivity file of all {LAYERS} layers: at most {show_bytes(file_bytes * LAYERS / 2)}"
    )
    report = {"bench": "calibrate_memory", "load_average": load_average(), "within": peak <= LIMIT_BYTES}
    print(json.dumps(report | found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
