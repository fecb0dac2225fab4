"""Everything that is printed for people, and the JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from penjing.figures import Estimate, Figure, Measurement
from penjing.formats import BY_NAME
from penjing.machine import Machine, Tier
from penjing.plan import Chosen, Memory, Plan
from penjing.search.choose import show_layouts, show_threads
from penjing.units import show_bytes, show_number, show_seconds

if TYPE_CHECKING:
    from rich.table import Table

    from penjing.calibrate.task import Calibrated
    from penjing.cli.run import Measured, Predicted
    from penjing.rates import KernelRates, KernelTiming
    from penjing.shrink import Built, Finalist

_UNKNOWN = "unknown"


def document(value: object) -> None:
    """One JSON document on stdout, at once: who reads it may wait for it while we go on."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()


def machine(m: Machine) -> None:
    """The machine as a few lines and a table of its memory."""
    cores = m.cores
    print(f"{m.cpu or m.name}")
    print(f"cores      {_or_unknown(cores.physical)} physical, {_or_unknown(cores.logical)} logical, "
          f"{_or_unknown(cores.usable)} usable")  # fmt: skip
    print(f"ISA        {' '.join(m.isa) or _UNKNOWN}")
    limit = show_bytes(m.memory_limit_bytes) if m.memory_limit_bytes else "no limit"
    print(f"memory     {_size(m.memory_total_bytes)}, {_size(m.memory_available_bytes)} available, {limit}")
    for gpu in m.accelerators:
        print(f"GPU/NPU    {gpu.name}, {_size(gpu.memory_bytes)}")
    for engine in m.engines:
        print(f"engine     {engine.name} ({engine.version}): {'usable' if engine.usable else engine.why}")
    print(f"load       {_or_unknown(m.load_average)}")
    rows = [
        (t.name, _size(t.capacity_bytes), _rate(t.read_bytes_per_s), _rate(t.random_read_bytes_per_s),
         ", ".join(f"{r.threads}: {show_bytes(r.read_bytes_per_s)}/s" for r in t.by_threads))
        for t in m.tiers
    ]  # fmt: skip
    put(table(("tier", "capacity", "read", "128 KiB random", "by threads"), rows))


def kernels(rates: KernelRates, m: Machine, shape: str) -> None:
    """What each type reaches on one matrix: reading at batch 1, arithmetic at the largest batch."""
    from penjing.kernel_rates import disturbed

    dram = m.tier("DRAM")
    by_layout: dict[tuple[float, str, bool], list[KernelTiming]] = {}
    for timing in rates.timings:
        kernel = timing.kernel
        key = BY_NAME[kernel.type].bits_per_weight, kernel.type, kernel.repack
        by_layout.setdefault(key, []).append(timing)
    rows = [_kernel_row(timings, dram) for _, timings in sorted(by_layout.items())]
    threads, batch = (max(getattr(t.kernel, name) for t in rates.timings) for name in ("threads", "batch"))
    engine = f"{rates.engine_version} ({rates.timings[0].kernel.build})"
    print(f"\nmatrix {shape}, {threads} threads, {engine}; in brackets: of the read rate of memory")
    header = ("type", "bits", "layout", "weights, batch 1", "bytes, batch 1", f"batch {batch}")
    put(table(header, rows))
    if lost := disturbed(rates):
        print(f"{lost} disturbed rounds were thrown away: other work took the cores")


def _kernel_row(timings: Sequence[KernelTiming], dram: Tier | None) -> tuple[str, ...]:
    from penjing.kernel_rates import operations, seconds

    one, *_, wide = sorted(timings, key=lambda t: t.kernel.batch)
    kernel, bits = one.kernel, BY_NAME[one.kernel.type].bits_per_weight
    weights = kernel.rows * kernel.columns / seconds(one)
    peak = dram.read_bytes_per_s.value if dram else None
    share = f" ({weights * bits / 8 / peak:.0%})" if peak else ""
    return (
        kernel.type,
        f"{bits:.3g}",
        "repacked" if kernel.repack else "as in the file",
        f"{show_number(weights / 1e9)} G/s",
        f"{show_bytes(weights * bits / 8)}/s{share}",
        f"{show_number(operations(wide.kernel) / seconds(wide) / 1e9)} GFLOP/s",
    )


def engines(found: Iterable[dict[str, Any]]) -> None:
    rows = [(e["name"], e["version"], e.get("compiler", ""), e.get("path") or e["why"]) for e in found]
    put(table(("engine", "version", "compiled here with", "where"), rows))


