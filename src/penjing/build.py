"""Writes a model file in other formats, tensor by tensor, so that it can be interrupted at any moment.

Where every tensor goes is known before the first is made (gguf/writer.py). Beside the unfinished file lies a journal of
the pieces that are in it; a build that is started again with the same plan goes on after them, and the finished file is
the same, byte for byte. It takes its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from penjing import __version__
from penjing.engines.llamacpp.library import PINNED
from penjing.errors import Unavailable
from penjing.gguf import Header, TensorInfo, read_header
from penjing.gguf.writer import Frame, Value, frame_of
from penjing.progress import Bar
from penjing.quality.sensitivity import Moments, Sensitivity
from penjing.quality.stock import FILE_TYPES
from penjing.quantize.codes import CODECS
from penjing.quantize.errors import quantized
from penjing.quantize.helpers import Helpers, helper_bytes
from penjing.quantize.native import Native
from penjing.quantize.rounding import WAY
from penjing.quantize.tensors import PIECE_BYTES, Tensors
from penjing.units import show_bytes

W = TypeVar("W")
_HASH_BYTES = 2**22
_MEMORY_BYTES = 10**9  # that a build may take, beside some times its largest tensor
_COMMON_FILE_TYPES = {name.lower(): number for name, number in FILE_TYPES.items()}


class Recipe(Struct, frozen=True):
    """All that decides the bytes of a built file: format by tensor, the source, and how the rounding is done.

    `sensitivity_hash` names the moments that weigh the errors of rounding, empty if there are none; `refined` adds
    feedback and rescaling to what the engine's quantizers do.
    """

    types: Mapping[str, str]
    source_hash: str
    refined: bool = True
    sensitivity_hash: str = ""


class _Piece(Struct, frozen=True):
    name: str
    expert: int
    start: int
    stop: int


_Made = tuple[_Piece, np.ndarray]


class Builder:
    """Builds files from one source with one sensitivity. Files that it has built lend their tensors to later ones."""

    def __init__(self, header: Header, sensitivity: Sensitivity | None, native: Native) -> None:
        self._header, self._sensitivity, self._native = header, sensitivity, native
        self.tensors = Tensors(header, native)
        self._built: list[tuple[Recipe, Tensors]] = []

    def build(self, recipe: Recipe, out: Path, bar: Bar) -> str:
        """Write `out`, or go on with it where it was interrupted; returns its SHA-256.

        Raises:
            Unavailable: not enough room on the disk, or no permission.
            BadFile: a weight of the source is not a number.
        """
        frame = frame_of(self._header, recipe.types, _keys(recipe))
        part, journal = out.with_name(out.name + ".part"), out.with_name(out.name + ".journal")
        title, places = _title(recipe, frame), {info.name: info for info in frame.tensors}
        if not _is_whole(out, journal, title, frame):
            done = _open_part(part, journal, frame, title)
            made = closing(self._pieces(recipe, frame, done))
            with part.open("r+b") as file, journal.open("ab") as log, made as pieces:
                for piece, data in pieces:
                    _write(file, log, piece, data, places[piece.name])
                    bar.advance(data.nbytes)
                os.fsync(file.fileno())
            part.replace(out)
        self._built.append((recipe, Tensors(read_header(out), self._native)))
        return _sha256(out)

    def forget(self) -> None:
        """Files that were built may go or get other names: they lend nothing from now on."""
        self._built.clear()

    def _pieces(
        self, recipe: Recipe, frame: Frame, done: set[_Piece]
    ) -> Generator[tuple[_Piece, np.ndarray], None, None]:
        """What is not yet in the file, in the order of the file, a few ahead of the one that is written."""
        waiting = [
            (_Piece(info.name, *place), info)
            for info in frame.tensors
            for place in self.tensors.pieces(info.name)
            if _Piece(info.name, *place) not in done
        ]
        count = self._helper_count()
        # the pool outlives the helpers: its threads have started them, and what waits on them ends when they do
        with _abandoning(ThreadPoolExecutor(count)) as pool, Helpers(count) as helpers:
            made = _ahead(pool, lambda p: self._made(recipe, helpers, *p), waiting, count + 1)
            for (piece, _), data in made:
                yield piece, data

    def _helper_count(self) -> int:
        """One for each core, as far as all together stay within the memory that a build may take."""
        widest = max(info.shape[0] for info in self._header.tensors if len(info.shape) > 1)
        largest = max(info.n_bytes for info in self._header.tensors)
        each = helper_bytes(widest, PIECE_BYTES) + 3 * PIECE_BYTES
        return max(1, min(self._native.threads, (_MEMORY_BYTES + 2 * largest) // each))

    def _made(self, recipe: Recipe, helpers: Helpers, piece: _Piece, info: TensorInfo) -> np.ndarray:
        """The bytes of some rows in their new type; what keeps its type is copied, from the source or a file before."""
        lender = self._lender(recipe, info)
        if lender is not None:
            return lender.raw(info.name, piece.start, piece.stop)
        rows = self.tensors.rows(info.name, np.arange(piece.start, piece.stop))
        moments = self._moments(piece)
        if moments is not None and recipe.refined and info.type in CODECS:
            return helpers.quantized(f"{piece.name} {piece.expert}", info.type, rows, moments)
        return quantized(self._native, info.type, rows, moments)

    def _lender(self, recipe: Recipe, info: TensorInfo) -> Tensors | None:
        if info.type == self.tensors.infos[info.name].type:
            return self.tensors
        for other, tensors in self._built:
            alike = (other.refined, other.sensitivity_hash) == (recipe.refined, recipe.sensitivity_hash)
            if alike and tensors.infos[info.name].type == info.type:
                return tensors
        return None

    def _moments(self, piece: _Piece) -> Moments | None:
        moments = self._sensitivity.moments.get(piece.name) if self._sensitivity else None
        if moments is None or moments.inputs.ndim == 1:
            return moments
        return moments.of_expert(piece.expert)


@contextmanager
def _abandoning(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """A pool whose waiting work is dropped when the block is left."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def tidy(out: Path) -> None:
    """Forget what was kept for going on with `out`."""
    for ending in (".part", ".journal"):
        out.with_name(out.name + ending).unlink(missing_ok=True)


