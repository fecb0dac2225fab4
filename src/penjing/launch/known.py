"""What is known of each engine version: its flags, and the devices and images it runs on (`data/engines.toml`).

A wrong flag is caught by this list without the engine. It holds the flags that matter for planning, not all.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

_NUMBER = re.compile(r"-?\d+(\.\d+)?")

Kind = Literal["int", "number", "share", "json", "text", "switch"]


class Flag(Struct, frozen=True, forbid_unknown_fields=True):
    """A flag and what may follow it: nothing (`switch`), or a value of its kind, at `least` so large."""

    kind: Kind
    least: int | None = None
    one_of: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


class Vendor(Struct, frozen=True, forbid_unknown_fields=True):
    """The devices of one vendor: what Kubernetes calls one, the image for each, and those that are too old.

    Images are by a part of the device's name; an empty image means that containers cannot reach the device.
    """

    images: dict[str, str]
    resource: str = ""
    too_old: tuple[str, ...] = ()

    def image(self, device: str) -> str | None:
        """The image for a device; None where the engine does not run on it."""
        if any(name in device for name in self.too_old):
            return None
        fits = [part for part in self.images if part in device]
        return self.images[max(fits, key=len)] if fits else None


class Known(Struct, frozen=True, forbid_unknown_fields=True):
    """One engine in one version: its program, its vendors, its flags, and where they were read.

    plugin: what it needs besides. api_key_variable: where it looks for the API key; empty if it takes a flag.
    """

    title: str
    source: str
    program: tuple[str, ...]
    vendors: dict[str, Vendor]
    flags: dict[str, Flag]
    plugin: str = ""
    api_key_variable: str = ""
    like: str = ""

    def flag(self, name: str) -> tuple[str, Flag] | None:
        """A flag by any of its names, with the main one; None if there is none."""
        for main, flag in self.flags.items():
            if name == main or name in flag.also:
                return main, flag
        return None


@functools.cache
def engines() -> dict[tuple[str, str], Known]:
    """Every list, by name and version of the engine."""
    text = (resources.files("penjing") / "data" / "engines.toml").read_text("utf-8")
    lists = msgspec.convert(tomllib.loads(text), dict[str, Known])
    whole = {name: _with_flags_of(known, lists.get(known.like)) for name, known in lists.items()}
    return {_split(name): known for name, known in whole.items()}


def version_for(engine: str, vendor: str) -> str | None:
    """The version of an engine that runs on a vendor's devices; None if there is no such list."""
    return next(
        (v for (name, v), known in engines().items() if name == engine and vendor in known.vendors), None
    )


def engine_names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name, _ in engines()))


def fault(known: Known, arguments: Sequence[str]) -> str:
    """What is wrong with a command line by the list, in words; empty if nothing is.

    A word that is no flag and no value is the model, of which there is at most one.
    """
    return next(_faults(known, list(arguments)), "")


def parsed(known: Known, arguments: Sequence[str]) -> dict[str, str | None]:
    """The command line as values by main names of flags, None for switches; the model stands under ``."""
    return dict(_pairs(known, list(arguments)))


def _split(name: str) -> tuple[str, str]:
    engine, _, version = name.partition(" ")
    return engine, version


def _with_flags_of(known: Known, other: Known | None) -> Known:
    return known if other is None else replace(known, flags=other.flags | known.flags)


def _pairs(known: Known, words: list[str]) -> Iterator[tuple[str, str | None]]:
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            yield "", word
            continue
        name, joined, value = word.partition("=")
        found = known.flag(name)
        if found and found[1].kind == "switch":
            yield found[0], None
        elif joined:
            yield found[0] if found else name, value
        else:
            yield found[0] if found else name, words.pop(0) if words else ""


def _faults(known: Known, words: list[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name, value in _pairs(known, words):
        flag = known.flags.get(name)
        if name in seen:
            yield f"`{name or value}` is there twice"
        elif name and flag is None:
            yield f"{known.title} knows no flag `{name}`"
        elif flag and (problem := _problem(flag, value)):
            yield f"`{name}` is `{value}`, but {problem}"
        seen.add(name)


def _problem(flag: Flag, value: str | None) -> str:
    """Why a value cannot follow a flag; empty if it can."""
    if flag.kind == "switch":
        return ""
    if not value:
        return "a value must follow"
    if flag.one_of and value not in flag.one_of:
        return f"it must be one of {', '.join(flag.one_of)}"
    if flag.kind == "json":
        return "" if _is_json(value) else "it must be JSON"
    if flag.kind != "text" and not _NUMBER.fullmatch(value):
        return "it must be a number"
    if flag.kind == "int" and ("." in value or int(value) < (flag.least or 0)):
        return f"it must be a whole number of at least {flag.least or 0}"
    if flag.kind == "share" and not 0 < float(value) <= 1:
        return "it must be above 0 and at most 1"
    return ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
