"""What a user says of a launch, and the refusals that need no arithmetic: engine, device and format."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from msgspec import Struct

from penjing.deployment import ServedCache
from penjing.errors import UnknownName, UsageError
from penjing.launch import known
from penjing.launch.formats import FORMATS
from penjing.machine import Machine

# Devices that their driver shows as two, each with half of the memory.
_PARTS = {"Ascend 910C": 2, "CloudMatrix384": 2, "Instinct MI250": 2}

_USUAL_NODE = 8  # devices in a server
_MOST_DEVICES = 4096
_LARGEST_NODE = 16  # machines of more devices are racks, made of usual nodes


class Asked(Struct, frozen=True):
    """What is given of a deployment; None is left to the rule.

    Units:
        count: of the machine named, each with all its devices. per_node: devices of one node.
        weights: repository, folder or file that holds the weights in `published` format, unless the user named
            it (`own_weights`), who then vouches that it holds `weight_format`.
    """

    weights: str = ""
    published: str = "bf16"
    own_weights: bool = False
    engine: str | None = None
    count: int = 1
    per_node: int | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    data_parallel: int | None = None
    expert_parallel: bool = False
    weight_format: str | None = None
    kv_cache_type: ServedCache = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_env: str = ""


class Fleet(Struct, frozen=True):
    """The devices there are: as the engine sees them, which may be two for each that is bought.

    Units: memory_bytes: of one device. parts: devices for each one named.
    """

    name: str
    vendor: str
    memory_bytes: int
    devices: int
    per_node: int
    parts: int = 1


def fleet(machine: Machine, asked: Asked) -> Fleet:
    """The devices that a machine and a count give; raises UsageError where nobody knows their memory."""
    memory = machine.tiers[0].capacity_bytes
    if memory is None:
        raise UsageError(
            f"nobody says how much memory `{machine.name}` has, so that nothing can be arranged on it",
            hint="describe it in a file: `penjing machines --help` says how",
        )
    if asked.count * machine.count > _MOST_DEVICES:
        raise UsageError(
            f"{asked.count} x `{machine.name}` are more devices than one launch is written for, {_MOST_DEVICES}",
            hint=f"--count {_MOST_DEVICES // machine.count}",
        )
    parts = _PARTS.get(machine.name, 1)
    own = machine.count if 1 < machine.count <= _LARGEST_NODE else _USUAL_NODE
    return Fleet(
        machine.name, vendor_of(machine), memory // parts, asked.count * machine.count * parts,
        (asked.per_node or own) * parts, parts,
    )  # fmt: skip


def vendor_of(machine: Machine) -> str:
    """Whose devices they are; CPU for a machine that computes with its processor."""
    if "CPU" in machine.kind or not (machine.accelerators or machine.vendor):
        return "CPU"
    return machine.vendor or machine.accelerators[0].vendor


def engine_for(fleet: Fleet, asked: Asked) -> tuple[str, str]:
    """The engine and its version.

    Raises:
        UnknownName: there is no such engine. UsageError: it does not run on these devices.
    """
    if asked.engine is not None and asked.engine not in known.engine_names():
        raise _unknown("engine", asked.engine, known.engine_names(), "--engine")
    able = [name for name in known.engine_names() if _runs(name, fleet)]
    preferred = "llama.cpp" if asked.published == "gguf" and not asked.weight_format else "vllm"
    engine = asked.engine or next((name for name in (preferred, *able) if name in able), "vllm")
    if engine not in able:
        also = f"--engine {able[0]}" if able else "`penjing machines` lists others"
        raise UsageError(f"{engine} does not run on `{fleet.name}` ({fleet.vendor})", hint=also)
    version = known.version_for(engine, fleet.vendor)
    assert version is not None  # it is able
    return engine, version


def format_for(fleet: Fleet, machine: Machine, asked: Asked, engine: str) -> tuple[str, bool]:
    """The format of weights, and whether they are rounded while they are loaded.

    Raises:
        UnknownName: there is no such format. UsageError: not with this engine, device or file.
    """
    name = asked.weight_format or asked.published
    if name not in FORMATS:
        raise _unknown("format", name, FORMATS, "--format")
    _refuse_engine(name, engine)
    able = [other for other in FORMATS if _computes(other, fleet, machine) and _reads(other, engine)]
    if engine != "llama.cpp" and name not in able:
        why = "none of its kernels" if fleet.vendor in ("NVIDIA", "AMD") else "no kernel for it there"
        lacking = " or ".join(FORMATS[name].needs)
        why = f"its datasheet has no {lacking} arithmetic" if lacking else f"{engine} has {why}"
        raise UsageError(f"`{fleet.name}` does not compute in {name}: {why}", hint=_instead(able, asked))
    if name == asked.published or asked.own_weights:
        return name, False
    if FORMATS[name].stored or asked.published not in ("bf16", "fp16") or engine == "llama.cpp":
        raise UsageError(
            f"`{asked.weights}` holds {asked.published} weights, and {engine} does not turn them into {name}",
            hint=f"name the repository that holds them: `--repository OWNER/NAME --format {name}`",
        )
    return name, name == "fp8"


def _runs(engine: str, fleet: Fleet) -> bool:
    version = known.version_for(engine, fleet.vendor)
    if version is None:
        return False
    return known.engines()[engine, version].vendors[fleet.vendor].image(fleet.name) is not None


def _computes(name: str, fleet: Fleet, machine: Machine) -> bool:
    """The device has arithmetic and kernels for a format; a datasheet without any arithmetic rules out nothing."""
    kind = FORMATS[name]
    there = {compute.format for compute in machine.compute}
    return (not kind.vendors or fleet.vendor in kind.vendors) and (
        not there or not kind.needs or any(need in there for need in kind.needs)
    )


def _reads(name: str, engine: str) -> bool:
    return (name == "gguf") == (engine == "llama.cpp")


def _refuse_engine(name: str, engine: str) -> None:
    if name == "gguf" and engine != "llama.cpp":
        raise UsageError(f"{engine} does not read GGUF files without a plugin", hint="--engine llama.cpp")
    if engine == "llama.cpp" and name != "gguf":
        raise UsageError(
            f"llama.cpp reads GGUF files, not {name} weights",
            hint="--format gguf --repository OWNER/NAME-GGUF:Q4_K_M; or the GGUF file as MODEL",
        )


def _instead(able: list[str], asked: Asked) -> str:
    free = next(
        (name for name in able if not FORMATS[name].stored and asked.published in ("bf16", "fp16")), None
    )
    if free:
        return f"--format {free}"
    return (
        f"`--format {able[0]} --repository OWNER/NAME`, one of {', '.join(able)}"
        if able
        else "--engine llama.cpp"
    )


def _unknown(what: str, name: str, names: Iterable[str], option: str) -> UnknownName:
    listed = list(names)
    near = difflib.get_close_matches(name.lower(), listed, n=1, cutoff=0.4)
    hint = f"did you mean `{option} {near[0]}`? " if near else ""
    return UnknownName(f"there is no {what} `{name[:60]}`", hint=f"{hint}one of {', '.join(listed)}")