def _title(recipe: Recipe, frame: Frame) -> str:
    """Names everything that the bytes of the file depend on."""
    known = frame.head + msgspec.json.encode(recipe, order="sorted") + f"{PINNED} {WAY}".encode()
    return hashlib.sha256(known).hexdigest()


def _is_whole(out: Path, journal: Path, title: str, frame: Frame) -> bool:
    try:
        same = journal.read_bytes().split(b"\n")[0].decode() == title
        return same and out.stat().st_size == frame.n_bytes
    except (OSError, UnicodeDecodeError):
        return False


def _write(file: BinaryIO, log: BinaryIO, piece: _Piece, data: np.ndarray, info: TensorInfo) -> None:
    """The piece first, then the note that it is there: a note without its piece can never be."""
    file.seek(info.offset + piece.start * data.shape[1])
    file.write(data.tobytes())
    file.flush()
    log.write(msgspec.json.encode(piece) + b"\n")
    log.flush()


def _keys(recipe: Recipe) -> dict[str, Value]:
    """What the new file says of itself beside what the source said."""
    kinds = list(recipe.types.values())
    common = max(sorted(set(kinds)), key=kinds.count) if kinds else "f16"
    return {
        "general.file_type": _COMMON_FILE_TYPES.get(
            common.lower(), _COMMON_FILE_TYPES.get(f"{common.lower()}_m", 1)
        ),
        "general.quantization_version": 2,
        "penjing.version": __version__,
        "penjing.source_hash": recipe.source_hash,
    }


def _open_part(part: Path, journal: Path, frame: Frame, title: str) -> set[_Piece]:
    """The pieces already in an unfinished file of the same title; otherwise an empty file of full length."""
    try:
        lines = journal.read_bytes().split(b"\n")
        if part.stat().st_size == frame.n_bytes and lines[0].decode() == title:
            return {msgspec.json.decode(line, type=_Piece) for line in lines[1:-1]}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        pass
    journal.unlink(missing_ok=True)
    part.unlink(missing_ok=True)
    check_room(part.parent, frame.n_bytes)
    try:
        with part.open("wb") as file:
            file.write(frame.head)
            os.posix_fallocate(file.fileno(), 0, frame.n_bytes)
        journal.write_bytes(title.encode() + b"\n")
    except OSError as error:
        part.unlink(missing_ok=True)
        problem = f"cannot write `{part}`: {error.strerror}"
        raise Unavailable(problem, hint="choose another place: `--out FILE`") from error
    return set()


def check_room(folder: Path, n_bytes: int) -> None:
    """Raises Unavailable: no such folder, or its disk has less than `n_bytes` left."""
    if not folder.is_dir():
        raise Unavailable(f"the folder `{folder}` does not exist", hint=f"mkdir -p {folder}")
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise Unavailable(
            f"the build needs {show_bytes(n_bytes)}, but the disk of `{folder}` has {show_bytes(free)} left",
            hint="choose another disk: `--out FILE`, or a smaller `--size`",
        )


def _ahead(
    pool: ThreadPoolExecutor,
    make: Callable[[W], np.ndarray],
    work: Sequence[W],
    count: int,
) -> Iterator[tuple[W, np.ndarray]]:
    """Results in order, with `count` in work: no more than that many are in memory."""
    waiting = iter(work)
    running = [(one, pool.submit(make, one)) for one in islice(waiting, count)]
    while running:
        one, result = running.pop(0)
        yield one, result.result()
        running += [(following, pool.submit(make, following)) for following in islice(waiting, 1)]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
