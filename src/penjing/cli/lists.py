"""What `penjing machines` and `penjing models` print: one row, or one JSON object, for each entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from penjing.catalogue.controls import NOT_LEGAL_ADVICE, Rules, Verdict
from penjing.cli.show import put, table
from penjing.figures import Figure
from penjing.machine import Machine
from penjing.model import Model
from penjing.units import show_bytes, show_number

_BITS_16, _BITS_8 = ("bf16", "fp16"), ("fp8", "int8")


def machines(found: Sequence[tuple[Machine, Verdict]], rules: Rules) -> None:
    """Memory, arithmetic, link, watts and class of every machine; a mark at what is not from a datasheet."""
    header = ("machine", "kind", "GiB", "GB/s", "16 bit", "8 bit", "link", "W", "TPP", "class")
    put(table(header, [_machine(machine, verdict) for machine, verdict in found]))
    print(
        "\nOf one device: memory and its rate; 10^12 operations a second, dense; link to others of it, GB/s one way."
    )
    print("~ is from memory, press or computed; all else by datasheet. `--json` has every source and note.")
    print(f"Class by the numbers of {rules.name}, in force since {rules.in_force}: {NOT_LEGAL_ADVICE}.")


def _machine(machine: Machine, verdict: Verdict) -> tuple[str, ...]:
    main = machine.tiers[0]
    link = machine.link("peer")
    return (
        machine.name,
        machine.kind,
        show_number(main.capacity_bytes / 2**30) if main.capacity_bytes else "",
        _shown(main.read_bytes_per_s, 1e9),
        _rate(machine, _BITS_16),
        _rate(machine, _BITS_8),
        _shown(link.bytes_per_s, 1e9) if link else "",
        _shown(machine.power_watts, 1),
        _shown(verdict.tpp, 1),
        verdict.name,
    )


def _rate(machine: Machine, formats: Sequence[str]) -> str:
    """The first of some formats that the machine has a rate for."""
    rates = {c.format: c.operations_per_s for c in machine.compute}
    first = next((rates[name] for name in formats if name in rates), None)
    return _shown(first, 1e12)


def _shown(figure: Figure | None, unit: float) -> str:
    if figure is None or figure.value is None:
        return ""
    return f"{'~' if figure.source == 'assumed' else ''}{show_number(figure.value / unit)}"


def machine_document(machine: Machine, verdict: Verdict) -> dict[str, Any]:
    """A machine with its class under a rule, and the figures that the rule asks for."""
    document: dict[str, Any] = msgspec.to_builtins(machine)
    return document | {"export_control": msgspec.to_builtins(verdict)}


def models(found: Iterable[Model]) -> None:
    rows = [
        (m.name, f"{show_number(m.n_weights / 1e9)} B", f"{show_number(m.active_weights / 1e9)} B", str(len(m.layers)),
         _kinds(m), f"{m.experts_used} of {m.experts}" if m.experts else "", _cache(m), str(m.context_tokens))
        for m in found
    ]  # fmt: skip
    header = ("model", "weights", "active", "layers", "attention", "experts", "cache", "context")
    put(table(header, rows))
    print("\nCache: bytes for each token in 16 bits; windows and states are of a fixed size, and not in it.")


def model_document(m: Model) -> dict[str, Any]:
    """A model without its hundreds of tensors."""
    return {
        "name": m.name,
        "architecture": m.architecture,
        "weights": m.n_weights,
        "active_weights": m.active_weights,
        "bytes": m.n_bytes,
        "layers": len(m.layers),
        "attention": _counts(m),
        "cache_elements_per_token": cache_elements_per_token(m),
        "state_bytes": sum(layer.state_bytes for layer in m.layers),
        "width": m.width,
        "vocabulary": m.vocabulary,
        "context_tokens": m.context_tokens,
        "experts": m.experts,
        "experts_used": m.experts_used,
        "source": m.source,
    }


def cache_elements_per_token(m: Model) -> float:
    """Elements by which the cache grows with every token, once windows are full."""
    far = 2**20
    return sum(layer.kept_elements(2 * far) - layer.kept_elements(far) for layer in m.layers) / far


def _counts(m: Model) -> dict[str, int]:
    kinds = [layer.attention for layer in m.layers]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _kinds(m: Model) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in _counts(m).items())


def _cache(m: Model) -> str:
    return show_bytes(2 * cache_elements_per_token(m))