def plan(p: Plan) -> None:
    """The chosen way, what it is expected to give beside the default, and what was refused."""
    w, chosen = p.workload, p.chosen
    print(f"{p.model} on {p.machine}")
    print(f"for {w.prompt_tokens} prompt + {w.answer_tokens} answer tokens, {w.users} at a time")
    print(f"chosen: {chosen.why}")
    print(_knobs(chosen))
    others = [(p.default.why or "engine's default", p.default)] if p.default and not chosen.is_default else []
    put(_comparison([("chosen", chosen), *others]))
    print(_memory_line(chosen.memory))
    if p.refused:
        put(table(("not chosen", "why"), [(r.what, r.why) for r in p.refused]))
    for note in p.notes:
        print(f"note: {note}")


def ablation(report: dict[str, Any]) -> None:
    """Speed, size and divergence of each step, and whether choosing together paid."""
    rows, told = [], []
    first = report["steps"][0]["chosen"].estimate.total_seconds.value
    for step in report["steps"]:
        chosen = step["chosen"]
        e, total = chosen.estimate, chosen.estimate.total_seconds.value
        name, _, what = step["name"].partition(", ")
        speeds = _value(e.prefill_tokens_per_s, _speed), _value(e.decode_tokens_per_s, _speed)
        times = show_seconds(total), f"{total / first:.2f}"
        rows.append((name, *speeds, *times, show_bytes(chosen.n_bytes), show_number(step["kld"])))
        told.append(f"{name}: {what}")
    put(table(("", "prefill", "decode", "workload", "of the default", "size", "predicted KLD"), rows))
    print("\n".join(told))
    print(report["verdict"])


def predicted_beside_measured(predicted: Predicted, measured: Measured, chosen: Chosen) -> None:
    """The proof under an answer, on stderr: predicted, measured, and how far off."""
    rows = [
        _proof("decode", predicted.decode_tokens_per_s, measured.decode_tokens_per_s, _speed),
        _proof("prefill", predicted.prefill_tokens_per_s, measured.prefill_tokens_per_s, _speed),
        _proof("first token", predicted.first_token_seconds, measured.first_token_seconds, show_seconds),
        _proof("peak memory", predicted.peak_memory_bytes, measured.peak_memory_bytes, show_bytes),
    ]
    print(file=sys.stderr)
    put(table(("", "predicted", "interval", "measured", "off by"), rows), to_stderr=True)
    print(
        f"{measured.prompt_tokens} prompt + {measured.answer_tokens} answer tokens; {_knobs(chosen)}",
        file=sys.stderr,
    )


def bench(report: dict[str, Any]) -> None:
    """Predicted beside measured, and the plan beside the default."""
    result, default, estimate = report["measured"], report["default"], report["predicted"]
    names = (
        ("prefill", "prefill_tokens_per_s", _speed),
        ("decode", "decode_tokens_per_s", _speed),
        ("first token", "first_token_seconds", show_seconds),
        ("whole request", "total_seconds", show_seconds),
    )
    rows = []
    for label, name, shown in names:
        row = _proof(label, getattr(estimate, name), getattr(result, name).value, shown)
        rows.append((*row, _median(getattr(default, name), shown) if default else ""))
    print(f"{report['model']}, {report['engine_version']}, {result.total_seconds.count} rounds")
    put(table(("", "predicted", "interval", "measured", "off by", "engine's default"), rows))
    if report["ratio_to_default"] is not None:
        print(f"total time over the default's: {report['ratio_to_default']:.3f}")


def calibrated(done: Calibrated) -> None:
    print(f"{done.sensitivity}: {done.tokens} tokens in {show_seconds(done.seconds)}, "
          f"peak memory {show_bytes(done.peak_memory_bytes)}")  # fmt: skip


def built(b: Built) -> None:
    """The finalists, the file that was kept, and what it lost: predicted beside measured."""
    put(table(
        ("built", "bits per weight", "size", "predicted KLD", "measured KLD"), map(_finalist, b.finalists)
    ))  # fmt: skip
    types = ", ".join(f"{count} {kind}" for kind, count in b.tensor_types.items())
    print(f"{b.artifact}: {show_bytes(b.bytes)}, {show_number(b.bpw)} bits per weight ({types})")
    print(
        f"predicted KLD {show_number(b.predicted_kld)}, sensitivity {b.sensitivity}; measured on another text:"
    )
    _divergence([("", msgspec.to_builtins(b.measured))])


def evaluation(report: dict[str, Any]) -> None:
    """A perplexity, or divergences; of two files also their paired difference."""
    if "ppl" in report:
        print(f"perplexity {_with_error(report, 'ppl')} over {report['tokens']} tokens")
        return
    columns = [("", report)]
    if "versus" in report:
        columns = [("this file", report), ("the other", report["versus"])]
    _divergence(columns)
    if "difference" in report:
        mean = report["difference"]["kld"]
        nearer = "this file is nearer" if mean < 0 else "the other is nearer"
        equal = abs(mean) <= 2 * report["difference"]["kld_stderr"]
        print(f"difference of KL divergence {_with_error(report['difference'], 'kld')}, "
              f"{'within the noise' if equal else nearer}")  # fmt: skip


