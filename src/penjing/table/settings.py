"""How a row was run, from the words of its cells: engine, format, parallelism, and what was asked for."""

from __future__ import annotations

import re

from penjing.cost.device import Device
from penjing.cost.shapes import Shapes
from penjing.cost.ways import Engine, Job, Phase, Way, Weights
from penjing.table.formats import size_in, weight_format
from penjing.table.rows import Row

# the first pattern that an engine's name has decides
_ENGINES: tuple[tuple[str, Engine], ...] = (
    (r"flexgen|flexllmgen|zero-inference|airllm", "offload"),
    (r"openvino|qnn|npe|executorch|litert", "graph"),
    (r"neuron|nxd|tt-|tt_|ttnn|tenstorrent|optimum.?habana|sambanova|maxtext|jetstream", "compiled"),
    (r"ik_llama|t-mac|bitnet\.cpp|ktransformers|kt-kernel|xft|ipex|amx", "cpu_tuned"),
    (r"llama\.?cpp|llamacpp|ollama|llamafile|lm.?studio|kobold|ggml|ds4", "llama"),
    (r"deepspeed.?inference", "compiled"),
    (r"vllm|sglang|tensorrt|trt|fastertransformer|lmdeploy|turbomind|mindie|tgi|internal|ppl|xllm|atom|nim\b",
     "serving"),
    (r"transformers|accelerate|deepspeed|megatron|petals|eager|hugging|\bhf\b|optimum|pytorch\)?$", "eager"),
    (r"\w", "compiled"),
)  # fmt: skip

_DEFAULT_ENGINE: dict[str, Engine] = {
    "datacenter": "serving", "consumer": "llama", "apple": "llama", "soc": "llama", "npu": "serving", "cpu": "cpu",
}  # fmt: skip

_HALF = Weights("16 bits", "f16", 16.0, 16.0, 16.0)
_PUBLISHED: tuple[tuple[str, Weights], ...] = (  # what the makers of some models publish them in
    (r"gpt-?oss", Weights("MXFP4 experts", "fp4", 16.0, 4.25, 16.0)),
    (r"kimi-k2-thinking|kimi-k2\.5", Weights("INT4 experts", "i4", 16.0, 4.25, 16.0)),
    (r"deepseek-?(v3|r1(?!-distill)|v3\.[12])|deepseek r1 (0528|671)",
     Weights("FP8", "f8", 8.0, 8.0, 16.0, None, True)),
)  # fmt: skip
_CACHE_BITS = {
    "fp16": 16,
    "bf16": 16,
    "f16": 16,
    "fp8": 8,
    "int8": 8,
    "q8_0": 8.5,
    "4-bit": 4.5,
    "q4_0": 4.5,
    "int4": 4.25,
}
_LOADED = re.compile(
    r"in-flight|inflight|max-load|\d+ requests|guidellm|under load|request rate|mlperf|offline|poisson|sharegpt|served",
    re.IGNORECASE,
)
_SERVED = re.compile(
    r"\d+ requests|guidellm|under load|request rate|sharegpt|poisson|served|mlperf.*server", re.IGNORECASE
)
_HOST = re.compile(
    r"experts? .*(cpu|host)|part of .* on cpu|experts partly|offload|cpu\+gpu|cuda\+cpu|hybrid", re.IGNORECASE
)


def engine_of(row: Row, device: Device) -> Engine:
    """The class of the row's engine; where the table names none, the usual one of the kind of device."""
    name = row.engine.lower()
    found = next((kind for pattern, kind in _ENGINES if re.search(pattern, name)), None)
    found = found or _DEFAULT_ENGINE[device.kind]
    on_cpu = device.kind == "cpu" or (re.search(r"\bcpu\b(?!\+)", name) is not None and "+" not in name)
    if found in ("llama", "cpu_tuned"):
        return ("cpu" if found == "llama" else "cpu_tuned") if on_cpu else "llama"
    if on_cpu and found in ("serving", "compiled"):
        return "cpu_tuned"
    return found


def weights_of(row: Row) -> Weights:
    """The format of the weights: the column's, else what the model's name says, else what its makers publish."""
    found = weight_format(row.weight_format) or weight_format(_tail(row.model))
    published = next((w for pattern, w in _PUBLISHED if re.search(pattern, row.model, re.IGNORECASE)), None)
    if found is None or (published and found.kernel == "f16" and not row.weight_format):
        found = published or _HALF
    if published and published.kernel == found.kernel == "fp4" and found.routed_bits == found.bits:
        found = published
    size = size_in(row.notes)
    if size is None or found.file_bytes:
        return found
    return Weights(
        found.name, found.kernel, found.bits, found.routed_bits, found.end_bits, size, found.activations
    )


