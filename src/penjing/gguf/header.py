"""Reads the header of one GGUF file: its metadata and where each tensor lies.

The format is described in ggml's docs/gguf.md. The limits are those of llama.cpp's own reader
(ggml/src/gguf.cpp), which refuses in fewer words, and some of ours where it would allocate at will.
"""

from __future__ import annotations

import shlex
import struct
from typing import BinaryIO

from msgspec import Struct

from penjing.errors import UsageError
from penjing.formats import REMOVED, TYPES, type_bytes
from penjing.gguf.cursor import Cursor, printable
from penjing.gguf.sniff import refusal
from penjing.gguf.values import read_string, read_value

MAX_KEYS = 10_000  # real files have below a hundred
MAX_TENSORS = 2**15  # and at most a few thousand tensors
MAX_NAME_BYTES = 63  # GGML_MAX_NAME is 64 with the closing zero
MAX_DIMENSIONS = 4

_MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT = 32
_LEAST_KEY_BYTES = 8 + 1 + 4 + 1  # length, one character, type, one byte of value
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8  # length, one character, dimensions, type, offset
# What follows the number of dimensions: the dimensions, the type and the offset.
_TAILS = tuple(struct.Struct(f"<{n}QIQ") for n in range(MAX_DIMENSIONS + 1))


