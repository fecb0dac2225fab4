"""What ships with penjing: machines by their datasheets, models by their shapes.

An entry is one small TOML file under `data/`, with a source behind its numbers. A user's own file
has the same form; `machine("my.toml")` and `model("my.toml")` read it, checked field by field.
Labels that tables of measurements use for devices and models are names too (`data/aliases/`).
"""

from __future__ import annotations

import functools
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from penjing.catalogue import names
from penjing.catalogue.controls import Rules
from penjing.catalogue.files import read_machine, read_rules, read_shape
from penjing.catalogue.grow import Types, grow
from penjing.catalogue.names import nearest
from penjing.catalogue.shape import Shape
from penjing.errors import UnknownName
from penjing.machine import Machine
from penjing.model import Model

__all__ = [
    "Device", "device", "machine", "machine_names", "machines", "model", "model_names", "models", "nearest",
    "rules", "shape",
]  # fmt: skip


class Device(Struct, frozen=True):
    """What a table of measurements calls a device.

    units: how many of `machine` one of them is. host: the machine whose processor and memory stand
    behind an accelerator, of which there are `sockets`; None where the name tells none.
    note: what the name does not tell and was assumed.
    """

    machine: Machine
    units: float = 1.0
    host: Machine | None = None
    sockets: int = 1
    note: str = ""


def machines() -> tuple[Machine, ...]:
    """Every machine that ships, by name."""
    return tuple(_shipped_machine(name) for name in machine_names())


def machine(name: str) -> Machine:
    """The machine called `name`, or described by the `.toml` or `.json` file of that path.

    Case, spaces and punctuation do not matter, and a part of a name is enough where only one has it.

    Raises:
        UnknownName: no such entry, or several; names the nearest.
        BadFile: the file is none of a machine.
    """
    if _is_file(name, ".toml", ".json"):
        return read_machine(Path(name))
    return _shipped_machine(names.find(name, "machine")[0])


def device(name: str) -> Device:
    """The machine that `name` means, as `machine` gives it, with what else the name tells.

    Raises:
        UnknownName, BadFile: as `machine`.
    """
    if _is_file(name, ".toml", ".json"):
        return Device(read_machine(Path(name)))
    entry, alias = names.find(name, "machine")
    host = machine(alias.host) if alias.host else None
    return Device(_shipped_machine(entry), alias.units, host, alias.sockets, alias.note)


def models() -> tuple[Model, ...]:
    """Every model that ships as a shape, by name, in the types `model` gives it."""
    return tuple(grow(_shipped_shape(name)) for name in model_names())


def model(name: str, type: str | None = None) -> Model:  # noqa: A002 (the word ggml and the nouns use)
    """The model called `name` (or by its repository, or by the `.toml` file of its shape), without weights.

    `type` is the type of all matrices; None means f16, or what its makers published (MXFP4 experts).

    Raises:
        UnknownName: no such entry, or several, or no such type; names the nearest.
        BadFile: the file is none of a shape.
    """
    return grow(shape(name), Types.all(type) if type else None)


def shape(name: str) -> Shape:
    """The dimensions of the model called `name`, as `model` finds it."""
    if _is_file(name, ".toml"):
        return read_shape(Path(name))
    entry, alias = names.find(name, "model")
    found = _shipped_shape(entry)
    if alias.experts_used is None:
        return found
    if found.experts is None:
        raise UnknownName(f"`{entry}` has no experts, so `{name}` cannot use {alias.experts_used}")
    return replace(found, name=name, experts=replace(found.experts, used=alias.experts_used))


def rules(name: str = "3A090-2023") -> Rules:
    """The export rule that ships under `name`, or stands in the `.toml` file of that path.

    Raises:
        UnknownName: there is no such rule; names those that ship.
        BadFile: the file is none of a rule.
    """
    if _is_file(name, ".toml"):
        return read_rules(Path(name))
    shipped = {path.stem.lower(): path for path in names.folder("rules").glob("*.toml")}
    if name.lower() not in shipped:
        listed = " or ".join(f"`{known}`" for known in sorted(shipped))
        raise UnknownName(
            f"there is no rule `{name[:60]}`", hint=f"it is {listed}, or a file that ends in .toml"
        )
    return read_rules(shipped[name.lower()])


def machine_names() -> tuple[str, ...]:
    """The names that `machine` knows, without aliases."""
    return tuple(names.entries("machine"))


def model_names() -> tuple[str, ...]:
    """The names that `model` knows, without aliases."""
    return tuple(names.entries("model"))


def _is_file(name: str, *endings: str) -> bool:
    return name.lower().endswith(endings)


@functools.cache
def _shipped_machine(name: str) -> Machine:
    return read_machine(names.entries("machine")[name])


@functools.cache
def _shipped_shape(name: str) -> Shape:
    return read_shape(names.entries("model")[name])
