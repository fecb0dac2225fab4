"""What was built: a model file and the record of how it came about."""

from __future__ import annotations

from msgspec import Struct


class Artifact(Struct, frozen=True):
    """A model file and its manifest.

    Units:
        n_bytes: size of the file. sha256, source_sha256: of the file, and of what it was made from.
        versions: package and engine versions that made it.
    """

    path: str
    n_bytes: int
    sha256: str
    source: str
    source_sha256: str | None = None
    tensor_types: dict[str, int] = {}
    versions: dict[str, str] = {}
