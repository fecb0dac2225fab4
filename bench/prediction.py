"""Times and memory that are predicted from the rates of kernels and slices, beside those of whole models.

    python bench/prediction.py                          everything: half an hour on two cores
    python bench/prediction.py --only qwen3-0.6b

Shapes: SmolLM2, Qwen3-0.6B, Qwen3-1.7B and Qwen3-4B (less some of their vocabulary) and four layers of Qwen3-30B-A3B,
with random weights. For each the rates are taken once, from slices of one type each. Then whole models in mixes of
types that no slice has had are timed in two layouts of the weights, with the native build where there is one: decode
after few and after 2048 tokens, of 1, 4 and 16 sequences, prefill of 512 tokens, and the peak of memory. Each is timed
in several pieces, which take turns; the slice that tells the machine's pace is timed between them, and rates are scaled
to the median of that, as a plan does with the pace of its moment; nothing else that is timed here enters a prediction.
Prints a line for each figure, then errors by phase; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

import random_model
from penjing import pass_rates, slices
from penjing.cli.setting import this_machine
from penjing.cost import pace, speed
from penjing.cost.memory import Traits, predict_memory
from penjing.cost.passes import Passes
from penjing.engines.base import Sample
from penjing.engines.llamacpp import LlamaCpp
from penjing.engines.llamacpp.engine import LlamaSession
from penjing.fetch import resolve
from penjing.figures import Estimate
from penjing.gguf import read_header, read_model
from penjing.machine import Machine
from penjing.model import Model
from penjing.plan import Settings
from penjing.probe import load_average
from penjing.quality import stock
from penjing.quantize.native import Native
from penjing.rates import PassRates
from penjing.reference import Reference
from penjing.search.candidates import thread_counts
from penjing.tune import disturbed

SHAPES = ("SmolLM2", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-30b-a3b-4")
KINDS = ("q4_0", "q4_K", "iq4_xs", "q5_0", "q6_K", "q8_0")
FEWER = SHAPES[2:]  # take long, and are timed in one of the mixes of `_mixes`
AIMS = {"decode": (5, 12), "prefill": (8, 18), "memory": (3, None)}
ROUNDS, STEPS, SHALLOW, DEEP, PROMPT = 2, 8, 64, 2048, 512
PIECES = 3  # of a figure of decode in a round
LOOKS = 2  # at the machine's pace before and after a prompt
POINT_SECONDS = 0.4  # of a figure of decode at least, and twelve samples at most
LONG_SECONDS = 4.0  # a prompt that takes so long is timed once a round, from the start
TOGETHER = (1, 4, 16)
PREFILL = f"prefill {PROMPT}"
STEPPING = {f"{n} at {d}": (n, d) for n, d in ((1, SHALLOW), (1, DEEP), (4, SHALLOW), (16, SHALLOW))}
CONTEXT = 2304


class Figure(Struct, frozen=True):
    """What was predicted and measured in each piece: seconds a step, seconds a prompt, or bytes."""

    phase: str
    what: str
    predicted: tuple[Estimate, ...]
    samples: tuple[float, ...]

    @property
    def error_percent(self) -> float:
        return 100 * (1 / self._measured_share - 1)

    @property
    def inside(self) -> bool:
        first = self.predicted[0]
        assert first.value
        return first.contains(first.value * self._measured_share)

    @property
    def _measured_share(self) -> float:
        """Of what was predicted, the median of the pieces."""
        return median(
            sample / estimate.value
            for sample, estimate in zip(self.samples, self.predicted, strict=True)
            if estimate.value
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=SHAPES, action="append", help="one shape; may be given again")
    parser.add_argument("--fresh", action="store_true", help="take the rates anew")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="penjing-bench-", dir="/var/tmp") as folder:
        for shape in args.only or SHAPES:
            for row in _shape(shape, Path(folder), fresh=args.fresh):
                rows.append(row)
                print(
                    f"{row['case']:58} {row['phase']:8} {row['what']:12} {row['error_percent']:+6.1f} %"
                    f"{'' if row['inside'] else '  outside'}",
                    flush=True,
                )
    table = {phase: _errors([r for r in rows if r["phase"] == phase]) for phase in AIMS}
    _show(table)
    print(json.dumps({"bench": "prediction", "load_average": load_average(), "errors": table, "rows": rows}))
    return 0


def _shape(name: str, folder: Path, *, fresh: bool) -> Iterator[dict[str, Any]]:
    engine, machine, native = LlamaCpp(), this_machine(None), Native()
    source = resolve(None) if name == "SmolLM2" else _random(folder, name)
    header, model = read_header(source), read_model(source)
    began = time.monotonic()
    rates = pass_rates.measured(
        header,
        model,
        KINDS,
        machine,
        engine,
        thread_counts(machine.cores),
        native,
        together=TOGETHER,
        fresh=fresh,
    )
    least, most = (f(rates.memory_bytes_per_s, default=0.0) / 1e9 for f in (min, max))
    print(
        f"{name}: rates in {time.monotonic() - began:.0f} s, {rates.disturbed} disturbed samples, pace varied by "
        f"{rates.pace_spread:.0%}, memory gave {least:.0f} to {most:.0f} GB/s",
        flush=True,
    )
    with Reference(header, model, rates.layers, rates.threads, engine, native) as reference:
        for mix, types in list(_mixes(model).items())[: 1 if name in FEWER else None]:
            path = folder / "whole.gguf"
            slices.write(header, types, len(model.layers), model.vocabulary, path, native)
            for settings in _settings(machine, engine):
                case = f"{name}, {mix}, {settings.build}, repacking {'on' if settings.repack else 'off'}"
                for figure in _figures(path, settings, rates, reference, engine, machine):
                    yield _row(case, figure)


def _row(case: str, figure: Figure) -> dict[str, Any]:
    return {
        "case": case, "phase": figure.phase, "what": figure.what, "error_percent": figure.error_percent,
        "inside": figure.inside, "predicted": [e.value for e in figure.predicted],
        "low": [e.low for e in figure.predicted], "high": [e.high for e in figure.predicted],
        "samples": figure.samples,
    }  # fmt: skip


def _random(folder: Path, name: str) -> Path:
    """Only its header counts: the shapes, and the metadata."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        random_model.write(path, name, "Q4_0")
    return path


