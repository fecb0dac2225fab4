"""A short name for the content of a model file that is quick to compute, however large the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from penjing.errors import BadFile

_EDGE_BYTES, _BLOCK_BYTES, _BLOCKS = 2**20, 2**16, 64


def fingerprint(files: Iterable[Path]) -> str:
    """32 hex digits over size, time of change, first and last MiB, and 64 blocks spread evenly over each file.

    It tells apart files that were made differently; it is no proof against somebody who forges one.

    Raises:
        BadFile: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            _add(digest, path)
        except OSError as error:
            raise BadFile(f"cannot read `{path}`: {error.strerror}") from error
    return digest.hexdigest()[:32]


def _add(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        stat = path.stat()
        size = stat.st_size
        digest.update(f"{size} {stat.st_mtime_ns}".encode())
        digest.update(file.read(_EDGE_BYTES))
        for block in range(1, _BLOCKS):
            file.seek(size * block // _BLOCKS)
            digest.update(file.read(_BLOCK_BYTES))
        file.seek(max(0, size - _EDGE_BYTES))
        digest.update(file.read(_EDGE_BYTES))
