"""How a model is laid over devices, by a plain rule: the fewest devices that hold it.

A replica has TP x PP devices. TP is a power of two that divides the query heads and the width of the feed-forward
network, and divides the KV heads or is a multiple of them (then each is kept more than once); it stays within a node.
PP is a power of two, too, or what makes use of all devices. Of all that hold the weights and the cache of one
sequence within 90 % of the memory, the fewest devices are taken, then the fewest stages. What is left over becomes
further replicas, on one node. Speed plays no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from penjing.deployment import Deployment, EngineName
from penjing.errors import DoesNotFit, UsageError
from penjing.launch import known
from penjing.launch.asked import Asked, Fleet, engine_for, fleet, format_for
from penjing.launch.formats import BLOCK, cache_bytes, weights_bytes
from penjing.launch.parts import (
    MEMORY_SHARE,
    Load,
    Parts,
    cuts_blocks,
    kv_heads,
    powers,
    smallest,
    splits,
)
from penjing.machine import Machine
from penjing.model import Model
from penjing.units import show_bytes
from penjing.workload import Workload

_RULE = "the fewest devices that hold it (a rule about memory; no speed was predicted)"
_MOST_DEVICES = 4096
_LARGE_BYTES = 70e9  # devices from here on take longer passes by the engines' own defaults
_CACHE_BYTES = {"auto": 2.0, "fp8": 1.0, "q8_0": 34 / 32}


def arranged(model: Model, machine: Machine, workload: Workload, asked: Asked) -> Deployment:
    """The deployment that the rule gives, with all that was asked for kept.

    Raises:
        UsageError: engine, format, degrees or context cannot be. DoesNotFit: the devices are too few or too small.
    """
    there = fleet(machine, asked)
    engine, version = engine_for(there, asked)
    weight_format, on_load = format_for(there, machine, asked, engine)
    _check_context(model, workload)
    load = _load(model, workload, asked, weight_format)
    parts = _in_turn(load, there, asked) if engine == "llama.cpp" else _parts(model, load, there, asked)
    blocks = weight_format == "fp8" and not on_load
    apart = asked.expert_parallel or (blocks and cuts_blocks(model, parts.tensor))
    found = known.engines()[engine, version]
    return Deployment(
        engine=_name(engine),
        engine_version=version,
        plugin=found.plugin,
        weights=asked.weights,
        served_as=model.name,
        weight_format=weight_format,
        quantize_on_load=on_load,
        device=there.name,
        vendor=there.vendor,
        devices=parts.replica * parts.data,
        nodes=_nodes(parts, there, engine),
        tensor_parallel=parts.tensor,
        pipeline_parallel=parts.pipeline,
        data_parallel=parts.data,
        expert_parallel=apart,
        kv_cache_type=asked.kv_cache_type,
        most_sequences=max(workload.users, parts.data),
        most_batched_tokens=max(8192 if there.memory_bytes >= _LARGE_BYTES else 2048, workload.users),
        context_tokens=workload.cache_tokens,
        memory_share=MEMORY_SHARE,
        host=asked.host,
        port=asked.port,
        api_key_env=asked.api_key_env,
        plan=_RULE,
        notes=tuple(_notes(load, parts, there, workload, asked, apart)),
    )


def fewest_devices(
    model: Model, memory_bytes: int, workload: Workload, weight_format: str, per_node: int = 8
) -> int:
    """How many devices of that memory the rule needs for one replica; 0 if no number is enough."""
    load = _load(model, workload, Asked(), weight_format)
    there = Fleet("device", "", memory_bytes, _MOST_DEVICES, per_node)
    parts = smallest(model, load, there, Asked())
    return parts.replica if parts else 0


def _name(engine: str) -> EngineName:
    names: dict[str, EngineName] = {"vllm": "vllm", "sglang": "sglang", "llama.cpp": "llama.cpp"}
    return names[engine]


def _check_context(model: Model, workload: Workload) -> None:
    if workload.cache_tokens > model.context_tokens:
        raise UsageError(
            f"`{model.name}` was made for {model.context_tokens} tokens, a context of {workload.cache_tokens} is more",
            hint=f"--context {model.context_tokens}",
        )


def _load(model: Model, workload: Workload, asked: Asked, weight_format: str) -> Load:
    dense, routed = weights_bytes(model, weight_format)
    cache = cache_bytes(model, workload.cache_tokens, _CACHE_BYTES[asked.kv_cache_type])
    widths = {t.layer: t.shape[0] for t in model.tensors if t.role == "attention_output"}
    caching = [kv_heads(layer, widths.get(i, 0)) for i, layer in enumerate(model.layers) if layer.key_width]
    layers = max(1, len(model.layers))
    heads = min(caching, default=1)
    return Load(
        f"{model.name} in {weight_format}", dense, routed, cache, layers, heads, asked.expert_parallel
    )


def _parts(model: Model, load: Load, there: Fleet, asked: Asked) -> Parts:
    """TP and PP, chosen or checked."""
    tensor = asked.tensor_parallel
    if tensor and (why := splits(model, tensor, asked.expert_parallel)):
        able = [t for t in powers(tensor) if not splits(model, t, asked.expert_parallel)]
        raise UsageError(
            f"`{model.name}` has {why}, which cannot be split over {tensor} devices", hint=f"--tp {able[-1]}"
        )
    found = smallest(model, load, there, asked)
    if found is None:
        raise _too_few(model, load, there, asked)
    return _replicas(found, there, asked)


def _replicas(parts: Parts, there: Fleet, asked: Asked) -> Parts:
    """The replicas asked for, or as many as one node has room for."""
    if asked.data_parallel:
        return replace(parts, data=asked.data_parallel)
    if there.devices > there.per_node:
        return parts
    return replace(parts, data=max(1, there.devices // parts.replica))


def _in_turn(load: Load, there: Fleet, asked: Asked) -> Parts:
    """llama.cpp: layers dealt out to the fewest devices of one computer, which take turns."""
    if asked.expert_parallel or any(n and n > 1 for n in (asked.tensor_parallel, asked.data_parallel)):
        raise UsageError(
            "llama.cpp deals out layers, and knows no other split here", hint="--pp N, without the others"
        )
    budget = MEMORY_SHARE * there.memory_bytes
    most = 1 if there.vendor in ("CPU", "Apple") else min(there.devices, there.per_node, load.layers)
    counts = [asked.pipeline_parallel] if asked.pipeline_parallel else range(1, most + 1)
    for count in counts:
        if count <= most and load.device_bytes(Parts(1, count)) <= budget:
            return Parts(1, count)
    enough = next((n for n in range(1, load.layers + 1) if load.device_bytes(Parts(1, n)) <= budget), 0)
    able = there.vendor not in ("CPU", "Apple") and most < enough <= there.per_node
    raise _shortage(
        load, most, there, f"--count {-(-enough // there.parts)}" if able else "a file of fewer bits"
    )


def _nodes(parts: Parts, there: Fleet, engine: str) -> int:
    """Nodes that all devices lie on; raises UsageError where an engine cannot be laid so."""
    total = parts.replica * parts.data
    if total <= there.per_node:
        return 1
    if parts.data == 1:
        return -(-parts.replica // there.per_node)
    nodes = -(-total // there.per_node)
    if parts.replica > there.per_node:
        raise UsageError(
            f"{parts.data} replicas that each span nodes ({parts.replica} devices, {there.per_node} in a node) are "
            "launched one by one", hint="--dp 1",
        )  # fmt: skip
    if parts.data % nodes or engine != "vllm":
        raise UsageError(
            f"{parts.data} replicas of {parts.replica} devices are not laid evenly over {nodes} nodes by {engine}",
            hint=f"--dp {there.per_node // parts.replica}, one launch for each node",
        )
    return nodes


def _too_few(model: Model, load: Load, there: Fleet, asked: Asked) -> DoesNotFit | UsageError:
    """Why nothing was found: too many parts were asked for, or too little memory is there."""
    tensor, pipeline = asked.tensor_parallel or 1, asked.pipeline_parallel or 1
    parts = tensor * pipeline * (asked.data_parallel or 1)
    if parts > there.devices:
        return UsageError(
            f"{parts} parts were asked for, and there are {there.devices} devices",
            hint=f"--count {-(-parts // there.parts)}",
        )
    more = smallest(model, load, replace(there, devices=_MOST_DEVICES), asked)
    bought = -(-more.replica * (asked.data_parallel or 1) // there.parts) if more else 0
    given = there.devices // there.parts
    hint = f"--count {bought}" if bought > given else "fewer bits: `--format fp8`, or a smaller `--context`"
    return _shortage(load, there.devices, there, hint)


def _shortage(load: Load, devices: int, there: Fleet, hint: str) -> DoesNotFit:
    budget = MEMORY_SHARE * there.memory_bytes * devices
    return DoesNotFit(
        f"`{load.name}` needs {show_bytes(load.dense + load.routed)} for weights and {show_bytes(load.cache)} for "
        f"one sequence, {devices} x `{there.name}` give {show_bytes(budget)} (90 % of their memory)",
        hint=hint,
    )


def _notes(
    load: Load, parts: Parts, there: Fleet, workload: Workload, asked: Asked, apart: bool
) -> Iterator[str]:
    """What should be known before it is started."""
    idle = there.devices - parts.replica * parts.data
    if idle:
        yield f"{idle} of {there.devices} devices stay idle"
    if apart and not asked.expert_parallel:
        yield f"experts stay whole: a slice over {parts.tensor} devices would cut their blocks of {BLOCK} weights"
    if asked.published == "bf16" and asked.weight_format is None:
        yield "16-bit weights were assumed in the repository"
    held = _held(load, parts, there)
    if held < workload.users:
        yield f"memory holds about {held} sequences of {workload.cache_tokens} tokens, the others wait"


def _held(load: Load, parts: Parts, there: Fleet) -> int:
    """Sequences of the whole context that the memory has room for, over all replicas."""
    one = load.device_bytes(parts)
    cache = one - replace(load, cache=0.0).device_bytes(parts)
    return parts.data * (1 + int((MEMORY_SHARE * there.memory_bytes - one) / max(1.0, cache)))
