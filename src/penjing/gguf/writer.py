"""The frame of a new GGUF file made from another: same metadata, same tensors, other types.

Sizes follow from the types alone, so every tensor's place is known before the first is made: they can be written
in any order, by several threads, and an interrupted file can be gone on with.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from penjing.formats import BY_NAME, type_bytes
from penjing.gguf.header import Header, TensorInfo

_ALIGNMENT = 32
_DROPPED = ("split.", "general.file_type", "general.quantization_version", "general.alignment")
Value = str | int | float | bytes  # bytes: a value as it is stored, its type first


class Frame(Struct, frozen=True):
    """`head` is all that stands before the weights; `tensors` tell where each goes, from the file's start."""

    head: bytes
    tensors: tuple[TensorInfo, ...]
    n_bytes: int


def frame_of(header: Header, types: Mapping[str, str], extra: Mapping[str, Value]) -> Frame:
    """The frame of a file with the tensors of `header`, those named in `types` in another type.

    `extra` keys are added; those that speak of parts, file type or alignment of the source are left out.
    """
    kept = [key for key in header.spans if not key.startswith(_DROPPED) and key not in extra]
    entries = [_copied(header, kept), *(_entry(key, value) for key, value in extra.items())]
    infos, end = _placed(header.tensors, types)
    table = b"".join(_table_entry(info) for info in infos)
    counts = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(kept) + len(extra))
    head = _padded(b"".join((counts, *entries, table)))
    tensors = tuple(TensorInfo(i.name, i.shape, i.type, len(head) + i.offset, i.n_bytes) for i in infos)
    return Frame(head, tensors, len(head) + end)


def _copied(header: Header, keys: Sequence[str]) -> bytes:
    parts = []
    with Path(header.files[0]).open("rb") as file:
        for start, stop in (header.spans[key] for key in keys):
            file.seek(start)
            parts.append(file.read(stop - start))
    return b"".join(parts)


def _placed(sources: Sequence[TensorInfo], types: Mapping[str, str]) -> tuple[list[TensorInfo], int]:
    """The tensors with their offsets from the start of the data, and where the last one ends."""
    infos, at = [], 0
    for source in sources:
        kind = types.get(source.name, source.type)
        weights = 1
        for size in source.shape:
            weights *= size
        n_bytes = type_bytes(kind, weights, source.shape[0] if source.shape else 1)
        infos.append(TensorInfo(source.name, source.shape, kind, at, n_bytes))
        at += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    return infos, at


def _entry(key: str, value: Value) -> bytes:
    name = _string(key)
    if isinstance(value, bytes):
        return name + value
    if isinstance(value, str):
        return name + struct.pack("<I", 8) + _string(value)
    if isinstance(value, int):
        return name + struct.pack("<II", 4, value)
    return name + struct.pack("<If", 6, value)


def _table_entry(info: TensorInfo) -> bytes:
    shape = struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *info.shape)
    return _string(info.name) + shape + struct.pack("<IQ", BY_NAME[info.type].id, info.offset)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _ALIGNMENT)
