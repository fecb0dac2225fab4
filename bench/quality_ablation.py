"""What each step of the method is worth: KL divergence at three sizes, step by step.

    python bench/quality_ablation.py

uniform          one type for all matrices, as llama-quantize rounds it
importance       the same type, rounded with an importance matrix
activations      types chosen by activation-weighted error alone, which needs no gradients
Fisher           types chosen by the predicted divergence, rounded with the importance matrix
measured choice  the best of three finalists on a second text
rounding         feedback and rescaling on top: what `penjing build` does

Source, text and token embedding are those of quality_table.py. About 10 minutes on two cores; one JSON document last.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import json
import sys
import tempfile
from pathlib import Path

import msgspec
from msgspec.structs import replace

from penjing import texts
from penjing.engines.llamacpp import LlamaCpp
from penjing.evaluate import divergences, settings
from penjing.probe import load_average
from penjing.quality.sensitivity import Sensitivity
from penjing.shrink import Goal, Shrinker
from quality_table import EMBEDDING, Bench, File

SIZES = {4.5: "iq4_nl", 5.0: "q4_1", 5.5: "q5_0"}
CHOICE_TOKENS = 4096


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="penjing-bench-", dir="/var/tmp") as folder:
        bench = Bench(Path(folder))
        rows = {bits: _steps(bench, bits, kind) for bits, kind in SIZES.items()}
        bench.measure([file for row in rows.values() for file in row])
    names = [file.name for file in next(iter(rows.values()))]
    print(f"{'bpw':>5} " + " ".join(f"{name:>16}" for name in names))
    for bits, row in rows.items():
        shown = (f"{f.measured.kld:.4f} ± {f.measured.kld_stderr:.4f}" for f in row if f.measured)
        print(f"{bits:5.2f} " + " ".join(f"{text:>16}" for text in shown))
    report = {"bench": "quality_ablation", "load_average": load_average(), "rows": rows}
    print(json.dumps(msgspec.to_builtins(report, str_keys=True)))
    return 0


def _steps(bench: Bench, bits: float, kind: str) -> list[File]:
    plain, weighed = (bench.ready_made(kind, rounding) for rounding in ("plain", "importance"))
    return [
        replace(plain, name="uniform"),
        replace(weighed, name="importance"),
        _by_activations(bench, bits),
        bench.ours(bits, refined=False, name="Fisher"),
        _measured_choice(bench, bits),
        bench.ours(bits, name="rounding"),
    ]


def _by_activations(bench: Bench, bits: float) -> File:
    """Every output counts the same: what is known where nobody computed gradients."""
    flat = {
        name: replace(m, outputs=m.outputs * 0 + 1, directions=None, noise=None)
        for name, m in bench.sensitivity.moments.items()
    }
    blind = Sensitivity(flat, bench.sensitivity.model, "measured", version="activations")
    shrinker = Shrinker(bench.header, bench.model, blind, LlamaCpp(), bench.native, refined=False)
    goal = Goal(bits_per_weight=bits)
    types = dict(shrinker.allocate(shrinker.items(goal), goal).types) | {EMBEDDING: "q8_0"}
    return File("activations", types, "importance", bench.bpw(types), None)


def _measured_choice(bench: Bench, bits: float) -> File:
    """The best of the finalists on the text that is for choosing."""
    goal = Goal(bits_per_weight=bits)
    finalists = bench.makers[False].finalists(bench.items[False], goal, 3)
    files = [
        File(name, dict(a.types) | {EMBEDDING: "q8_0"}, "importance", bits, a.kld)
        for name, a in finalists.items()
    ]
    builder = bench.builder("importance")
    paths = [bench.built(builder, file, 90 + n) for n, file in enumerate(files)]
    found = divergences(
        LlamaCpp(), bench.source, paths, texts.shipped("choose"), settings(), most_tokens=CHOICE_TOKENS
    )
    best = min(zip(files, found, strict=True), key=lambda pair: pair[1].kld)[0]
    return replace(best, name="measured choice", bpw=bench.bpw(best.types))


if __name__ == "__main__":
    sys.exit(main())
