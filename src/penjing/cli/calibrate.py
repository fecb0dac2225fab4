"""`penjing calibrate`: measure how much each weight of a model matters."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

# Threads that spin while they wait for each other crawl beside other work on the same cores; set before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from penjing import store, texts
from penjing.cli import setting, show
from penjing.engines.llamacpp import LlamaCpp
from penjing.errors import Unavailable
from penjing.fetch import resolve
from penjing.progress import say

_NEEDED = ("torch", "transformers", "safetensors")


def command(args: argparse.Namespace) -> int:
    """Sweep over the model and write a sensitivity file."""
    source = resolve(args.model)
    out = setting.output(args.out, [source])
    text = texts.read_text(Path(args.text)) if args.text else texts.shipped("calibrate")
    missing = [name for name in _NEEDED if not importlib.util.find_spec(name)]
    if missing:
        raise Unavailable(
            f"calibrating needs {', '.join(missing)}",
            hint="pip install 'penjing[calibrate]' (the CPU build of torch is enough)",
        )
    from penjing.calibrate.task import calibrate

    with store.alone(out):
        done = calibrate(source, out, text, LlamaCpp(), tokens=args.tokens, seed=args.seed, say=say)
    if args.json:
        show.document(done)
    else:
        show.calibrated(done)
    return 0
