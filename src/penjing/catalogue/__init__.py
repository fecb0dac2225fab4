"""What ships with penjing: machines by their datasheets, models by their shapes.

An entry is one small TOML file under `data/`, with a source behind its numbers. A user's own file
has the same form; `machine("my.toml")` and `model("my.toml")` read it, checked field by field.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from penjing.catalogue.files import read_machine, read_shape
from penjing.catalogue.grow import Types, grow
from penjing.catalogue.shape import Shape
from penjing.errors import UnknownName
from penjing.machine import Machine
from penjing.model import Model


def machines() -> tuple[Machine, ...]:
    """Every machine that ships, by name."""
    return _shipped_machines()


def machine(name: str) -> Machine:
    """The machine called `name`, or described by the `.toml` or `.json` file of that path.

    Case, spaces and dashes do not matter, and a part of a name is enough where only one has it.

    Raises:
        UnknownName: no such entry, or several; names the nearest.
        BadFile: the file is none of a machine.
    """
    if name.lower().endswith((".toml", ".json")):
        return read_machine(Path(name))
    by_name = {entry.name: entry for entry in machines()}
    return by_name[_pick(name, by_name, "machine")]


def models() -> tuple[Model, ...]:
    """Every model that ships as a shape, by name, in the types `model` gives it."""
    return tuple(grow(shape) for shape in _shipped_shapes())


def model(name: str, type: str | None = None) -> Model:  # noqa: A002 (the word ggml and the nouns use)
    """The model called `name` (or by its repository, or by the `.toml` file of its shape), without weights.

    `type` is the type of all matrices; None means f16, or what its makers published (MXFP4 experts).

    Raises:
        UnknownName: no such entry, or several, or no such type; names the nearest.
        BadFile: the file is none of a shape.
    """
    types = Types.all(type) if type else None
    if name.lower().endswith(".toml"):
        return grow(read_shape(Path(name)), types)
    by_name = {shape.name: shape for shape in _shipped_shapes()}
    by_repository = {shape.repository.lower(): shape for shape in by_name.values()}
    shape = by_repository.get(name.lower()) or by_name[_pick(name, by_name, "model")]
    return grow(shape, types)


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that look like `name`, the nearest first."""
    plain = {_plain(known): known for known in names}
    return [plain[found] for found in difflib.get_close_matches(_plain(name), plain, n=3, cutoff=0.5)]


def model_names() -> tuple[str, ...]:
    """The names that `model` knows."""
    return tuple(shape.name for shape in _shipped_shapes())


def _pick(name: str, names: Iterable[str], what: str) -> str:
    plain = {_plain(known): known for known in names}
    name = name[:60]
    asked = _plain(name)
    if asked in plain:
        return plain[asked]
    matching = [known for key, known in plain.items() if asked and asked in key]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UnknownName(
            f"`{name}` could be {len(matching)} {what}s of the catalogue: {_listed(matching[:5], ', ')}",
            hint=f"name one of them, for example `{matching[0]}`",
        )
    close = nearest(name, plain.values())
    near = f"did you mean {_listed(close, ' or ')}? " if close else ""
    raise UnknownName(
        f"the catalogue has no {what} `{name}`", hint=f"{near}`penjing {what}s` lists all {len(plain)}"
    )


def _listed(names: Iterable[str], separator: str) -> str:
    return separator.join(f"`{name}`" for name in names)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


@functools.cache
def _shipped_machines() -> tuple[Machine, ...]:
    return tuple(sorted((read_machine(path) for path in _entries("machines")), key=lambda entry: entry.name))


@functools.cache
def _shipped_shapes() -> tuple[Shape, ...]:
    return tuple(sorted((read_shape(path) for path in _entries("models")), key=lambda entry: entry.name))


def _entries(kind: str) -> list[Path]:
    folder = Path(str(resources.files("penjing"))) / "data" / kind
    return sorted(folder.glob("*.toml"))
