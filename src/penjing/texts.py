"""Texts to calibrate, choose and report with: three that ship and share nothing, or a user's own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

from penjing.errors import BadFile

Purpose = Literal["calibrate", "choose", "report"]


def shipped(purpose: Purpose) -> str:
    """All files of a purpose, in the order of their names."""
    folder = resources.files("penjing") / "data" / "text" / purpose
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".txt")), key=lambda f: f.name)
    return "\n\n".join(file.read_text(encoding="utf-8") for file in files)


def read_text(path: Path) -> str:
    """A user's text.

    Raises:
        BadFile: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadFile(f"cannot read `{path}`: {error.strerror}") from error
    except UnicodeDecodeError as error:
        hint = f"iconv -t UTF-8 {path} > text.txt"
        raise BadFile(f"`{path}` is not UTF-8 text: byte {error.start} is no character", hint) from error
