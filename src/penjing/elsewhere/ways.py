"""The ways in which a model could be run on some hardware: engine, format, and how it is spread over the devices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from penjing.cost.device import Device
from penjing.cost.shapes import Shapes
from penjing.cost.ways import Engine, Kernel, Way, Weights
from penjing.elsewhere.hardware import Hardware
from penjing.errors import UsageError
from penjing.formats import BY_NAME
from penjing.model import Model

_DEGREES = (1, 2, 4, 8, 16, 32, 64)
_MOST_TENSOR = {"nvlink": 8, "fabric": 8, "pcie": 8, "network": 1}  # devices of one node
_USABLE = 0.9  # of a device's memory
# the year of engines that somebody would install: they got faster, and the fit knows by how much
_BUILDS = 2026.0

# formats for servers on accelerators: name, class, bits, computed in the format, and what the device has to have
_SERVED: tuple[tuple[str, Kernel, float, bool, str], ...] = (
    ("BF16", "f16", 16, False, "fp16"),
    ("FP8", "f8", 8, True, "fp8"),
    ("INT8", "i8", 8, True, "int8"),
    ("INT4 (AWQ, GPTQ)", "i4", 4.25, False, "fp16"),
    ("NVFP4", "fp4", 4.5, True, "fp4"),
)
# llama.cpp's mixes: bits of matrices and of the output, averaged over layers (quantize.cpp of llama.cpp)
_FILES: tuple[tuple[str, Kernel, float, float], ...] = (
    ("F16", "f16", 16, 16), ("Q8_0", "q8", 8.5, 8.5), ("Q6_K", "qk", 6.56, 6.56), ("Q5_K_M", "qk", 5.65, 6.56),
    ("Q4_K_M", "qk", 4.78, 6.56), ("Q4_0", "q4", 4.5, 6.56), ("Q3_K_M", "qk", 3.85, 6.56), ("Q2_K", "qk", 2.96, 6.56),
)  # fmt: skip
FEW_BITS = 4.0  # below, answers suffer visibly: only where nothing else fits, or by name
_KERNELS: dict[str, Kernel] = {"q8_0": "q8", "q4_0": "q4", "q4_1": "q4", "q5_0": "q4", "q5_1": "q4", "iq4_nl": "q4",
                               "iq4_xs": "q4", "mxfp4": "fp4", "f16": "f16", "bf16": "f16", "f32": "f16"}  # fmt: skip


class Wish(Struct, frozen=True):
    """What is given beforehand.

    fixed: the weights are a file's, in the types that they have; otherwise any format may be made of them.
    format: its name, where the user wants that and no other. disk: weights may be read from disk again and again.
    all_devices: none may be left idle. few_bits: formats in which answers suffer visibly may be used too.
    """

    fixed: bool = False
    format: str = ""
    disk: bool = False
    all_devices: bool = False
    few_bits: bool = True


def ways(hardware: Hardware, shapes: Shapes, model: Model, wish: Wish) -> list[Way]:
    """Every way worth looking at, whether it fits or not.

    Raises:
        UsageError: the format is none of those that this hardware can use; names them.
    """
    pairs = [
        (engine, weights)
        for engine in engines(hardware.device, fixed=wish.fixed)
        for weights in formats(engine, hardware.device, model, fixed=wish.fixed)
    ]
    if not (wish.few_bits or wish.fixed or wish.format):
        pairs = [(engine, weights) for engine, weights in pairs if weights.bits >= FEW_BITS]
    if wish.format:
        pairs = _named(pairs, wish.format, hardware)
    found = []
    for engine, weights in pairs:
        spread = _split(engine, hardware) if engine != "serving" else _parallel(hardware, shapes)
        found += [
            replace(way, weights=weights)
            for way in spread
            if way.devices == hardware.count or not wish.all_devices
        ]
    return [kept for way in found for kept in (way, *_offloaded(way, hardware, shapes, disk=wish.disk))]


def _named(
    pairs: Sequence[tuple[Engine, Weights]], name: str, hardware: Hardware
) -> list[tuple[Engine, Weights]]:
    """Those whose format has that name, or one of the words of it."""
    found = [(engine, w) for engine, w in pairs if name.lower() in (w.name.lower(), *_words(w.name))]
    if not found:
        names = list(dict.fromkeys(w.name.split()[0] for _, w in pairs))
        hint = f"--format {names[0]}, or one of: {', '.join(names[1:])}"
        raise UsageError(f"`{name}` is no format for `{hardware.name}`", hint=hint)
    return found


def _words(name: str) -> list[str]:
    return re.findall(r"\w+", name.lower())


def engines(device: Device, *, fixed: bool) -> tuple[Engine, ...]:
    """Classes of engines that run on a device; files of llama.cpp are for itself."""
    if device.kind == "cpu":
        return ("cpu",)
    if device.kind in ("apple", "soc"):
        return ("llama",)
    if device.kind == "npu":
        return ("serving",)
    return ("llama",) if fixed else ("serving", "llama")


def formats(engine: Engine, device: Device, model: Model, *, fixed: bool) -> Iterator[Weights]:
    """What the weights may be stored in."""
    if fixed:
        yield stored(model)
        return
    if engine != "serving":
        for name, kernel, bits, ends in _FILES:
            yield Weights(name, kernel, bits, bits, ends)
        if published(model):
            yield Weights("MXFP4 experts", "fp4", 8.5, 4.25, 8.5)
        return
    if published(model):
        yield Weights(
            "MXFP4 experts, BF16", "fp4", 16, 4.25, 16, activations="fp4" in device.operations_per_s
        )
    for name, kernel, bits, activations, needs in _SERVED:
        if needs in device.operations_per_s or needs == "fp16":
            yield Weights(name, kernel, bits, bits, 16, activations=activations)


def published(model: Model) -> bool:
    """Its makers published the experts in 4-bit floats."""
    return any(t.type == "mxfp4" for t in model.tensors)


def stored(model: Model) -> Weights:
    """The types of a file, in the mean; its kernels are those of what most bytes are stored in."""
    by_type: dict[str, int] = {}
    for tensor in model.tensors:
        by_type[tensor.type] = by_type.get(tensor.type, 0) + tensor.n_bytes
    most = max(by_type, key=lambda name: by_type[name])
    bits = 8 * model.n_bytes / max(1, model.n_weights)
    kernel: Kernel = _KERNELS.get(most) or (
        "iq" if most.startswith("iq") else "qk" if "_K" in most else "low"
    )
    known = most in BY_NAME
    return Weights(most if known else "as stored", kernel, bits, bits, bits, file_bytes=float(model.n_bytes))


def _parallel(hardware: Hardware, shapes: Shapes) -> Iterator[Way]:
    """Degrees whose product is the number of devices, or less where fewer do."""
    n = hardware.count
    most = _MOST_TENSOR[hardware.device.link] if n > 1 else 1
    plain = Weights("", "f16", 16, 16, 16)
    for used in sorted({d for d in (*_DEGREES, n) if d <= n}):
        for tensor in (d for d in _DEGREES if d <= min(most, used) and used % d == 0):
            for pipeline in (d for d in (*_DEGREES, used // tensor) if used % (tensor * d) == 0):
                way = Way("serving", plain, tensor, pipeline, data=used // tensor // pipeline, year=_BUILDS)
                yield way
                if shapes.experts > 1 and tensor > 1:
                    yield replace(way, expert=True)


def _split(engine: Engine, hardware: Hardware) -> Iterator[Way]:
    """llama.cpp gives each device some layers, and they take turns."""
    plain = Weights("", "f16", 16, 16, 16)
    for used in sorted({d for d in (*_DEGREES, hardware.count) if d <= hardware.count}):
        if engine == "llama" or used == 1:
            yield Way(engine, plain, split=used, micro_batch=512, year=_BUILDS)


def _offloaded(way: Way, hardware: Hardware, shapes: Shapes, *, disk: bool) -> Iterator[Way]:
    """With experts, and then other weights, in host memory (or on disk): as few as it takes."""
    behind = way.engine == "llama" and hardware.host_bytes > 0
    if not behind and not (disk and way.engine in ("llama", "cpu")):
        return
    room = _USABLE * (hardware.device.memory_bytes or 0.0) * way.split
    routed = shapes.routed * way.weights.routed_bits / 8
    dense = shapes.dense * way.weights.bits / 8
    for spare in (0.8, 0.5):  # of the room, for weights; the rest is for cache and buffers
        over = routed + dense + shapes.head * way.weights.end_bits / 8 - spare * room
        if over <= 0:
            continue
        experts = min(1.0, over / routed) if routed else 0.0
        rest = max(0.0, over - experts * routed) / max(1.0, dense)
        if rest < 1:
            yield replace(way, host_routed=experts, host_dense=rest, on_disk=not behind)
