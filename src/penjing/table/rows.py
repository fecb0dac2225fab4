"""Rows of a table of measurements: read, checked one by one, never dropped in silence."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from penjing.errors import BadFile

COLUMNS = (
    "id", "source", "date_or_version", "device", "device_count", "engine", "engine_version", "model", "weight_format",
    "kv_format", "phase", "prompt_tokens", "output_tokens_or_depth", "batch_or_concurrency", "parallelism", "metric",
    "value", "notes",
)  # fmt: skip
_NEEDED = ("device", "model", "phase", "metric", "value")
_METRICS = ("tokens_per_s_total", "tokens_per_s_per_device", "tokens_per_s_per_user", "TTFT_ms", "TPOT_ms")
_PHASES = ("prefill", "decode", "mixed")
_LIMIT_BYTES = 512 * 2**20


class Row(Struct, frozen=True):
    """One measurement. What the source does not say is None or empty."""

    line: int
    id: str
    device: str
    count: int | None
    engine: str
    model: str
    weight_format: str
    cache_format: str
    phase: str
    prompt_tokens: float | None
    output_tokens: float | None
    batch: float | None
    parallelism: str
    metric: str
    value: float
    notes: str
    date: str = ""

    @property
    def grade(self) -> str:
        match = re.search(r"grade=(\w)", self.notes)
        return match[1] if match else ""

    @property
    def odd(self) -> bool:
        """The table itself marks the value as one that looks wrong."""
        return "anomaly=" in self.notes


class Malformed(Struct, frozen=True):
    """A line that is no measurement, and why."""

    line: int
    why: str


def read(path: Path) -> list[Row | Malformed]:
    """All rows of a `.csv` or `.csv.gz` file, in order.

    Raises:
        BadFile: it cannot be read, is no text, or lacks a column that every row needs.
    """
    text = _text(path)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = reader.fieldnames or []
        missing = [name for name in _NEEDED if name not in names]
        if missing:
            raise BadFile(
                f"`{path}` has no column `{missing[0]}`",
                hint=f"the first line names them: {','.join(COLUMNS)}",
            )
        return list(_rows(reader))
    except csv.Error as error:
        raise BadFile(f"`{path}`, line {reader.line_num}: {error}") from error


def _text(path: Path) -> str:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LIMIT_BYTES + 1)
        if len(content) > _LIMIT_BYTES:
            raise BadFile(f"`{path}` is larger than {_LIMIT_BYTES} bytes")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise BadFile(f"cannot read `{path}`: {error.strerror or error}") from error
    except (UnicodeDecodeError, EOFError) as error:
        raise BadFile(f"`{path}` is no table in UTF-8: {error}") from error


def _rows(reader: csv.DictReader[str]) -> Iterator[Row | Malformed]:
    for record in reader:
        line = reader.line_num
        if None in record or None in record.values():
            yield Malformed(
                line, f"it has another number of fields than the {len(reader.fieldnames or [])} columns"
            )
            continue
        try:
            yield _row(line, {key: (value or "").strip() for key, value in record.items()})
        except ValueError as error:
            yield Malformed(line, str(error))


def _row(line: int, cells: dict[str, str]) -> Row:
    for name in _NEEDED:
        if not cells[name]:
            raise ValueError(f"`{name}` is empty")
    _one_of("phase", cells["phase"], _PHASES)
    _one_of("metric", cells["metric"], _METRICS)
    value = _number("value", cells["value"])
    if value is None or value <= 0:
        raise ValueError(f"`value` is {cells['value']}, expected more than 0")
    count = _number("device_count", cells.get("device_count", ""))
    if count is not None and (count < 1 or count != int(count)):
        raise ValueError(f"`device_count` is {cells['device_count']}, expected a whole number from 1")
    return Row(
        line, cells.get("id", ""), cells["device"], None if count is None else int(count), cells.get("engine", ""),
        cells["model"], cells.get("weight_format", ""), cells.get("kv_format", ""), cells["phase"],
        _number("prompt_tokens", cells.get("prompt_tokens", "")),
        _number("output_tokens_or_depth", cells.get("output_tokens_or_depth", "")),
        _number("batch_or_concurrency", cells.get("batch_or_concurrency", "")),
        cells.get("parallelism", ""), cells["metric"], value, cells.get("notes", ""),
        _date(cells.get("date_or_version", "")),
    )  # fmt: skip


def _date(text: str) -> str:
    """The year, and where one is told the month; of a range of years the month in its middle."""
    if match := re.fullmatch(r"(20[12]\d) ?[-/] ?(20[12]\d)", text.strip()):
        months = 6 * (int(match[1]) + int(match[2]) + 1)
        return f"{months // 12}-{months % 12 + 1:02d}"
    found: list[str] = re.findall(r"20[12]\d(?:-[01]\d(?!\d))?", text)
    return found[-1] if found else ""


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"`{name}` is `{value[:40]}`, expected one of {', '.join(known)}")


def _number(name: str, text: str) -> float | None:
    """A finite number from 0, or None for an empty cell."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"`{name}` is `{text[:40]}`, expected a number") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"`{name}` is {text[:40]}, expected a finite number from 0")
    return value
