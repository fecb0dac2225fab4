"""GPUs and NPUs, as the vendors' tools report them. Each reader takes the text that one tool prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from penjing.machine import Accelerator
from penjing.probe.text import integer, run
from penjing.units import GIB, MIB

Reader = Callable[[str], tuple[Accelerator, ...]]

_VERSION = re.compile(r"\d+(\.\d+)+")
_NPU_VERSION = re.compile(r"Version:\s*(\S+)")
_NPU_BUS = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")
_NPU_TOTAL = re.compile(r"/\s*([0-9]{1,12})")
_MAC_MEMORY = re.compile(r"([0-9]{1,6}) ([MG])B")


def parse_nvidia_smi(text: str) -> tuple[Accelerator, ...]:
    """Rows `name, memory.total in MiB, driver_version` of `--format=csv,noheader,nounits`.

    Memory is `[N/A]`, and so None, where the GPU has none of its own.
    """
    rows = [[cell.strip() for cell in line.rsplit(",", 2)] for line in text.splitlines()]
    return tuple(
        Accelerator(row[0], "NVIDIA", _scaled(row[1], MIB), row[2])
        for row in rows
        if len(row) == 3 and row[0] and _VERSION.fullmatch(row[2])
    )


def parse_rocm_smi(text: str) -> tuple[Accelerator, ...]:
    """The JSON of `rocm-smi`, after whatever warnings it prints first; keys changed between versions."""
    cards = _json_object(text[text.find("{") :])
    system = cards.get("system")
    driver = system.get("Driver version") if isinstance(system, dict) else None
    return tuple(
        Accelerator(name, "AMD", _scaled(card.get("VRAM Total Memory (B)"), 1), driver)
        for key, card in cards.items()
        if key.startswith("card") and isinstance(card, dict)
        if (name := _first(card, "Card Series", "Card series", "Device Name", "Card Model", "Card model"))
    )


def parse_npu_smi(text: str) -> tuple[Accelerator, ...]:
    """The table of `npu-smi info`: two rows a chip, of which the second has bus and memory in MB.

    The last figure that is not 0 is the chip's main memory: HBM where there is any, DDR before.
    """
    version = _NPU_VERSION.search(text)
    found, name = [], ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 3:
            continue
        if _NPU_BUS.fullmatch(cells[1]) and name:
            totals = [int(total) for total in _NPU_TOTAL.findall(cells[2]) if int(total)]
            memory = totals[-1] * MIB if totals else None
            found.append(Accelerator(name, "Huawei", memory, version[1] if version else None))
        name = _npu_name(cells[0])
    return tuple(found)


def parse_system_profiler(text: str) -> tuple[Accelerator, ...]:
    """The JSON of `system_profiler SPDisplaysDataType -json`.

    Memory is None on Apple silicon, whose GPU has none of its own, and where a part of main memory is lent.
    """
    displays = _json_object(text).get("SPDisplaysDataType")
    return tuple(
        Accelerator(name, _mac_vendor(entry), _mac_memory(entry))
        for entry in (displays if isinstance(displays, list) else [])
        if isinstance(entry, dict) and (name := _first(entry, "sppci_model"))
    )


TOOLS: tuple[tuple[Reader, tuple[str, ...]], ...] = (
    (parse_nvidia_smi, ("nvidia-smi", "--query-gpu=name,memory.total,driver_version",
                        "--format=csv,noheader,nounits")),
    (parse_rocm_smi, ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showdriverversion",
                      "--json")),
    (parse_npu_smi, ("npu-smi", "info")),
    (parse_system_profiler, ("system_profiler", "SPDisplaysDataType", "-json")),
)  # fmt: skip


def find() -> tuple[Accelerator, ...]:
    """What the tools on PATH report, asked all at once; a tool that fails or dawdles reports nothing."""
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        found = pool.map(lambda tool: tool[0](run(*tool[1])), TOOLS)
        return tuple(accelerator for group in found for accelerator in group)


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.JSONDecoder().raw_decode(text.strip())[0]
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _first(entry: dict[str, Any], *keys: str) -> str | None:
    """The first of the named values that says something."""
    values = (entry.get(key) for key in keys)
    return next((v for v in values if isinstance(v, str) and v not in ("", "N/A")), None)


def _scaled(text: object, unit_bytes: int) -> int | None:
    number = integer(text) if isinstance(text, str) else None
    return number * unit_bytes if number else None


def _npu_name(cell: str) -> str:
    number, _, name = cell.partition(" ")
    return name.strip() if number.isdecimal() else ""


def _mac_vendor(entry: dict[str, Any]) -> str:
    vendor = _first(entry, "spdisplays_vendor") or "unknown"
    name = vendor.removeprefix("sppci_vendor_").partition(" (")[0]
    return "AMD" if name.lower() == "amd" else name


def _mac_memory(entry: dict[str, Any]) -> int | None:
    size = _MAC_MEMORY.fullmatch(_first(entry, "spdisplays_vram") or "")
    return int(size[1]) * (GIB if size[2] == "G" else MIB) if size else None