def _tail(model: str) -> str:
    """What a model's name says after its family: formats are written there, with dashes for separators."""
    match = re.search(
        r"(awq|gptq|fp8|nvfp4|mxfp4|int4|int8|w4a16|w8a8|bf16|u?d?-?i?q\d.*|4bit|8bit).*$",
        model,
        re.IGNORECASE,
    )
    return match[0].replace("-", " ") if match else ""


def way_of(row: Row, device: Device, shapes: Shapes) -> Way:
    """How the row was run."""
    engine, words = engine_of(row, device), f"{row.parallelism}; {row.notes}"
    degrees = _degrees(row, engine, shapes, words)
    weights = _that_fit(weights_of(row), row, device, shapes)
    routed, dense = _host_shares(row, device, shapes, weights, degrees)
    return Way(
        engine, weights, **degrees, host_routed=routed, host_dense=dense,
        expert=_has_expert_parallelism(words),
        shared=degrees["data"] > 1 and shapes.moe_layers > 0 and _has_expert_parallelism(words),
        cache_bits=_cache_bits(row, weights),
        micro_batch=_micro_batch(row, engine, device, words),
        most_sequences=_most_sequences(row, engine, device, words),
        threads=_threads(words),
        on_disk="tier disk" in words,
        flash=_has_flash(row, engine, words),
        year=_year(row.date),
        batched="megatron" not in row.engine.lower(),
        graphs=not (device.kind == "npu" and "vllm" in row.engine.lower()) and "enforce-eager" not in words,
    )  # fmt: skip


def _that_fit(weights: Weights, row: Row, device: Device, shapes: Shapes) -> Weights:
    """Where the table gives no format and 16 bits exceed the memory, what was run had 8 or 4."""
    if row.weight_format or device.memory_bytes is None or weights.kernel != "f16" or device.kind == "cpu":
        return weights
    room = device.memory_bytes * (row.count or 1)
    if shapes.weights * 2 <= room or engine_of(row, device) in ("offload", "llama"):
        return weights
    if shapes.weights <= room:
        return Weights("8 bits, as 16 do not fit", "f8", 8.0, 8.0, 16.0, None, True)
    return Weights("4 bits, as 8 do not fit", "i4", 4.25, 4.25, 16.0)


def _cache_bits(row: Row, weights: Weights) -> float:
    """Of a cached element: what is written, else 16; TensorRT-LLM's published 8 and 4-bit models have caches of 8."""
    if row.cache_format:
        return _CACHE_BITS.get(row.cache_format.lower(), 16.0)
    return 8.0 if "tensorrt" in row.engine.lower() and weights.kernel in ("f8", "fp4") else 16.0