def _finalist(f: Finalist) -> tuple[str, ...]:
    measured = _with_error(msgspec.to_builtins(f.measured), "kld") if f.measured else ""
    return (
        f.name,
        show_number(f.bits_per_weight),
        show_bytes(f.n_bytes),
        show_number(f.predicted_kld),
        measured,
    )


def _divergence(columns: Sequence[tuple[str, dict[str, Any]]]) -> None:
    found = [report for _, report in columns]
    rows = [
        ("KL divergence", *(f"{_with_error(r, 'kld')} nats per token" for r in found)),
        ("99 % of tokens below", *(show_number(r["kld_p99"]) for r in found)),
        ("same likeliest token", *(f"{100 * r['same_top']:.2f} %" for r in found)),
        ("perplexity ratio", *(f"{r['ppl_ratio']:.4f}" for r in found)),
        ("tokens", *(str(r["tokens"]) for r in found)),
    ]
    put(table(("against the source", *(name for name, _ in columns)), rows))


def _with_error(report: dict[str, Any], name: str) -> str:
    return f"{show_number(report[name])} ± {show_number(report[f'{name}_stderr'])}"


def _comparison(columns: Sequence[tuple[str, Chosen]]) -> Table:
    rows = [
        ("decode", *(_estimate(c.estimate.decode_tokens_per_s, _speed) for _, c in columns)),
        ("prefill", *(_estimate(c.estimate.prefill_tokens_per_s, _speed) for _, c in columns)),
        ("first token", *(_estimate(c.estimate.first_token_seconds, show_seconds) for _, c in columns)),
        ("total", *(_estimate(c.estimate.total_seconds, show_seconds) for _, c in columns)),
        ("memory", *(_estimate(c.estimate.memory_bytes, show_bytes) for _, c in columns)),
        ("KL divergence", *(_estimate(c.estimate.kld, show_number) for _, c in columns)),
    ]
    return table(("", *(name for name, _ in columns)), rows)


def _knobs(chosen: Chosen) -> str:
    s = chosen.settings
    repacks = s.split or (s.repack and chosen.memory.repacked_bytes)
    layout = show_layouts(s) if repacks else "weights as in the file"
    disk = ", from disk" if chosen.from_disk else ""
    build = f" ({s.build} build)" if s.build != "wheel" else ""
    guesses = f", {s.drafting}" if s.drafting.kind != "none" else ""
    return (f"{chosen.engine}{build}: {show_threads(s)}, {layout}{disk}, flash attention {s.flash_attention}, "
            f"{s.cache_type} cache of {s.context_tokens} tokens, micro-batch {s.micro_batch}{guesses}")  # fmt: skip


def _memory_line(memory: Memory) -> str:
    parts = (("mapped weights", memory.weights_bytes), ("weights in memory", memory.repacked_bytes),
             ("cache", memory.cache_bytes), ("buffers", memory.compute_bytes),
             ("engine", memory.base_bytes))  # fmt: skip
    return "memory: " + " + ".join(f"{name} {show_bytes(n)}" for name, n in parts if n)


def _proof(name: str, estimate: Estimate, measured: float | None, shown: Any) -> tuple[str, ...]:
    if measured is None:
        return name, _value(estimate, shown), _interval(estimate, shown), "none", ""
    off = "" if not estimate.value else f"{100 * (estimate.value - measured) / measured:+.0f} %"
    return name, _value(estimate, shown), _interval(estimate, shown), shown(measured), off


def _estimate(estimate: Estimate, shown: Any) -> str:
    if estimate.value is None:
        return _UNKNOWN
    if estimate.low == estimate.high:
        return f"{shown(estimate.value)}"
    return f"{shown(estimate.value)}  ({_interval(estimate, shown)}, {estimate.source})"


def _value(estimate: Estimate, shown: Any) -> str:
    return _UNKNOWN if estimate.value is None else shown(estimate.value)


def _interval(estimate: Estimate, shown: Any) -> str:
    return (
        ""
        if estimate.low is None or estimate.high is None
        else f"{shown(estimate.low)} to {shown(estimate.high)}"
    )


def _median(measured: Measurement, shown: Any) -> str:
    return str(shown(measured.value))


def _speed(tokens_per_s: float) -> str:
    return f"{show_number(tokens_per_s)} tok/s"


def _size(n_bytes: int | None) -> str:
    return _UNKNOWN if n_bytes is None else show_bytes(n_bytes)


def _rate(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return _UNKNOWN if figure.value is None else f"{show_bytes(figure.value)}/s ({figure.source})"


def _or_unknown(value: object) -> str:
    return _UNKNOWN if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    return table


def put(table: Table, *, to_stderr: bool = False) -> None:
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else 120
    Console(file=stream, width=width, highlight=False, markup=False, emoji=False).print(table)
