"""KL divergence at equal bytes: penjing against llama.cpp's stock mixes and uniform types.

    python bench/quality_table.py [--out FOLDER] [--quick]

Makes an F16 source off every grid (natural_f16.py), calibrates it on the text that ships, builds the files that anybody
can have (stock mixes and uniform types, as `llama-quantize` rounds them without and with an importance matrix) and
penjing's at no more bytes, and measures all of them on English text that nothing was chosen by: the topics of Python's
`help()`. Bits per weight count every matrix but the token embedding, which is only looked up and is Q8_0 in every file.

Prints the table with its ratios, how near the predictions are with their rank correlation, and one JSON
document as the last line; draws the frontier as docs/img/frontier.svg if matplotlib is there. About 16 minutes on two
cores; needs penjing[calibrate].
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # pieces are rounded by threads of ours
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait leave the core to others

import argparse
import json
import pydoc_data.topics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

import natural_f16
from penjing import sensitivities, texts
from penjing.build import Builder, Recipe, tidy
from penjing.calibrate.task import calibrate
from penjing.engines.llamacpp import LlamaCpp
from penjing.evaluate import Divergence, divergences, settings
from penjing.fetch import resolve
from penjing.formats import BY_NAME
from penjing.gguf import read_header, read_model
from penjing.probe import load_average
from penjing.progress import Bar, say
from penjing.quality import stock
from penjing.quality.allocate import Allocation, Item
from penjing.quantize.native import Native
from penjing.shrink import Goal, Shrinker

# What to compare with, and the ratio of divergences that was set as the aim.
AIMS = {"Q4_K_M": 0.40, "IQ4_XS": 0.40, "q5_0": 0.47, "q4_1": 0.64, "iq4_nl": 0.80}
FRONTIER = (4.25, 4.75, 5.75, 6.5, 7.0, 7.5, 8.0, 8.5)
ABLATION = (4.5, 5.0, 5.5)
MEASURED_TOKENS, AT_ONCE = 6144, 6
EMBEDDING = "token_embd.weight"


class File(Struct):
    """One file of the comparison."""

    name: str
    types: dict[str, str]
    rounding: str  # plain, importance or refined
    bpw: float
    predicted: float | None
    measured: Divergence | None = None

    @property
    def measured_kld(self) -> float:
        assert self.measured is not None
        return self.measured.kld


class Bench:
    """The source, its sensitivity, and a folder with one file at a time for each that is measured."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, folder / "source.gguf"
        natural_f16.write(resolve(None), self.source)
        self.header, self.model, self.native = read_header(self.source), read_model(self.source), Native()
        self.path = folder / "sensitivity.npz"
        self.calibrated = calibrate(
            self.source, self.path, texts.shipped("calibrate"), LlamaCpp(), tokens=8192, seed=0, say=say
        )
        self.sensitivity = sensitivities.load_for(self.path, self.header)
        self.makers = {refined: self._shrinker(refined=refined) for refined in (True, False)}
        self.items = {refined: s.items(Goal(bits_per_weight=4.2)) for refined, s in self.makers.items()}

    def _shrinker(self, *, refined: bool) -> Shrinker:
        return Shrinker(self.header, self.model, self.sensitivity, LlamaCpp(), self.native, refined=refined)

    def bpw(self, types: Mapping[str, str]) -> float:
        counted = [t for t in self.model.tensors if t.name in types and t.name != EMBEDDING]
        bits = sum(BY_NAME[types[t.name]].bits_per_weight * t.n_weights for t in counted)
        return bits / sum(t.n_weights for t in counted)

    def ready_made(self, name: str, rounding: str) -> File:
        """A stock mix or a uniform type."""
        given = rounding == "importance"
        types = (
            stock.mix(self.model, name, importance=given)
            if name in stock.MIXES
            else stock.uniform(self.model, name)
        )
        types[EMBEDDING] = "q8_0"
        predicted = None
        if given:
            full = {item.names[0]: item for item in self.items[False]}
            predicted = sum(_kld(full[n], kind) for n, kind in types.items())
        return File(name, types, rounding, self.bpw(types), predicted)

    def ours(self, bpw: float, *, refined: bool = True, name: str = "penjing") -> File:
        """The least predicted divergence at `bpw`."""
        allocation = self._allocate(bpw, refined=refined)
        types = dict(allocation.types) | {EMBEDDING: "q8_0"}
        full = {item.names[0]: item for item in self.items[refined]}
        predicted = sum(_kld(full[n], kind) for n, kind in types.items())
        return File(name, types, "refined" if refined else "importance", self.bpw(types), predicted)

    def _allocate(self, bpw: float, *, refined: bool) -> Allocation:
        return self.makers[refined].allocate(self.items[refined], Goal(bits_per_weight=bpw))

    def measure(self, files: Sequence[File]) -> None:
        """Build and measure, a few at a time; each file is removed again."""
        builders = {rounding: self.builder(rounding) for rounding in ("plain", "importance", "refined")}
        for start in range(0, len(files), AT_ONCE):
            group = files[start : start + AT_ONCE]
            paths = [self.built(builders[f.rounding], f, start + n) for n, f in enumerate(group)]
            found = divergences(
                LlamaCpp(), self.source, paths, _text(), settings(), most_tokens=MEASURED_TOKENS
            )
            for file, measured in zip(group, found, strict=True):
                file.measured = measured
                say(f"{file.name:8} {file.rounding:10} {file.bpw:.3f} bpw: {measured.kld:.4f}")

    def builder(self, rounding: str) -> Builder:
        return Builder(self.header, None if rounding == "plain" else self.sensitivity, self.native)

    def built(self, builder: Builder, file: File, number: int) -> Path:
        path = self.folder / f"{number}.gguf"
        recipe = Recipe(file.types, "", file.rounding == "refined", file.rounding)
        builder.build(recipe, path, Bar())
        tidy(path)
        return path


