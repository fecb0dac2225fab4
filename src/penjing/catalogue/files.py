"""Entries of the catalogue and files of users: read, checked field by field, refused in words."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from penjing.catalogue.attention import Compressed, Grouped, Indexer, Latent
from penjing.catalogue.controls import Rules, Terms
from penjing.catalogue.feed_forward import Experts
from penjing.catalogue.plausible import fault
from penjing.catalogue.shape import Shape
from penjing.errors import BadFile
from penjing.machine import Machine

T = TypeVar("T", bound=msgspec.Struct)

_LIMIT_BYTES = 4 * 2**20  # a description, not a data set

# TOML has no null: what an entry leaves out is unknown
_UNKNOWN: dict[str, Any] = {
    "cores": {"physical": None, "logical": None, "usable": None},
    "isa": [],
    "memory_total_bytes": None,
    "memory_available_bytes": None,
    "memory_limit_bytes": None,
    "tiers": [],
}
_UNITS = {
    "_bytes_per_s": "bytes per second",
    "operations_per_s": "operations per second, dense, a multiply-add as 2",
    "_bytes": "bytes",
    "_tokens": "tokens",
    "_seconds": "seconds",
    "_width": "elements",
    "_watts": "watts",
    "_usd": "US dollars",
    "_mm2": "square millimetres",
}


def read_machine(path: Path) -> Machine:
    """The machine described in a `.toml` or `.json` file, with the field names of the noun `Machine`.

    What the file leaves out is unknown. Fields that no machine has are refused in TOML, which people
    write, and passed over in JSON, which `penjing probe --json` writes with more than the noun holds.

    Raises:
        BadFile: the file cannot be read, is no TOML or JSON, or a field is wrong: which, and how.
    """
    data = _load(path)
    machine = _convert(path, _with_unknown(data), Machine)
    if path.suffix.lower() == ".toml":
        _refuse_unknown(path, data, msgspec.to_builtins(machine))
    if wrong := fault(machine):
        raise _wrong(path, *wrong)
    if not machine.tiers:
        raise _wrong(path, "tiers", "expected at least one place that weights can be read from")
    return machine


def read_shape(path: Path) -> Shape:
    """The shape of a model in a `.toml` file, with the field names of `Shape`.

    Raises:
        BadFile: the file cannot be read, is no TOML, or a field is wrong: which, and what is expected.
    """
    return _convert(path, _load(path), Shape)


def read_rules(path: Path) -> Rules:
    """An export rule in a `.toml` file, with the field names of `Rules`.

    Raises:
        BadFile: the file cannot be read, is no TOML, or a field is wrong: which, and what is expected.
    """
    return _convert(path, _load(path), Rules)


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """The content of a file of at most `limit_bytes`; raises BadFile if it is larger or cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise BadFile(f"cannot read `{path}`: {error.strerror}") from error
    if len(content) > limit_bytes:
        raise BadFile(f"`{path}` has {path.stat().st_size} bytes, at most {limit_bytes} are believed")
    return content


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_bounded(path, _LIMIT_BYTES)
        as_json = path.suffix.lower() == ".json"
        data = msgspec.json.decode(content) if as_json else tomllib.loads(content.decode())
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadFile(f"`{path}` is not {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(data, dict):
        raise BadFile(f"`{path}` holds a {type(data).__name__}, expected an object with named fields")
    return data


def _with_unknown(data: dict[str, Any]) -> dict[str, Any]:
    """What was read, with None for what a file may leave out: TOML has no null.

    A rate that is a table with a source, and without a value, is one that nobody knows.
    """
    filled = {key: _whole(key, _figures_filled(value)) for key, value in (_UNKNOWN | data).items()}
    if isinstance(filled["cores"], dict):
        filled["cores"] = _UNKNOWN["cores"] | filled["cores"]
    return filled


def _figures_filled(value: Any) -> Any:
    if isinstance(value, list):
        return [_figures_filled(one) for one in value]
    if not isinstance(value, dict):
        return value
    filled = {key: _whole(key, _figures_filled(one)) for key, one in value.items()}
    if "source" in value:
        return {"value": None} | filled
    beside = {"read_bytes_per_s": "capacity_bytes", "vendor": "memory_bytes"}  # of tiers, of accelerators
    return {unknown: None for known, unknown in beside.items() if known in value} | filled


def _whole(key: str, value: Any) -> Any:
    """Bytes may be written as 24e9, which TOML takes for a number with a fraction."""
    return int(value) if key.endswith("_bytes") and isinstance(value, float) and value.is_integer() else value


def _convert(path: Path, data: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        problem = problem.removeprefix("Object ") + _near_field(problem, kind)
        field = re.search(r"field `(\w+)`", problem)
        where = place.strip("`.")
        raise _wrong(path, where, problem, field[1] if field else where) from error


def _near_field(problem: str, kind: type[msgspec.Struct]) -> str:
    """The field of `kind`, or of its tables, that was probably meant by one that there is not."""
    unknown = re.search(r"unknown field `(\w+)`", problem)
    parts = (Grouped, Latent, Compressed, Indexer, Experts) if kind is Shape else (Terms,)
    fields = {name for part in (kind, *parts) for name in part.__struct_fields__}
    near = difflib.get_close_matches(unknown[1], fields, n=1, cutoff=0.6) if unknown else []
    return f", did you mean `{near[0]}`?" if near else ""


def _wrong(path: Path, where: str, problem: str, field: str = "") -> BadFile:
    """The error that says where in a file what is wrong, and the unit of `field` where it has one."""
    name = (field or where).removesuffix(".value")
    unit = next((f" (in {unit})" for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    place = f" at `{where}`" if where else ""
    if unit and problem.startswith("Expected `object"):  # a number alone, without its source
        problem += ', write `{ value = 1e12, source = "datasheet" }`'
    return BadFile(f"`{path}`{place}: {problem}{unit}", hint=f"correct it in `{path}`")


def _refuse_unknown(path: Path, given: Any, known: Any, where: str = "") -> None:
    """Raise BadFile at the first field that `known`, what was understood, does not have."""
    if isinstance(given, list):
        for i, (one, understood) in enumerate(zip(given, known, strict=True)):
            _refuse_unknown(path, one, understood, f"{where}[{i}]")
    elif isinstance(given, dict):
        for name, value in given.items():
            place = f"{where}.{name}".lstrip(".")
            if name not in known:
                raise _wrong(path, place, f"there is no such field; known are {', '.join(known)}")
            _refuse_unknown(path, value, known[name], place)
