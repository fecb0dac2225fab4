"""From what people write to an entry of the catalogue: names, parts of names, labels of other tables.

"Llama-3-8B" ─→ names of entries ─→ aliases ─→ whole words at the end of one ─→ ... ─→ refused, with the nearest
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from penjing.catalogue import labels
from penjing.catalogue.labels import plain
from penjing.errors import UnknownName

Kind = Literal["machine", "model"]

_HEAD_BYTES = 1000  # the names of an entry stand in its first lines
_LONGEST_SHOWN = 60
_SHORTEST_PART = 2


class Alias(Struct, frozen=True, forbid_unknown_fields=True):
    """Another name of an entry, as tables of measurements write it.

    entry: its name in the catalogue; empty where it has none, and `note` says why.
    units: how many of the entry one device of that name is. host: the machine whose processor and memory
    stand behind an accelerator, and how many `sockets` of it.
    experts_used: experts of each token, where the name is of a model changed in that.
    """

    entry: str = ""
    note: str = ""
    units: float = 1.0
    host: str = ""
    sockets: int = 1
    experts_used: int | None = None


def entries(kind: Kind) -> dict[str, Path]:
    """The file of every entry by its name. Only the first lines are read: parsing all takes a while."""
    return {name: path for name, _, path in _heads(kind)}


@functools.cache
def aliases(kind: Kind) -> dict[str, Alias]:
    path = folder("aliases") / f"{kind}s.toml"
    return msgspec.convert(tomllib.loads(path.read_text("utf-8")), dict[str, Alias])


def find(name: str, kind: Kind) -> tuple[str, Alias]:
    """The name of the entry that is meant, and the alias that led there (a plain one if none did).

    Case, spaces and punctuation do not matter, nor what stands around a name (vendor, owner, format, date), and
    a part of a name is enough where only one has it.

    Raises:
        UnknownName: no such entry, or several; names the nearest, or the reason why there is none.
    """
    readings = list(labels.readings(name, kind))
    alias = _written(readings, kind) or _rearranged(readings[-1], kind) or _sized(name, kind)
    if alias:
        return _entry_of(alias, name, kind), alias
    found = next(filter(None, (_part_of(plain(reading), kind) for reading in readings)), set())
    if len(found) == 1:
        (only,) = found
        return only, Alias(only)
    if found:
        raise _ambiguous(name, sorted(found), kind)
    raise _unknown(name, entries(kind), kind)


def _written(readings: Iterable[str], kind: Kind) -> Alias | None:
    """The entry or alias of which the letters and digits are those of a reading, the first that has one."""
    known = _by_plain(kind)
    return next((known[plain(reading)] for reading in readings if plain(reading) in known), None)


def _rearranged(name: str, kind: Kind) -> Alias | None:
    """The one entry with the same words in another order."""
    meant = [known for known in entries(kind) if labels.key(known) == labels.key(name)]
    return Alias(meant[0]) if len(meant) == 1 and name else None


def _sized(name: str, kind: Kind) -> Alias | None:
    """The device whose name leaves out its memory, where that is as large as `name` says."""
    shorter, size = labels.without_size(name)
    alias = _written([labels.bare_machine(shorter)], kind) if kind == "machine" and size else None
    if alias is None or size is None or not alias.entry:
        return None
    given = re.search(
        r"^memory_total_bytes = ([\d_]+)", entries(kind)[alias.entry].read_text("utf-8"), re.MULTILINE
    )
    near = given and 0.93 < int(given[1]) / (size * 10**9) < 1.08
    return alias if near else None


@functools.cache
def _by_plain(kind: Kind) -> dict[str, Alias]:
    """Aliases, repositories and entries by their letters and digits; an entry's own name goes first."""
    found = {plain(label): alias for label, alias in aliases(kind).items()}
    found |= {plain(repository): Alias(name) for name, repository, _ in _heads(kind) if repository}
    return found | {plain(name): Alias(name) for name in entries(kind)}


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that look like `name`, the nearest first."""
    by_plain = {plain(known): known for known in names}
    return [by_plain[found] for found in difflib.get_close_matches(plain(name), by_plain, n=3, cutoff=0.5)]


def folder(kind: str) -> Path:
    """Where files of one kind of the package's data are."""
    return Path(str(resources.files("penjing"))) / "data" / kind


def _entry_of(alias: Alias, name: str, kind: Kind) -> str:
    if not alias.entry:
        raise UnknownName(
            f"the catalogue has no {kind} for `{name[:_LONGEST_SHOWN]}`: {alias.note}",
            hint=f"describe it in a file: `penjing {kind}s --help` says how",
        )
    return alias.entry


def _part_of(asked: str, kind: Kind) -> set[str]:
    """The entries of which `asked` is a part, by the strictest rule that finds any."""
    if len(asked) < _SHORTEST_PART:
        return set()
    names = entries(kind)
    others = [(label, alias.entry) for label, alias in aliases(kind).items() if alias.entry]
    rules: tuple[tuple[Iterable[tuple[str, str]], Callable[[str], bool]], ...] = (
        (zip(names, names, strict=True), lambda known: asked in _ends(known)),
        (others, lambda known: asked in _ends(known)),
        (zip(names, names, strict=True), lambda known: asked in _runs(known)),
        (zip(names, names, strict=True), lambda known: asked in plain(known)),
    )
    found = ({entry for known, entry in pairs if rule(known)} for pairs, rule in rules)
    return next(filter(None, found), set())


def _ends(name: str) -> set[str]:
    """What a name ends with, cut between words: `NVIDIA H100` ends with `h100`."""
    words = labels.words(name)
    return {"".join(words[i:]) for i in range(len(words))}


def _runs(name: str) -> set[str]:
    words = labels.words(name)
    return {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}


def _ambiguous(name: str, found: list[str], kind: Kind) -> UnknownName:
    more = ", ..." if len(found) > 5 else ""
    return UnknownName(
        f"`{name[:_LONGEST_SHOWN]}` could be {len(found)} {kind}s of the catalogue: {_listed(found[:5], ', ')}{more}",
        hint=f"name one of them, for example `{found[0]}`",
    )


def _unknown(name: str, names: Iterable[str], kind: Kind) -> UnknownName:
    close = nearest(name, names)
    near = f"did you mean {_listed(close, ' or ')}? " if close else ""
    return UnknownName(
        f"the catalogue has no {kind} `{name[:_LONGEST_SHOWN]}`",
        hint=f"{near}`penjing {kind}s` lists all {len(list(names))}",
    )


def _listed(names: Iterable[str], separator: str) -> str:
    return separator.join(f"`{name}`" for name in names)


@functools.cache
def _heads(kind: Kind) -> tuple[tuple[str, str, Path], ...]:
    """Name, repository (or nothing) and file of every entry, by name."""
    return tuple(sorted(_read_heads(sorted(folder(f"{kind}s").glob("*.toml")))))


def _read_heads(paths: Iterable[Path]) -> Iterator[tuple[str, str, Path]]:
    for path in paths:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "ignore")
        first = head.partition("\n[")[0]  # the tables below have names too
        given = dict(re.findall(r'^(name|repository) = "(.*)"$', first, re.MULTILINE))
        yield given["name"], given.get("repository", ""), path