def _degrees(row: Row, engine: Engine, shapes: Shapes, words: str) -> dict[str, int]:
    """Degrees of parallelism: what is written, and what remains of the devices as the engine would use them."""
    count = row.count or 1
    tensor, pipeline, data = (_degree(words, *patterns) for patterns in _PARALLEL)
    alone = {"tensor": 1, "pipeline": 1, "data": 1, "split": 1}
    if count == 1 and not (tensor or pipeline):
        return alone
    if not tensor and _takes_turns(row, engine):
        return alone | {"split": count}
    if shapes.moe_layers and engine == "serving" and not pipeline and _shares_experts(words, tensor):
        return alone | {"data": count}
    tensor = min(count, tensor or max(1, count // ((pipeline or 1) * (data or 1))))
    if data and tensor * data <= count:
        return alone | {"tensor": tensor, "pipeline": pipeline or 1, "data": data}
    return alone | {"tensor": tensor, "pipeline": pipeline or max(1, count // tensor)}


_PARALLEL = (
    (
        r"\bTP[ =]?(\d+)",
        r"-tp[ =](\d+)",
        r"--tp-size[ =](\d+)",
        r"tensor-parallel-size[ =](\d+)",
        r"world size (\d+)",
    ),
    (r"\bPP[ =]?(\d+)", r"-pp[ =](\d+)", r"--pp-size[ =](\d+)", r"pipeline-parallel-size[ =](\d+)"),
    (r"\bDP[ =]?(\d+)", r"-dp[ =](\d+)", r"--dp-size[ =](\d+)", r"data-parallel-size[ =](\d+)"),
)


def _shares_experts(words: str, tensor: int | None) -> bool:
    """Each rank holds all of the attention and a part of the experts: expert parallelism with nothing besides, or where
    attention is said to be data-parallel."""
    return "attention data-parallelism" in words or (_has_expert_parallelism(words) and not tensor)


def _takes_turns(row: Row, engine: Engine) -> bool:
    """Devices hold some layers each and wait for one another: llama.cpp's default, and that of eager engines."""
    if re.search("layer split|layer pipeline", row.parallelism) or "exllama" in row.engine.lower():
        return True
    return engine in ("llama", "eager") and not re.search("megatron|deepspeed", row.engine.lower())


def _degree(words: str, *patterns: str) -> int | None:
    for pattern in patterns:
        if match := re.search(pattern, words):
            return int(match[1])
    return None


def _option(words: str, *names: str) -> int | None:
    return _degree(words, *(rf"{name}[ =](\d+)" for name in names))


def _has_expert_parallelism(words: str) -> bool:
    return (
        re.search(r"\bEP\d*\b|enable-expert-parallel|--ep-size|attention data-parallelism", words) is not None
    )


def _threads(words: str) -> int | None:
    return _degree(words, r"(\d+) threads?\b")


def _micro_batch(row: Row, engine: Engine, device: Device, words: str) -> int | None:
    """Tokens of a pass: what is written, else the engine's default: llama.cpp 512, servers 8192 (TensorRT-LLM's
    `max_num_tokens`, SGLang's chunks on large devices, vLLM offline) and vLLM's server on most devices 2048."""
    found = _degree(words, r"u_?batch[ =](\d+)", r"-ub[ =](\d+)") or _option(words, *_PASS_OPTIONS)
    if found or engine in ("llama", "cpu", "cpu_tuned"):
        return found or 512
    small = "vllm" in row.engine.lower() and _SERVED.search(row.notes) and not _is_large(device, row.date)
    return 2048 if small else 8192


_PASS_OPTIONS = ("max-num-batched-tokens", "max_num_batched_tokens", "chunked-prefill-size", "max_num_tokens")
_BATCH_OPTIONS = ("max-num-seqs", "max_num_seqs", "max-running-requests", "max_batch_size")


def _most_sequences(row: Row, engine: Engine, device: Device, words: str) -> int | None:
    """Sequences that the engine starts at once: what is written, else the default of the engine that is named (256 or
    1024 of vLLM, some 2048 of SGLang and TensorRT-LLM)."""
    found = _option(words, *_BATCH_OPTIONS)
    if found or engine != "serving":
        return found
    name = row.engine.lower()
    if "vllm" in name:
        return 1024 if _is_large(device, row.date) else 256
    return 2048 if re.search("sglang|tensorrt|trt", name) else None


def _is_large(device: Device, date: str) -> bool:
    """vLLM's larger defaults: from 70 GiB of memory on, except on A100 (`EngineArgs.get_batch_defaults`, since 0.9)."""
    large = (device.memory_bytes or 0) >= 70 * 2**30 and "A100" not in device.name
    return large and (date or "2025-05") >= "2025-05"


def _year(date: str) -> float | None:
    """2024.5 of `2024-07`; the middle of a year where the month is not told."""
    if not date:
        return None
    year, _, month = date.partition("-")
    return int(year) + ((int(month) - 1) / 12 if month else 0.5)


def _has_flash(row: Row, engine: Engine, words: str) -> bool:
    """Fused attention: of all engines by now; of llama.cpp where it says so, or since it is the default (2025-09)."""
    if "no flash" in words or re.search(r"\bfa (0|off)\b", words):
        return False
    return (
        engine not in ("llama", "cpu", "cpu_tuned")
        or "flash" in words
        or re.search(r"\bfa (1|on)\b", words) is not None
        or row.date >= "2025-09"
    )


def _host_shares(
    row: Row, device: Device, shapes: Shapes, weights: Weights, degrees: dict[str, int]
) -> tuple[float, float]:
    """Shares of routed experts and of other weights in host memory: what is written, else what does not fit."""
    words = f"{row.parallelism} {row.engine} {row.notes} {row.device}"
    if device.kind == "cpu":
        return 0.0, 0.0
    if match := re.search(r"experts of (?:the )?last (\d+) layers", words):
        return min(1.0, int(match[1]) / max(1.0, shapes.moe_layers)), 0.0
    if match := re.search(r"(\d+) ?% of (?:the )?experts on (?:the )?GPU", words):
        return 1.0 - int(match[1]) / 100, 0.0
    if re.search(r"routed experts on CPU|experts on (the )?CPUs?\b", words) and not re.search(
        "partly|part of", words
    ):
        return 1.0, 0.0
    if not (_HOST.search(words) or degrees["tensor"] == degrees["pipeline"] == 1):
        return 0.0, 0.0
    return _spilled(device, shapes, weights, row.count or 1)


_USABLE = 0.92  # of a device's memory, for weights beside cache and buffers


def _spilled(device: Device, shapes: Shapes, weights: Weights, count: int) -> tuple[float, float]:
    """What does not fit into the devices' memory: experts first, then the rest."""
    if device.memory_bytes is None:
        return 0.0, 0.0
    routed = shapes.routed * weights.routed_bits / 8
    dense = shapes.dense * weights.bits / 8 + (shapes.head + shapes.lookup) * weights.end_bits / 8
    scale = weights.file_bytes / (routed + dense) if weights.file_bytes else 1.0
    over = max(0.0, (routed + dense) * scale - _USABLE * device.memory_bytes * count)
    from_routed = min(over, routed * scale)
    from_dense = over - from_routed
    return from_routed / (routed * scale) if routed else 0.0, from_dense / (dense * scale)


_USUAL_PROMPT, _USUAL_DEPTH = 1024.0, 512.0  # tokens, where the table gives none
_USUAL_ANSWER = 200.0  # of requests whose first token alone was timed


def job_of(row: Row) -> Job:
    """What was asked for."""
    loaded = _LOADED.search(row.notes) is not None
    phase = _phase(row, loaded)
    prompt, depth, output = _lengths(row, phase, loaded)
    requests = re.search(r"(\d+) requests", row.notes)
    return Job(
        phase=phase,
        sequences=_sequences(row, phase),
        prompt_tokens=prompt,
        depth_tokens=depth,
        output_tokens=output,
        requests=float(requests[1]) if requests else None,
        loaded=loaded,
        served=_SERVED.search(row.notes) is not None,
        varied=_is_varied(row),
    )


def _is_varied(row: Row) -> bool:
    """Requests are of many lengths: conversations, or prompts whose mean is no whole number."""
    return "sharegpt" in row.notes.lower() or (row.prompt_tokens or 0.0) % 1 > 0


def _phase(row: Row, loaded: bool) -> Phase:
    if row.phase == "prefill":
        return "prefill"
    if row.phase == "decode":
        return "decode"
    return "in_flight" if loaded or row.batch is None else "mixed"


def _sequences(row: Row, phase: Phase) -> float | None:
    """At once; where the source counts them for each device, over all. One where nothing is said, or the engine's
    choice where it has one."""
    if not row.batch:
        return None if phase == "in_flight" else 1.0
    return row.batch * (row.count or 1) if "batch is PER GPU" in row.notes else row.batch


def _lengths(row: Row, phase: Phase, loaded: bool) -> tuple[float, float, float]:
    """Tokens of the prompt, in the cache before it, and of the answer."""
    prompt, output = row.prompt_tokens, row.output_tokens or 0.0
    if phase == "prefill":
        return prompt or _USUAL_PROMPT, 0.0 if loaded else output, _USUAL_ANSWER if loaded else 0.0
    if phase == "decode":
        depth = _USUAL_DEPTH if prompt is None else prompt
        return depth if loaded else 0.0, depth, output
    return prompt or 0.0, 0.0, output


def experts_used(row: Row) -> int | None:
    """How many experts a token uses, where a row changes the model's own number."""
    match = re.search(
        r"\(?\b(\d+)(?: of \d+)?(?: routed)? experts(?: per token| used)?\b", f"{row.model}; {row.notes}"
    )
    if (
        re.search(r"routed experts of|experts on", row.notes + row.parallelism)
        and "-ser" not in row.notes
        and "per token" not in row.model
    ):
        match = None
    only = re.search(r"only (\d+) of \d+ experts", row.notes)
    return int(only[1]) if only else int(match[1]) if match else None


def counts_input(row: Row) -> bool:
    """The value counts prompt tokens besides generated ones."""
    return re.search(r"counts=in\+out", row.notes) is not None
