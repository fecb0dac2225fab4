"""From a path to a header: what can go wrong before the first byte, and files that come in parts."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from pathlib import Path

from msgspec import structs

from penjing.errors import BadFile
from penjing.gguf.cursor import fetch_again, printable
from penjing.gguf.header import Header, TensorInfo, parse_header

MAX_PARTS = 1000

_PART_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


def read_header(path: Path) -> Header:
    """The checked header of a GGUF file; of all parts, in order, when it is one of several.

    Reads no weights. Whatever a file claims, its answer takes below 200 MB and about a second.

    Raises:
        BadFile: missing, unreadable, not a GGUF, damaged, truncated, or one part of an incomplete set.
    """
    given = _read_part(path)
    count = given.metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= MAX_PARTS:
        shown = printable(str(count))
        raise BadFile(
            f"`{path}` is one of {shown} parts, the most allowed is {MAX_PARTS}", fetch_again(str(path))
        )
    if count < 2:
        return given
    paths = _part_paths(path, given, count)
    return _join([given if part == path else _read_part(part) for part in paths])


def model_stem(path: Path) -> str:
    """The file name without its ending and its part number."""
    match = _PART_NAME.fullmatch(path.name)
    return match[1] if match else path.stem


def _read_part(path: Path) -> Header:
    if "\0" in str(path):
        raise BadFile(f"`{printable(str(path))}` holds a zero character, which no path can", "ls *.gguf")
    try:
        _check_kind(path, path.stat().st_mode)
        with path.open("rb") as stream:
            return parse_header(stream, os.fstat(stream.fileno()).st_size, str(path))
    except OSError as error:
        raise _unreadable(path, error) from error


def _check_kind(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        inside = sorted(path.glob("*.gguf"))
        example = shlex.quote(str(inside[0] if inside else path / "MODEL.gguf"))
        raise BadFile(
            f"`{path}` is a folder, not a GGUF file", f"name a file in it: `penjing plan {example}`"
        )
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        raise BadFile(
            f"`{path}` is a device or a pipe, not a file", f"cat {shlex.quote(str(path))} > MODEL.gguf"
        )


def _unreadable(path: Path, error: OSError) -> BadFile:
    if error.errno == errno.ENOENT:
        return BadFile(f"`{path}` does not exist", "`penjing models` lists the models known by name")
    if error.errno == errno.EACCES:
        return BadFile(f"`{path}` may not be read: permission denied", f"chmod u+r {shlex.quote(str(path))}")
    return BadFile(f"`{path}` cannot be read: {error.strerror}", f"ls -l {shlex.quote(str(path))}")


def _part_paths(path: Path, header: Header, count: int) -> list[Path]:
    """The paths of all parts, first to last; each must be there."""
    number = header.metadata.get("split.no")
    match = _PART_NAME.fullmatch(path.name)
    if type(number) is not int or not match or (int(match[2]), int(match[3])) != (number + 1, count):
        raise BadFile(
            f"`{path}` is one of {count} parts, but its name does not say which",
            f"rename the parts to `MODEL-00001-of-{count:05d}.gguf` and so on",
        )
    paths = [path.with_name(f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    for i, part in enumerate(paths):
        if not part.exists():
            raise BadFile(
                f"part {i + 1} of {count} is missing: `{part}`",
                f"fetch it into the same folder: `hf download OWNER/REPOSITORY {shlex.quote(part.name)}`",
            )
    return paths


def _join(parts: list[Header]) -> Header:
    """One header of all parts: metadata of the first, tensors of all."""
    tensors: dict[str, TensorInfo] = {}
    for i, part in enumerate(parts):
        name = part.files[0]
        if (part.metadata.get("split.no"), part.metadata.get("split.count", len(parts))) != (i, len(parts)):
            raise BadFile(
                f"`{name}` is not part {i + 1} of {len(parts)}, as its name says", fetch_again(name)
            )
        for tensor in part.tensors:
            if tensor.name in tensors:
                raise BadFile(
                    f"`{name}` repeats the tensor `{tensor.name}` of another part", fetch_again(name)
                )
            tensors[tensor.name] = structs.replace(tensor, file=i)
    first = parts[0]
    claimed = first.metadata.get("split.tensors.count")
    if claimed != len(tensors):
        raise BadFile(
            f"`{first.files[0]}` speaks of {printable(str(claimed))} tensors, "
            f"but its {len(parts)} parts hold {len(tensors)}",
            fetch_again(first.files[0]),
        )
    files = tuple(p.files[0] for p in parts)
    return Header(first.version, first.metadata, tuple(tensors.values()), files, first.spans)
