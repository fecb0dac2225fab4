"""What a file that is not a GGUF looks like, and what to do about it."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from penjing.errors import BadFile
from penjing.gguf.cursor import fetch_again

_CONVERT = "convert the original weights: `python convert_hf_to_gguf.py FOLDER`"
_FETCH = ""  # nothing in the file helps: fetch it again

_LOOKS = (
    (b"pk\x03\x04", "a zip archive (or a PyTorch checkpoint)", "unpack it: `unzip {path}`"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file it points to",
        "git lfs pull --include {base}",
    ),
    (b"<!doctype", "an HTML page", _FETCH),
    (b"<html", "an HTML page", _FETCH),
    (b"<?xml", "an XML page", _FETCH),
    (b"{", "JSON text", "name the model file or folder beside it: `penjing plan {folder}`"),
    (b"\x80", "a Python pickle (a PyTorch checkpoint)", _CONVERT),
    (b"lmgg", "a GGML file from before GGUF", _CONVERT),
    (b"fmgg", "a GGML file from before GGUF", _CONVERT),
    (b"tjgg", "a GGML file from before GGUF", _CONVERT),
    (b"\x1f\x8b", "gzip data", "gunzip {path}"),
    (b"\xfd7zxz", "xz data", "unxz {path}"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "unzstd {path}"),
    (b"\x7felf", "a program", _FETCH),
    (b"\0\0\0\0", "an unfinished download (it starts with zeros)", _FETCH),
)


def refusal(start: bytes, size: int, name: str) -> BadFile:
    """The error for a file of `size` bytes whose first bytes are `start`, which are not those of a GGUF."""
    if not size:
        return BadFile(f"`{name}` is empty (0 bytes)", hint=_filled(_FETCH, name))
    what, hint = _look(start, size)
    return BadFile(f"`{name}` is not a GGUF file: it looks like {what}", hint=_filled(hint, name))


def _look(start: bytes, size: int) -> tuple[str, str]:
    if _is_safetensors(start, size):
        return "safetensors", "name its folder instead: `penjing plan {folder}`"
    head = start.lstrip().lower() or start
    for prefix, what, hint in _LOOKS:
        if head.startswith(prefix):
            return what, hint
    shown = " ".join(f"{byte:02x}" for byte in start[:4])
    return f"something else (its first bytes are {shown})", _FETCH


def _is_safetensors(start: bytes, size: int) -> bool:
    """Safetensors begin with the length of a JSON header, in 8 bytes, and the header."""
    return start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= size - 8


def _filled(hint: str, name: str) -> str:
    path = PurePath(name)
    parts = {"path": name, "base": path.name, "folder": str(path.parent)}
    return hint.format_map({key: shlex.quote(text) for key, text in parts.items()}) or fetch_again(name)