def _mixes(model: Model) -> dict[str, dict[str, str]]:
    """A stock mix, and types drawn for every matrix."""
    draw = np.random.default_rng(7)
    matrices = [t for t in model.tensors if stock.is_quantized(t)]
    drawn = {t.name: stock.fallback(str(draw.choice(KINDS)), t.shape[0]) for t in matrices}
    return {"Q4_K_M": stock.mix(model, "Q4_K_M"), "drawn": drawn}


def _settings(machine: Machine, engine: LlamaCpp) -> list[Settings]:
    threads = thread_counts(machine.cores)[0]
    build = engine.traits(machine.isa).builds[-1]
    return [
        Settings(threads, threads, on, on, context_tokens=CONTEXT, mapped=not on, build=build)
        for on in (True, False)
    ]


def _figures(
    path: Path, settings: Settings, rates: PassRates, reference: Reference, engine: LlamaCpp, machine: Machine
) -> Iterator[Figure]:
    model, traits = read_model(path), engine.traits(machine.isa)
    measured: dict[str, list[float]] = {}
    predicted: dict[str, list[Estimate]] = {}

    def keep(what: str, pieces: list[float], passes: Passes) -> None:
        measured.setdefault(what, []).extend(pieces)
        predicted.setdefault(what, []).extend([_predicted(model, settings, passes, what)] * len(pieces))

    for _ in range(ROUNDS):
        with engine.open(path, settings) as session:
            _look(reference, LOOKS)
            prompt = _prompt(session)
            # before the cache is filled by copying it
            measured.setdefault("peak", []).append(_peak_bytes(session.process_id))
            _look(reference, LOOKS)
            keep(PREFILL, [prompt], _passes(model, rates, reference, 2 * LOOKS, traits))
            pieces = _steps(session, reference)
            looks = 1 + sum(map(len, pieces.values()))
            passes = _passes(model, rates, reference, looks, traits)
            for what, seconds in pieces.items():
                keep(what, seconds, passes)
    for what, estimates in predicted.items():
        yield Figure(
            "prefill" if what == PREFILL else "decode", what, tuple(estimates), tuple(measured[what])
        )
    memory = predict_memory(model, settings, traits).total_bytes
    within = Estimate(memory, 0.97 * memory, 1.03 * memory, "fitted")
    yield Figure("memory", "peak", (within,) * ROUNDS, tuple(measured["peak"]))


def _passes(model: Model, rates: PassRates, reference: Reference, looks: int, traits: Traits) -> Passes:
    """At the pace of the last looks."""
    return Passes(model, pace.at(rates, model, reference.recent(rates.pace_seconds, looks)), traits)


def _predicted(model: Model, settings: Settings, passes: Passes, what: str) -> Estimate:
    if what == PREFILL:
        seconds = speed.prefill_seconds(passes.rates(model, [settings]), settings, PROMPT)
        assert seconds is not None
        return seconds.estimate()
    together, depth = STEPPING[what]
    users = replace(settings, sequences=together)
    seconds = speed.decode_seconds(passes.rates(model, [users]), users, depth, STEPS)
    assert seconds is not None
    return (seconds * (1 / STEPS)).estimate()


def _look(reference: Reference, times: int = 1) -> None:
    for _ in range(times):
        reference.sample("prefill")
        reference.sample("decode")


def _prompt(session: LlamaSession) -> float:
    # the first touches new memory, which counts where a prompt is short
    prompts = session.time("prefill", PROMPT, 0, 1)
    if prompts[0].seconds < LONG_SECONDS:
        prompts = session.time("prefill", PROMPT, 0, 2)
    return _calm(prompts, session.settings.threads) * PROMPT


def _steps(session: LlamaSession, reference: Reference) -> dict[str, list[float]]:
    """Seconds a step of each figure of decode, in pieces that take turns."""
    (one,) = session.time("decode", 1, SHALLOW, 1)
    pieces: dict[str, list[float]] = {what: [] for what in STEPPING}
    for _ in range(PIECES):
        for what, (together, depth) in STEPPING.items():
            steps = max(2, STEPS // together)
            repeats = min(12, max(3, round(POINT_SECONDS / (one.seconds * steps * together**0.5))))
            samples = session.time("decode", steps, depth, -(-repeats // PIECES), together=together)
            pieces[what].append(_calm(samples, session.settings.threads))
            _look(reference)
    return pieces


def _calm(samples: list[Sample], threads: int) -> float:
    """Seconds a token, the median of the samples whose threads had their cores; of all, if none had."""
    calm = [s for s in samples if not disturbed(s, threads)] or samples
    return median(s.seconds / s.tokens for s in calm)


def _peak_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _errors(rows: list[dict[str, Any]]) -> dict[str, float]:
    sizes = [abs(row["error_percent"]) for row in rows]
    return {
        "figures": len(rows),
        "median_abs_error_percent": float(np.median(sizes)),
        "p90_abs_error_percent": float(np.percentile(sizes, 90)),
        "median_signed_error_percent": float(np.median([row["error_percent"] for row in rows])),
        "inside_percent": 100 * sum(row["inside"] for row in rows) / len(rows),
    }


def _show(table: dict[str, dict[str, float]]) -> None:
    for phase, row in table.items():
        aim, ninety = AIMS[phase]
        print(
            f"{phase:8} {row['figures']:.0f} figures: median {row['median_abs_error_percent']:.1f} % (aim {aim}), "
            f"p90 {row['p90_abs_error_percent']:.1f} % (aim {ninety or '-'}), signed "
            f"{row['median_signed_error_percent']:+.1f} %, inside the interval {row['inside_percent']:.0f} %"
        )


if __name__ == "__main__":
    sys.exit(main())