def _kld(item: Item, kind: str) -> float:
    return next(c.kld for c in item.choices if c.type == kind)


def _text() -> str:
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))[20_000:90_000]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="keep the files of the run here")
    parser.add_argument("--quick", action="store_true", help="the table alone, without the frontier")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="penjing-bench-", dir="/var/tmp") as temporary:
        bench = Bench(args.out or Path(temporary))
        rivals = {name: [bench.ready_made(name, r) for r in ("plain", "importance")] for name in AIMS}
        ours = {name: bench.ours(rivals[name][0].bpw) for name in AIMS}
        others = [] if args.quick else [bench.ours(bpw) for bpw in FRONTIER]
        unrefined = [] if args.quick else [bench.ours(bpw, refined=False) for bpw in ABLATION]
        bench.measure([*(f for pair in rivals.values() for f in pair), *ours.values(), *others, *unrefined])
    _table(rivals, ours)
    report = {
        "bench": "quality_table",
        "seconds": time.monotonic() - start,
        "calibrate_seconds": bench.calibrated.seconds,
        "calibrate_peak_bytes": bench.calibrated.peak_memory_bytes,
        "load_average": load_average(),
        "rivals": rivals,
        "penjing": [*ours.values(), *others],
        "unrefined": unrefined,
        **_agreement([*ours.values(), *others], [*(pair[1] for pair in rivals.values()), *unrefined]),
    }
    if not args.quick:
        _picture(rivals, [*ours.values(), *others])
    print(json.dumps(msgspec.to_builtins(report)))
    return 0


def _table(rivals: dict[str, list[File]], ours: dict[str, File]) -> None:
    print(
        f"{'bytes of':8} {'bpw':>6} {'plain':>16} {'importance':>16} {'penjing':>16} {'ratio':>6} {'aim':>5}"
    )
    for name, (plain, weighed) in rivals.items():
        mine = ours[name]
        columns = " ".join(f"{_shown(f):>16}" for f in (plain, weighed, mine))
        ratio = mine.measured_kld / plain.measured_kld
        print(f"{name:8} {plain.bpw:6.3f} {columns} {ratio:6.2f} {AIMS[name]:5.2f}")


def _shown(file: File) -> str:
    assert file.measured is not None
    return f"{file.measured.kld:.4f} ± {file.measured.kld_stderr:.4f}"


def _agreement(ours: Sequence[File], others: Sequence[File]) -> dict[str, Any]:
    """How near the predictions are: greatest factor, of penjing's files and of all, and Spearman's rank correlation."""
    import numpy as np

    predicted, measured = (
        np.array([getattr(f, name) for f in (*ours, *others)], dtype=float)
        for name in ("predicted", "measured_kld")
    )
    factors = np.exp(np.abs(np.log(predicted / measured)))
    own, greatest = float(factors[: len(ours)].max()), float(factors.max())
    ranks = [values.argsort().argsort() for values in (predicted, measured)]
    spearman = float(np.corrcoef(*ranks)[0, 1])
    print(
        f"predictions of penjing's {len(ours)} files within a factor of {own:.2f}, of all {len(measured)} that have "
        f"one within {greatest:.2f}; Spearman {spearman:.3f}"
    )
    return {"files": len(measured), "own_factor": own, "greatest_factor": greatest, "spearman": spearman}


def _picture(rivals: dict[str, list[File]], ours: Sequence[File]) -> None:
    try:
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    line = sorted(ours, key=lambda f: f.bpw)
    axes.plot([f.bpw for f in line], [f.measured_kld for f in line], "o-", label="penjing")
    for n, (label, marker) in enumerate((("llama.cpp, plain", "s"), ("llama.cpp, importance matrix", "^"))):
        files = [pair[n] for pair in rivals.values()]
        axes.plot([f.bpw for f in files], [f.measured_kld for f in files], marker, label=label)
    for name, pair in rivals.items():
        place = (pair[0].bpw, pair[0].measured_kld)
        axes.annotate(name.upper(), place, xytext=(4, 4), textcoords="offset points")
    axes.set(yscale="log", xlabel="bits per weight", ylabel="KL divergence from the source (nats per token)")
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[1] / "docs" / "img" / "frontier.svg")


if __name__ == "__main__":
    sys.exit(main())
