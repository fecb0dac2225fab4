"""Files with a model's real shapes and random weights: its first layers, or all of it, in any types.

The engine multiplies with random weights at the same speed as with learned ones, so such a file tells what a format
costs long before a model is built in it. What is no matrix (norms, routers) is copied from the source.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from msgspec.structs import replace

from penjing.formats import type_bytes
from penjing.gguf.header import Header, TensorInfo
from penjing.gguf.writer import Value, frame_of
from penjing.quantize.native import Native
from penjing.units import MIB

_LAYER = re.compile(r"blk\.(\d+)\.")
_DRAWN_ROWS = 16  # of random weights; the rest repeats them
_PIECE_BYTES = 16 * MIB
_VOCABULARY = ("token_embd.weight", "output.weight", "output.bias")
_COUNT_AT, _HEAD_BYTES = 8, 16  # in an array: after its type and that of its items


def write(
    header: Header, types: Mapping[str, str], layers: int, vocabulary: int, out: Path, native: Native
) -> None:
    """Write the first `layers` of a model with `vocabulary` tokens, and the tensors named in `types` in those types.

    Matrices that `types` does not name keep their type, and are random as well. A file with fewer tokens than the model
    has no tokenizer.
    """
    cut = _cut(header, layers, vocabulary)
    frame = frame_of(cut, types, _keys(header, layers, vocabulary))
    sources = {info.name: info for info in header.tensors}
    with out.open("wb") as file:
        file.write(frame.head)
        for info in frame.tensors:
            file.write(bytes(info.offset - file.tell()))
            if len(info.shape) > 1 and info.type not in ("f32", "i32"):
                _write_random(file, info, native)
            else:
                file.write(_stored(header, sources[info.name], info.n_bytes))


def _cut(header: Header, layers: int, vocabulary: int) -> Header:
    """The header without later layers and, where there are fewer tokens, without the tokenizer."""
    kept = [_narrowed(info, vocabulary) for info in header.tensors if _layer(info.name) < layers]
    dropped = () if vocabulary == _vocabulary(header) else ("tokenizer.",)
    spans = {key: span for key, span in header.spans.items() if not key.startswith(dropped)}
    return replace(header, tensors=tuple(kept), spans=spans)


def _vocabulary(header: Header) -> int:
    return next(info.shape[-1] for info in header.tensors if info.name == _VOCABULARY[0])


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _narrowed(info: TensorInfo, vocabulary: int) -> TensorInfo:
    if info.name not in _VOCABULARY:
        return info
    return replace(info, shape=(*info.shape[:-1], vocabulary))


def _keys(header: Header, layers: int, vocabulary: int) -> dict[str, Value]:
    """Keys that differ from the source's: counts, arrays by layer, and no tokenizer."""
    architecture = header.metadata["general.architecture"]
    total = header.metadata[f"{architecture}.block_count"]
    keys: dict[str, Value] = {}
    if vocabulary != _vocabulary(header):
        keys |= {f"{architecture}.vocab_size": vocabulary, "tokenizer.ggml.model": "no_vocab"}
    if layers == total:
        return keys
    keys[f"{architecture}.block_count"] = layers
    for name in ("nextn_predict_layers", "leading_dense_block_count"):
        count = header.metadata.get(f"{architecture}.{name}")
        if isinstance(count, int):
            keys[f"{architecture}.{name}"] = 0 if name.startswith("nextn") else min(count, layers)
    for key, value in header.metadata.items():
        if key.startswith(f"{architecture}.") and isinstance(value, tuple) and len(value) == total:
            keys[key] = _first(header, key, layers)
    return keys


def _first(header: Header, key: str, count: int) -> bytes:
    """The value of `key`, an array with an entry for each layer, shortened to `count` entries."""
    start, stop = header.spans[key]
    with Path(header.files[0]).open("rb") as file:
        file.seek(start + 8 + len(key.encode()))
        value = file.read(stop - file.tell())
    total = int.from_bytes(value[_COUNT_AT:_HEAD_BYTES], "little")
    size = (len(value) - _HEAD_BYTES) // total
    return value[:_COUNT_AT] + struct.pack("<Q", count) + value[_HEAD_BYTES:][: count * size]


def _stored(header: Header, info: TensorInfo, n_bytes: int) -> bytes:
    with Path(header.files[info.file]).open("rb") as file:
        file.seek(info.offset)
        return file.read(n_bytes)


def _write_random(file: BinaryIO, info: TensorInfo, native: Native) -> None:
    """Weights that keep the size of activations: normal, with a deviation of 1 over the root of the row length."""
    columns = info.shape[0]
    rows = info.n_bytes // type_bytes(info.type, columns, columns)
    drawn = np.random.default_rng(1).normal(0, columns**-0.5, (min(_DRAWN_ROWS, rows), columns))
    stored = native.quantize(info.type, drawn.astype(np.float32)).reshape(-1)
    piece = np.tile(stored, max(1, min(_PIECE_BYTES, info.n_bytes) // len(stored)))
    for start in range(0, info.n_bytes, len(piece)):
        file.write(piece[: info.n_bytes - start].data)
