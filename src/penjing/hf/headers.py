"""The headers of safetensors files: which tensors lie where. Nothing in a file is believed unchecked.

A file is 8 bytes with the length of its header, the header in JSON, and the tensors back to back.
The format itself sets the limit of 100 MB for a header, and forbids holes and overlaps.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from penjing.catalogue.files import read_bounded
from penjing.errors import BadFile

_HEADER_LIMIT_BYTES = 100_000_000
_MARKS_LIMIT = 2_000_000  # brackets and commas, which bound what the parser allocates: 280,000 tensors
_NAME_LIMIT = 300
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_AGAIN = "the download is incomplete or damaged: fetch the folder again"

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

Offset = Annotated[int, Meta(ge=0, le=2**60)]


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of a header: `shape` with the row length last, `data_offsets` from the end of the header."""

    dtype: str
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**40)], ...], Meta(max_length=8)]
    data_offsets: tuple[Offset, Offset]

    @property
    def n_bytes(self) -> int:
        return self.data_offsets[1] - self.data_offsets[0]


class _Index(Struct):
    weight_map: dict[str, str]


def read(folder: Path) -> tuple[list[Path], dict[str, Entry]]:
    """The weight files of a folder, and their tensors by name; both empty where there are no weights.

    Raises:
        BadFile: a shard is missing or damaged, or a tensor is in two of them, or in none.
    """
    index = folder / "model.safetensors.index.json"
    expected = _indexed(index) if index.is_file() else None
    files = (
        sorted(folder / name for name in set(expected.values())) if expected is not None else _found(folder)
    )
    _refuse_missing(folder, files)
    entries: dict[str, Entry] = {}
    for file in files:
        new = read_header(file)
        twice = entries.keys() & new.keys()
        if twice:
            raise BadFile(f"`{file}` repeats the tensor `{min(twice)}` of another shard", hint=_AGAIN)
        entries |= new
    absent = (expected or {}).keys() - entries.keys()
    if absent:
        first = _shown(min(absent))
        raise BadFile(
            f"`{index}` names {len(absent)} tensors that no shard has, the first `{first}`", hint=_AGAIN
        )
    return files, entries


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one file by name.

    Raises:
        BadFile: the header exceeds the file, is not of the format, or a tensor lies outside the file, in
            another, or not in the size that its shape and type need.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT_BYTES):
                raise BadFile(
                    f"`{path}` is not safetensors, or was cut short: its header has {length} bytes, "
                    f"the file {size}, the format allows {_HEADER_LIMIT_BYTES}",
                    hint=_AGAIN,
                )
            header = file.read(length)
    except OSError as error:
        raise BadFile(f"cannot read `{path}`: {error.strerror}") from error
    entries = _parse(path, header)
    _check(path, entries, size - 8 - length)
    return entries


def _parse(path: Path, header: bytes) -> dict[str, Entry]:
    _refuse_flood(path, header)
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = raw.pop("__metadata__", None)
        if metadata is not None:
            msgspec.json.decode(metadata, type=dict[str, str])
        return {name: msgspec.json.decode(entry, type=Entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadFile(
            f"the header of `{path}` is not of the safetensors format: {error}", hint=_AGAIN
        ) from error


def _refuse_flood(path: Path, text: bytes) -> None:
    marks = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if marks > _MARKS_LIMIT:
        raise BadFile(
            f"the JSON in `{path}` has {marks} brackets and commas, at most {_MARKS_LIMIT} are believed"
        )


def _check(path: Path, entries: dict[str, Entry], data_bytes: int) -> None:
    """Every tensor has its size, and together they fill the data without hole or overlap."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if len(name) > _NAME_LIMIT or not name.isprintable():
            raise BadFile(f"`{path}`: `{_shown(name)}`, of {len(name)} characters, is no name of a tensor")
        if entry.dtype not in BITS:
            raise BadFile(f"`{path}`: tensor `{name}` has the unknown type `{_shown(entry.dtype)}`")
        bits = math.prod(entry.shape) * BITS[entry.dtype]
        if bits != 8 * entry.n_bytes:
            raise BadFile(
                f"`{path}`: tensor `{name}` of shape {list(entry.shape)} and type {entry.dtype} needs "
                f"{bits / 8:g} bytes, its offsets give {entry.n_bytes}",
                hint=_AGAIN,
            )
        if entry.data_offsets[0] != end:
            raise BadFile(
                f"`{path}`: tensor `{name}` begins at {entry.data_offsets[0]}, the last one ends at {end}",
                hint=_AGAIN,
            )
        end = entry.data_offsets[1]
    if end != data_bytes:
        raise BadFile(f"`{path}` holds {data_bytes} bytes of tensors, its header tells of {end}", hint=_AGAIN)


def _indexed(index: Path) -> dict[str, str]:
    """The file of every tensor, by the index of a folder."""
    content = read_bounded(index, _HEADER_LIMIT_BYTES)
    _refuse_flood(index, content)
    try:
        files = msgspec.json.decode(content, type=_Index).weight_map
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadFile(f"`{index}` is not an index of safetensors: {error}", hint=_AGAIN) from error
    for name in set(files.values()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BadFile(f"`{index}` names `{_shown(name)}`, which is not a safetensors file of this folder")
    return files


def _shown(text: str) -> str:
    """A text from a file, safe to print: short and without control characters."""
    return repr(text[:60])[1:-1]


def _found(folder: Path) -> list[Path]:
    """The weight files of a folder without an index, those of adapters and of other layouts left out."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if file.name.startswith("model")] or [
        file for file in files if not file.name.startswith("adapter")
    ]


def _refuse_missing(folder: Path, files: list[Path]) -> None:
    wanted = set(files)
    for file in files:
        numbered = _SHARD.fullmatch(file.name)
        if numbered:
            stem, total = numbered[1], int(numbered[3])
            wanted |= {folder / f"{stem}-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)}
    missing = sorted(file.name for file in wanted if not file.is_file())
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise BadFile(
            f"`{folder}` lacks {len(missing)} of {len(wanted)} weight files: {', '.join(missing[:4])}{more}",
            hint="fetch them into the folder: only headers are read, but the files must be whole",
        )
