"""Sensitivity files: one `.npz` with the moments of every matrix and a note of where they come from."""

from __future__ import annotations

import hashlib
import io
import tokenize
import zipfile
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from penjing.errors import BadFile
from penjing.gguf.header import Header
from penjing.quality.sensitivity import Moments, Sensitivity
from penjing.store import write_atomically

_ABOUT = "about"
_FORM = 1
_EDGE_BYTES = 2**16
# All that NumPy and zipfile raise over files with a few wrong bytes.
_DAMAGED = (
    ValueError, TypeError, KeyError, EOFError, RuntimeError, SyntaxError, MemoryError, tokenize.TokenError,
    zipfile.BadZipFile, msgspec.DecodeError,
)  # fmt: skip


class _About(Struct, frozen=True):
    """What a file says of itself."""

    form: int
    model: str
    source: Literal["measured", "assumed"]
    tokens: int
    seed: int
    text_sha256: str
    version: str


def save(path: Path, sensitivity: Sensitivity) -> None:
    """Raises Unavailable: no space, no permission."""
    about = _About(
        _FORM, sensitivity.model, sensitivity.source, sensitivity.tokens, sensitivity.seed,
        sensitivity.text_sha256, sensitivity.version,
    )  # fmt: skip
    arrays = {_ABOUT: np.frombuffer(msgspec.json.encode(about), dtype=np.uint8)}
    for name, moments in sensitivity.moments.items():
        for field in ("inputs", "outputs", "tokens", "directions", "noise"):
            array = getattr(moments, field)
            if array is not None:
                arrays[f"{name}|{field}"] = array
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def load_for(path: Path, header: Header) -> Sensitivity:
    """The sensitivity in a file, for the model that `header` describes.

    One that was measured on a folder of safetensors knows no weights of a GGUF file: there all shapes have to be the
    same.

    Raises:
        BadFile: no sensitivity file, a damaged one, or that of another model.
    """
    found, here = load(path), model_hash(header)
    if not found.model:
        _check_shapes(path, found, header)
    elif found.model != here:
        raise _bad(path, f"is that of another model ({found.model[:12]}, this one is {here[:12]})")
    return replace(found, model=here)


def _check_shapes(path: Path, sensitivity: Sensitivity, header: Header) -> None:
    """Raises BadFile for a matrix of other rows or columns than its moments have, or none."""
    shapes = {info.name: info.shape[:2] for info in header.tensors}
    for name, moments in sensitivity.moments.items():
        measured = (moments.inputs.shape[-1], moments.outputs.shape[-1])
        if shapes.get(name) != measured:
            there = f"is {shapes[name]} here" if name in shapes else "is not in this one"
            raise _bad(path, f"is that of another model: `{name}`, {measured} when it was measured, {there}")


def load(path: Path) -> Sensitivity:
    """The sensitivity in a file, whatever model it is of.

    Raises:
        BadFile: no sensitivity file, or a damaged one.
    """
    try:
        # opened here, for np.load leaves a file open that it does not understand
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            about = msgspec.json.decode(file[_ABOUT].tobytes(), type=_About)
            arrays: dict[str, dict[str, np.ndarray]] = {}
            for key in file.files:
                if key != _ABOUT:
                    name, _, field = key.partition("|")
                    arrays.setdefault(name, {})[field] = file[key]
            moments = {name: _checked(Moments(**fields)) for name, fields in arrays.items()}
    except OSError as error:
        raise BadFile(f"cannot read `{path}`: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise _bad(path, "is not a sensitivity file, or a damaged one") from error
    return Sensitivity(
        moments, about.model, about.source, about.tokens, about.seed, about.text_sha256, about.version
    )


def _checked(moments: Moments) -> Moments:
    for array in (moments.inputs, moments.outputs):
        if not np.isfinite(array).all() or (array < 0).any():
            raise ValueError("a moment is negative or no number")
    return moments


def _bad(path: Path, problem: str) -> BadFile:
    return BadFile(f"`{path}` {problem}", hint=f"penjing calibrate MODEL --out {path}")


def model_hash(header: Header) -> str:
    """32 hex digits over names, shapes, types and the edges of every tensor: equal for copies of the same weights."""
    digest = hashlib.sha256()
    for info in header.tensors:
        digest.update(f"{info.name} {info.shape} {info.type};".encode())
        with Path(header.files[info.file]).open("rb") as file:
            for at in (0, max(0, info.n_bytes - _EDGE_BYTES)):
                file.seek(info.offset + at)
                digest.update(file.read(min(_EDGE_BYTES, info.n_bytes)))
    return digest.hexdigest()[:32]
