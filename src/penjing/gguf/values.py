"""The values of GGUF metadata: thirteen types, of which arrays and strings can be of any length."""

from __future__ import annotations

import shlex
from struct import Struct as Layout

from msgspec import Struct

from penjing.gguf.cursor import Cursor
from penjing.units import KIB, MIB

MAX_TEMPLATE_BYTES = 256 * KIB  # a chat template is a program; the longest known is some 20 KB
MAX_STRING_BYTES = MIB
MAX_ITEMS = 1024

_SCALARS = {
    0: ("u8", Layout("<B")), 1: ("i8", Layout("<b")), 2: ("u16", Layout("<H")), 3: ("i16", Layout("<h")),
    4: ("u32", Layout("<I")), 5: ("i32", Layout("<i")), 6: ("f32", Layout("<f")), 7: ("bool", Layout("<?")),
    10: ("u64", Layout("<Q")), 11: ("i64", Layout("<q")), 12: ("f64", Layout("<d")),
}  # fmt: skip
_STRING, _ARRAY = 8, 9


class ArrayOf(Struct, frozen=True):
    """The size of an array too long to keep: `count` values of a type (`str`, `f32`, …).

    A string of more than 1 MiB is an array of `u8`.
    """

    type: str
    count: int


def read_value(cursor: Cursor, key: str) -> object:
    """The value that follows `key`."""
    type_id = cursor.u32()
    if type_id in _SCALARS:
        cursor.keep(1)
        return cursor.unpack(_SCALARS[type_id][1])[0]
    if type_id == _ARRAY:
        return _read_array(cursor)
    if type_id == _STRING:
        return _read_text(cursor, key)
    raise cursor.bad(f"gives {cursor.place} the unknown type {type_id}")


def read_string(cursor: Cursor, limit: int) -> str:
    """A name of at most `limit` bytes, in strict UTF-8."""
    length = cursor.u64()
    if length > limit:
        raise cursor.bad(f"has a name of {length} bytes at {cursor.place}, the most allowed is {limit}")
    cursor.keep(1, length)
    try:
        return cursor.take(length).decode()
    except UnicodeDecodeError as error:
        raise cursor.bad(f"has a name that is not UTF-8 at {cursor.place}") from error


def _read_text(cursor: Cursor, key: str) -> str | ArrayOf:
    length = cursor.u64()
    if key.startswith("tokenizer.chat_template") and length > MAX_TEMPLATE_BYTES:
        raise cursor.bad(
            f"has a chat template of {length} bytes, the most allowed is {MAX_TEMPLATE_BYTES}",
            "pip install gguf && gguf-new-metadata --chat-template '{{ messages[-1].content }}' "
            f"{shlex.quote(cursor.name)} new.gguf",
        )
    if length > MAX_STRING_BYTES:
        cursor.skip(length)
        return ArrayOf("u8", length)
    cursor.keep(1, length)
    return cursor.take(length).decode(errors="replace")


def _read_array(cursor: Cursor) -> tuple[object, ...] | ArrayOf:
    type_id, count = cursor.u32(), cursor.u64()
    if type_id == _ARRAY:
        raise cursor.bad(f"nests arrays in {cursor.place}, which llama.cpp does not read")
    if type_id != _STRING and type_id not in _SCALARS:
        raise cursor.bad(f"gives the items of {cursor.place} the unknown type {type_id}")
    if type_id == _STRING:
        return _read_strings(cursor, count)
    name, layout = _SCALARS[type_id]
    if count > MAX_ITEMS:
        cursor.skip(count * layout.size)
        return ArrayOf(name, count)
    cursor.keep(count)
    return tuple(value for (value,) in layout.iter_unpack(cursor.take(count * layout.size)))


def _read_strings(cursor: Cursor, count: int) -> tuple[str, ...] | ArrayOf:
    if count > MAX_ITEMS:
        cursor.skip_strings(count)
        return ArrayOf("str", count)
    texts = []
    for _ in range(count):
        length = cursor.u64()
        cursor.keep(1, length)
        texts.append(cursor.take(length).decode(errors="replace"))
    return tuple(texts)
