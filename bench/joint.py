"""Types and settings chosen together, against the engine as installed with the stock Q4_K_M of the same source.

    python bench/joint.py [--only SmolLM2] [--sensitivity FILE]      about half an hour on two cores
    python bench/joint.py --all      more prompts, and the ablation of the large shape: some ten minutes more

SmolLM2: an F16 source off every grid (natural_f16.py), calibrated here or by the file given. The stock mix is built
as `llama-quantize` does without an importance matrix, and its KL divergence is measured: penjing's files may not
exceed it. For a long answer, a prompt and a long prompt with every build of the engine, and for a prompt with the
wheel alone, a plan is made, built and measured, again where the file loses too much, and then all run in turn, in new
processes in each round. Qwen3-1.7B: random weights, so that divergences are predicted (from a prior) for
both sides, and files have random weights in the chosen types. For it the rate at which decode reads weights is laid
beside what memory gives. Prints the ablation of the prompt and the ratios with their aims; the last line is one JSON
document.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # pieces are rounded by threads of ours

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

import natural_f16
import random_model
from penjing import ablation, codesign, prior, sensitivities, slices, texts
from penjing.build import Builder, Recipe
from penjing.cli.setting import this_machine
from penjing.engines.llamacpp import LlamaCpp
from penjing.evaluate import Divergence, divergences, settings
from penjing.fetch import resolve
from penjing.gguf import read_header, read_model
from penjing.machine import Machine
from penjing.plan import Build, Plan, Settings
from penjing.planner import question_for
from penjing.probe import load_average, memory_rate
from penjing.progress import Bar, say
from penjing.quality import menu, stock
from penjing.quality.sensitivity import Sensitivity
from penjing.quantize.native import Native
from penjing.quantize.tensors import Tensors
from penjing.search.choose import Question
from penjing.shrink import Built, Goal, Shrinker
from penjing.workload import Workload

WORKLOADS = {
    "long answer": Workload(50, 1000),
    "prompt": Workload(512, 32),
    "long prompt": Workload(2000, 100),
}
# by model: builds that may be taken, and the workload; first those that have an aim
CASES = {
    "SmolLM2": [*(("all builds", name) for name in WORKLOADS), ("wheel alone", "prompt")],
    "qwen3-1.7b": [("all builds", "long answer"), ("all builds", "prompt")],
}
MORE = {"SmolLM2": [("wheel alone", "long prompt")], "qwen3-1.7b": [("all builds", "long prompt")]}
ABLATED = "prompt"
AIMS = {
    ("SmolLM2", "all builds"): {"decode": 1.15, "prefill": 2.5},
    ("SmolLM2", "wheel alone"): {"prefill": 1.8},
    ("qwen3-1.7b", "all builds"): {"decode": 1.0, "prefill": 3.0},
}
STOCK, TOKENS, ROUNDS = "Q4_K_M", 4096, 4
# of a round: turns, in each a prompt and so many times some steps after one filling of the cache
TURNS, REPEATS, TIMED_STEPS = 2, 2, 12
LONG_SECONDS = 3.0  # of a prompt that is read once in a round: it sees several speeds of the memory by itself
ATTEMPTS, SAFETY = 3, 0.96
USUAL = 0.92  # of a predicted divergence, that most files are measured to have here at most (docs/log.md)
MEMORY_SECONDS, MEMORY_ROUNDS = 2.5, 3
BANDWIDTH_AIMS = {"q8_0": 0.85, "q4_0": 0.75}


class Contestant(Struct, frozen=True):
    """A file and how it is run."""

    name: str
    workload: str
    builds: str
    file: str
    settings: Settings
    kld: float


class Timed(Struct, frozen=True):
    """One round: seconds of the prompt, of a step, and of the whole workload."""

    name: str
    workload: str
    round: int
    prefill: float
    step: float
    total: float


class Files:
    """Files of one source in a folder; none is made twice."""

    def __init__(self, shrinker: Shrinker, folder: Path) -> None:
        self._shrinker, self._folder = shrinker, folder
        self._made: dict[frozenset[tuple[str, str]], tuple[Path, Built]] = {}

    def of(self, types: dict[str, str]) -> tuple[Path, Built]:
        """Built, and measured against the source."""
        named = frozenset(types.items())
        if named not in self._made:
            file = self._folder / f"{len(self._made)}.gguf"
            pages = texts.shipped("choose"), texts.shipped("report")
            self._made[named] = file, self._shrinker.shrink(Goal(types=types), file, finalists=1, texts=pages)
        return self._made[named]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("SmolLM2", "qwen3-1.7b"))
    parser.add_argument("--sensitivity", metavar="FILE", help="of the F16 source; left out: calibrated here")
    parser.add_argument("--all", action="store_true", help="also the cases that have no aim")
    args = parser.parse_args()
    report: dict[str, Any] = {"bench": "joint", "load_average": load_average()}
    with tempfile.TemporaryDirectory(prefix="penjing-bench-", dir="/var/tmp") as folder:
        for name, run in (("SmolLM2", _smollm2), ("qwen3-1.7b", _qwen3)):
            if args.only in (None, name):
                cases = [*CASES[name], *(MORE[name] if args.all else ())]
                report[name] = run(Path(folder), cases, args)
    print(json.dumps(report))
    return 0


# ---- SmolLM2: built and measured -------------------------------------------------------------------


def _smollm2(folder: Path, cases: Sequence[tuple[str, str]], args: argparse.Namespace) -> dict[str, Any]:
    source = folder / "source.gguf"
    natural_f16.write(resolve(None), source)
    header, model, engine, native = read_header(source), read_model(source), LlamaCpp(), Native()
    sensitivity = _calibrated(source, folder, args.sensitivity)
    stock_file = folder / f"{STOCK}.gguf"
    builder = Builder(header, None, native)
    types = stock.mix(model, STOCK)
    builder.build(Recipe(types, sensitivities.model_hash(header), refined=False), stock_file, Bar())
    limit = _divergence(source, stock_file).kld
    print(
        f"SmolLM2, stock {STOCK}: KL divergence {limit:.4f}, {stock_file.stat().st_size / 2**20:.0f} MiB",
        flush=True,
    )
    files = Files(Shrinker(header, model, sensitivity, engine, native), folder)
    machine, contestants, steps, kinder = this_machine(source), [], {}, USUAL
    for builds, name in cases:
        question = _question(source, machine, replace(WORKLOADS[name], max_kld=limit), builds)
        opened = codesign.Source.of(header, model, sensitivity, native, question.budget_bytes)
        if (builds, name) == ("all builds", ABLATED):
            steps[name] = _ablated(opened, question, engine, native, name)
        plan, file, kld = _within(opened, question, files, f"{name} {builds}", limit, kinder)
        kinder = max(USUAL, kld / (plan.chosen.estimate.kld.value or limit))
        contestants.append(Contestant("penjing", name, builds, str(file), plan.chosen.settings, kld))
        contestants.append(Contestant("stock", name, builds, str(stock_file), question.default, limit))
    return _raced("SmolLM2", contestants, engine) | {"ablation": steps}


def _calibrated(source: Path, folder: Path, given: str | None) -> Sensitivity:
    header = read_header(source)
    if given is None:
        from penjing.calibrate.task import calibrate

        given = str(folder / "sensitivity")
        calibrate(source, Path(given), texts.shipped("calibrate"), LlamaCpp(), tokens=8192, seed=0, say=say)
    return sensitivities.load_for(Path(given), header)


def _divergence(source: Path, file: Path) -> Divergence:
    (found,) = divergences(
        LlamaCpp(), source, [file], texts.shipped("report"), settings(), most_tokens=TOKENS, bar=Bar()
    )
    return found


def _question(source: Path, machine: Machine, workload: Workload, builds: str) -> Question:
    question = question_for(read_model(source), machine, workload, LlamaCpp())
    wheel: tuple[Build, ...] = ("wheel",)
    return (
        question
        if builds == "all builds"
        else replace(question, traits=replace(question.traits, builds=wheel))
    )


def _within(
    opened: codesign.Source, question: Question, files: Files, name: str, limit: float, kinder: float
) -> tuple[Plan, Path, float]:
    """The first plan whose file keeps the limit: what a file is measured to lose corrects what is asked.

    `kinder`: what the last file was measured to lose over what was predicted for it.

    Raises:
        RuntimeError: none of the files kept the limit.
    """
    aim = SAFETY * limit / kinder
    for _ in range(ATTEMPTS):
        asked = replace(question, workload=replace(question.workload, max_kld=aim))
        plan = codesign.plan(opened, asked, LlamaCpp(), Native(), say=say)
        file, made = files.of(plan.chosen.types)
        predicted = plan.chosen.estimate.kld.value
        seen = made.measured.kld + predicted - made.predicted_kld  # files are without the cost of the cache
        print(f"{name}: predicted {predicted:.4f}, measured {seen:.4f}", flush=True)
        if seen <= limit:
            return plan, file, seen
        aim *= SAFETY * limit / seen
    raise RuntimeError(f"{name}: no file within {limit:.4f} after {ATTEMPTS} attempts")


# ---- Qwen3-1.7B: random weights --------------------------------------------------------------------


def _qwen3(folder: Path, cases: Sequence[tuple[str, str]], args: argparse.Namespace) -> dict[str, Any]:
    source = folder / "source.gguf"
    random_model.write(source, "qwen3-1.7b", "F16")
    header, model, engine, native = read_header(source), read_model(source), LlamaCpp(), Native()
    sensitivity = replace(
        prior.sensitivity(model, Tensors(header, native)), model=sensitivities.model_hash(header)
    )
    machine, contestants, steps = this_machine(source), [], {}
    opened = codesign.Source.of(header, model, sensitivity, native, None)
    types = stock.mix(model, STOCK)
    limit = menu.priced(opened.items, {STOCK: types})[STOCK].kld
    stock_file = folder / f"{STOCK}.gguf"
    slices.write(header, types, len(model.layers), model.vocabulary, stock_file, native)
    for builds, name in cases:
        question = _question(source, machine, replace(WORKLOADS[name], max_kld=limit), builds)
        if args.all and name == ABLATED:
            steps[name] = _ablated(opened, question, engine, native, name)
        plan = codesign.plan(opened, question, engine, native, say=say)
        file = folder / f"{name}.gguf"
        slices.write(header, plan.chosen.types, len(model.layers), model.vocabulary, file, native)
        kld = plan.chosen.estimate.kld.value or 0.0
        contestants.append(Contestant("penjing", name, builds, str(file), plan.chosen.settings, kld))
        contestants.append(Contestant("stock", name, builds, str(stock_file), question.default, limit))
    found = _raced("qwen3-1.7b", contestants, engine)
    return found | {"ablation": steps, "bandwidth": _bandwidth(folder, source, machine, engine, native)}


def _bandwidth(
    folder: Path, source: Path, machine: Machine, engine: LlamaCpp, native: Native
) -> dict[str, Any]:
    """Bytes that decode reads a second over what the memory gives, measured in turn, with all matrices in one type."""
    header, model = read_header(source), read_model(source)
    found: dict[str, Any] = {}
    for kind, aim in BANDWIDTH_AIMS.items():
        file = folder / "uniform.gguf"
        slices.write(header, stock.uniform(model, kind), len(model.layers), model.vocabulary, file, native)
        traits = engine.traits(machine.isa)
        usual = Settings(
            2, 2, kind in traits.repacked_types, kind in traits.repacked_types, context_tokens=512
        )
        # on a machine that is shared the memory gives another rate an hour later: it is looked at around each session
        memory, steps = [memory_rate(MEMORY_SECONDS) or float("nan")], []
        for _ in range(MEMORY_ROUNDS):
            with engine.open(file, replace(usual, build=traits.builds[-1], mapped=False)) as session:
                steps.append(median(s.seconds / s.tokens for s in session.time("decode", 32, 16, 3)))
            memory.append(memory_rate(MEMORY_SECONDS) or float("nan"))
        n_bytes = read_model(file).active_bytes
        share = median(
            n_bytes / step / ((before + after) / 2)
            for step, before, after in zip(steps, memory, memory[1:], strict=False)
        )
        found[kind] = {"share": share, "memory_bytes_per_s": memory, "steps": steps, "bytes": n_bytes}
        print(
            f"qwen3-1.7b in {kind}: decode reads {share:.0%} of what memory gives, {median(memory) / 1e9:.1f} GB/s "
            f"(aim {aim:.0%})",
            flush=True,
        )
    return found


# ---- in turn ---------------------------------------------------------------------------------------


def _ablated(
    source: codesign.Source, question: Question, engine: LlamaCpp, native: Native, name: str
) -> list[dict[str, Any]]:
    entries = ablation.ablate(source, question, engine, native, say=say)
    rows = []
    for entry in entries:
        e = entry.chosen.estimate
        rows.append({
            "step": entry.name, "prefill": e.prefill_tokens_per_s.value, "decode": e.decode_tokens_per_s.value,
            "total_seconds": entry.total_seconds, "bytes": entry.chosen.n_bytes, "predicted_kld": entry.allocation.kld,
        })  # fmt: skip
        print(
            f"  {name}: {rows[-1]['prefill']:7.1f} {rows[-1]['decode']:6.1f} tok/s, "
            f"{rows[-1]['total_seconds'] / rows[0]['total_seconds']:.2f} of the default, "
            f"KLD {rows[-1]['predicted_kld']:.4f}: {entry.name}",
            flush=True,
        )
    print(f"  {name}: {ablation.verdict(entries)}", flush=True)
    return rows


def _raced(model: str, contestants: Sequence[Contestant], engine: LlamaCpp) -> dict[str, Any]:
    """Every pair in every round, in new processes; both of a pair are loaded, and take turns at short pieces."""
    pairs = list(zip(contestants[::2], contestants[1::2], strict=True))
    runs = [(pair, _run(pair, number, engine)) for number in range(ROUNDS) for pair in pairs]
    rows = []
    for mine, _ in pairs:
        seen = [timed for (one, _), timed in runs if one is mine]
        rows.append(_ratios(model, mine, [a for a, _ in seen], [b for _, b in seen]))
    return {
        "rows": rows,
        "runs": [
            (pair[0].builds, t.name, t.workload, t.prefill, t.step, t.total)
            for pair, timed in runs for t in timed
        ],
    }  # fmt: skip


def _run(pair: Sequence[Contestant], number: int, engine: LlamaCpp) -> list[Timed]:
    """Medians of short pieces, A B B A: the memory of a shared machine changes its speed within seconds.

    Which of them is loaded last changes from round to round: it may be faster for as long as it lives (docs/log.md).
    """
    workload = WORKLOADS[pair[0].workload]
    context = -(-(workload.needed_tokens + 64) // 256) * 256
    depth = workload.prompt_tokens + workload.answer_tokens // 2 - TIMED_STEPS // 2
    prompts: list[list[float]] = [[] for _ in pair]
    steps: list[list[float]] = [[] for _ in pair]
    with ExitStack() as stack:
        sessions = {}
        for i in (0, 1) if number % 2 else (1, 0):
            settings = replace(pair[i].settings, context_tokens=context)
            sessions[i] = stack.enter_context(engine.open(Path(pair[i].file), settings))
            sessions[i].time("prefill", 32, 0, 1)
        for turn in range(TURNS):
            for i in (0, 1) if (turn + number) % 2 else (1, 0):
                if turn == 0 or prompts[i][0] < LONG_SECONDS:
                    (prefill,) = sessions[i].time("prefill", workload.prompt_tokens, 0, 1)
                    prompts[i].append(prefill.seconds)
                decoded = sessions[i].time("decode", TIMED_STEPS, depth, REPEATS)
                steps[i] += (sample.seconds / sample.tokens for sample in decoded)
    found = []
    for one, prefill_seconds, step_seconds in zip(pair, prompts, steps, strict=True):
        prefill, step = median(prefill_seconds), median(step_seconds)
        total = prefill + workload.answer_tokens * step
        found.append(Timed(one.name, one.workload, number, prefill, step, total))
    return found


def _ratios(model: str, mine: Contestant, ours: Sequence[Timed], theirs: Sequence[Timed]) -> dict[str, Any]:
    """Speed over the stock mix's, the median of the rounds; time over its time."""
    pairs = list(zip(ours, theirs, strict=True))
    row = {
        "model": model, "workload": mine.workload, "builds": mine.builds, "kld": mine.kld,
        "decode": median(b.step / a.step for a, b in pairs),
        "prefill": median(b.prefill / a.prefill for a, b in pairs),
        "total": median(a.total / b.total for a, b in pairs),
    }  # fmt: skip
    aims = AIMS.get((model, mine.builds), {})
    wanted = "decode" if mine.workload == "long answer" else "prefill"
    aim = f" (aim {wanted} {aims[wanted]})" if wanted in aims else ""
    print(
        f"{model}, {mine.workload}, {mine.builds}: decode x{row['decode']:.2f}, prefill x{row['prefill']:.2f}, "
        f"time {row['total']:.2f} of the default's (aim 1.02){aim}, KLD {mine.kld:.4f}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    sys.exit(main())