class TensorInfo(Struct, frozen=True):
    """Where one tensor lies.

    Units:
        shape: row length first. type: as ggml names it (`q4_K`).
        offset: bytes from the start of its file; file: which of the parts, from 0.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int
    file: int = 0


class Header(Struct, frozen=True):
    """What a GGUF file says before its weights.

    `metadata` holds scalars, strings and short arrays (tuples); of a long one only its `ArrayOf`.
    `files` are all parts in order; metadata is that of the first. `spans` tells where the bytes of each key,
    name and value included, lie in the first file: a copy of the file keeps what nobody has to understand.
    """

    version: int
    metadata: dict[str, object]
    tensors: tuple[TensorInfo, ...]
    files: tuple[str, ...]
    spans: dict[str, tuple[int, int]] = {}


def parse_header(stream: BinaryIO, size: int, name: str) -> Header:
    """The header of one file (or one part) of `size` bytes, read from the start of `stream`.

    Raises:
        BadFile: not a GGUF, damaged, truncated, or of a kind that cannot be run; says where.
    """
    cursor = Cursor(stream, size, name)
    _check_magic(cursor)
    version = _read_version(cursor)
    cursor.place = "the header"
    n_tensors, n_keys = cursor.u64(), cursor.u64()
    _check_count(cursor, n_keys, "keys", MAX_KEYS, _LEAST_KEY_BYTES)
    _check_count(cursor, n_tensors, "tensors", MAX_TENSORS, _LEAST_TENSOR_BYTES)
    metadata, spans = _read_metadata(cursor, n_keys)
    tensors = _read_tensors(cursor, n_tensors, _alignment(cursor, metadata))
    return Header(version, metadata, tensors, (name,), spans)


def _check_magic(cursor: Cursor) -> None:
    start = cursor.take(min(cursor.size, 64))
    if not start or not _MAGIC.startswith(start[:4]):
        raise refusal(start, cursor.size, cursor.name)
    cursor.at = 4 if len(start) >= 4 else 0
    if len(start) < 4:
        cursor.take(4)


def _read_version(cursor: Cursor) -> int:
    version = cursor.u32()
    path = shlex.quote(cursor.name)
    if version and version & 0xFFFF == 0:
        raise cursor.bad(
            "is big endian, made for another kind of machine",
            f"pip install gguf && gguf-convert-endian {path} little",
        )
    if version < 2:
        raise cursor.bad(
            f"is GGUF version {version}, which llama.cpp no longer reads; versions 2 and 3 are",
            "convert the original weights again: `python convert_hf_to_gguf.py FOLDER`",
        )
    if version > 3:
        raise cursor.bad(
            f"is GGUF version {version}; versions 2 and 3 are known", "pip install --upgrade penjing"
        )
    return version


def _check_count(cursor: Cursor, count: int, what: str, most: int, least_bytes: int) -> None:
    if count > most:
        raise cursor.bad(f"claims {count} {what}, the most allowed is {most}")
    if count * least_bytes > cursor.size - cursor.at:
        raise cursor.bad(f"ends too early: {count} {what} do not fit into its {cursor.size} bytes")


def _read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, object], dict[str, tuple[int, int]]]:
    metadata: dict[str, object] = {}
    spans: dict[str, tuple[int, int]] = {}
    for i in range(count):
        start, cursor.place = cursor.at, f"key {i + 1} of {count}"
        key = read_string(cursor, 65_535)
        if not key or not key.isprintable():
            raise cursor.bad(f"has a key without a readable name, `{printable(key)}` ({cursor.place})")
        if key in metadata:
            raise cursor.bad(f"has the key `{printable(key)}` twice")
        cursor.place = f"`{printable(key)}`"
        metadata[key] = read_value(cursor, key)
        spans[key] = start, cursor.at
    return metadata, spans


def _alignment(cursor: Cursor, metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment < 2**32 or alignment & (alignment - 1):
        raise cursor.bad(
            f"has a `general.alignment` of {printable(str(alignment))}, which is no power of two"
        )
    return alignment


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> tuple[TensorInfo, ...]:
    """The tensor table, with each tensor where the one before it ends: llama.cpp allows no gap either."""
    found: dict[str, TensorInfo] = {}
    end = 0
    for i in range(count):
        cursor.place = f"tensor {i + 1} of {count}"
        tensor = _read_tensor(cursor)
        if tensor.name in found:
            raise cursor.bad(f"has the tensor `{tensor.name}` twice")
        if tensor.offset != end:
            raise cursor.bad(
                f"has the tensor `{tensor.name}` at byte {tensor.offset} of its data, "
                f"but the tensors before it end at {end} (aligned to {alignment})"
            )
        end += _padded(tensor.n_bytes, alignment)
        found[tensor.name] = tensor
    start = _padded(cursor.at, alignment)
    _check_data(cursor, start, found)
    return tuple(TensorInfo(t.name, t.shape, t.type, start + t.offset, t.n_bytes) for t in found.values())


def _read_tensor(cursor: Cursor) -> TensorInfo:
    """One entry of the table; its offset still counts from the start of the data."""
    name = read_string(cursor, MAX_NAME_BYTES)
    if not name or not name.isprintable():
        raise cursor.bad(f"has a tensor without a readable name, `{printable(name)}` ({cursor.place})")
    cursor.place = f"the tensor `{name}`"
    n_dimensions = cursor.u32()
    if n_dimensions > MAX_DIMENSIONS:
        raise cursor.bad(f"gives `{name}` {n_dimensions} dimensions, the most allowed is {MAX_DIMENSIONS}")
    *shape, type_id, offset = cursor.unpack(_TAILS[n_dimensions])
    if type_id not in TYPES:
        was = f"the removed type {REMOVED[type_id]}" if type_id in REMOVED else f"the unknown type {type_id}"
        raise cursor.bad(f"stores `{name}` in {was}", "take a file in another type, such as Q4_0 or Q4_K_M")
    kind = TYPES[type_id].name
    return TensorInfo(name, tuple(shape), kind, offset, _tensor_bytes(cursor, name, kind, shape))


def _tensor_bytes(cursor: Cursor, name: str, kind: str, shape: list[int]) -> int:
    n_weights = 1
    for size in shape:
        n_weights *= size
    if not 0 < n_weights < 2**63:
        raise cursor.bad(f"gives `{name}` the shape {tuple(shape)}, of {n_weights} weights")
    try:
        return type_bytes(kind, n_weights, shape[0] if shape else 1)
    except UsageError as error:
        raise cursor.bad(f"has an impossible tensor `{name}`: {error}") from error


def _check_data(cursor: Cursor, start: int, found: dict[str, TensorInfo]) -> None:
    needed = max((start + t.offset + t.n_bytes for t in found.values()), default=0)
    if needed > cursor.size:
        raise cursor.bad(
            f"ends too early: it has {cursor.size} bytes, but its tensors reach to byte {needed}"
        )


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment
