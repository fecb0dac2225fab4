"""The command line of a deployment, as a list of words, for each of its nodes.

A word `$NAME` stands for a variable of the place where the command runs: the API key, the first node's address.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from penjing.deployment import Deployment
from penjing.launch import known

Option = tuple[str, object]  # a flag and its value; True for a switch; False and None leave the flag out

_RPC_PORT = 13345
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
_MICRO_BATCH = 512
_OUTSIDE = 0.05  # of the memory: what activations take beside the share that SGLang is told


def program(deployment: Deployment) -> tuple[str, ...]:
    """The words that start the engine."""
    return known_for(deployment).program


def known_for(deployment: Deployment) -> known.Known:
    """The list of the version that the deployment is written for; raises KeyError if there is none."""
    return known.engines()[deployment.engine, deployment.engine_version]


def arguments(deployment: Deployment, node: int = 0) -> tuple[str, ...]:
    """The words after the program on one of the nodes."""
    if deployment.engine == "vllm":
        return (deployment.weights, *_words(_vllm(deployment, node)))
    if deployment.engine == "sglang":
        return tuple(_words(_sglang(deployment, node)))
    return tuple(_words(_llamacpp(deployment)))


def variables(deployment: Deployment) -> tuple[str, ...]:
    """Names of the variables that words of the command stand for."""
    key = deployment.api_key_env if not known_for(deployment).api_key_variable else ""
    address = deployment.master_address.removeprefix("$") if deployment.nodes > 1 else ""
    named = address if deployment.master_address.startswith("$") else ""
    return tuple(name for name in (key, named) if name)


def _words(options: Iterator[Option]) -> Iterator[str]:
    for flag, value in options:
        if value is None or value is False:
            continue
        yield flag
        if value is not True:
            yield (
                value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
            )


def _vllm(d: Deployment, node: int) -> Iterator[Option]:
    yield "--served-model-name", d.served_as
    yield "--dtype", _DTYPES.get(d.weight_format, "auto")
    yield "--quantization", _vllm_quantization(d)
    yield "--tensor-parallel-size", d.tensor_parallel
    yield "--pipeline-parallel-size", d.pipeline_parallel if d.pipeline_parallel > 1 else None
    yield "--data-parallel-size", d.data_parallel if d.data_parallel > 1 else None
    yield "--enable-expert-parallel", d.expert_parallel
    yield "--max-model-len", d.context_tokens
    yield "--max-num-seqs", -(-d.most_sequences // d.data_parallel)
    yield "--max-num-batched-tokens", d.most_batched_tokens
    yield "--gpu-memory-utilization", d.memory_share
    yield "--kv-cache-dtype", d.kv_cache_type if d.kv_cache_type != "auto" else None
    yield "--speculative-config", _vllm_speculation(d)
    yield from _vllm_nodes(d, node)
    if node == 0:
        yield "--host", d.host
        yield "--port", d.port


def _vllm_quantization(d: Deployment) -> str | None:
    """Other formats are read from the file, and naming them would only allow to contradict it."""
    if d.quantize_on_load:
        return d.weight_format
    return "ascend" if d.plugin and d.weight_format == "int8" else None


def _vllm_speculation(d: Deployment) -> str | None:
    if d.speculation is None:
        return None
    config: dict[str, object] = {"num_speculative_tokens": d.speculation.tokens}
    if d.speculation.method == "ngram":
        config |= {"method": "ngram", "prompt_lookup_max": 4}
    else:
        config |= {"method": "draft_model", "model": d.speculation.model}
    return json.dumps(config)


def _vllm_nodes(d: Deployment, node: int) -> Iterator[Option]:
    if d.nodes == 1:
        return
    if d.replica_spans_nodes:
        yield "--distributed-executor-backend", "mp"
        yield "--nnodes", d.nodes
        yield "--node-rank", node
        yield "--master-addr", d.master_address
        yield "--master-port", d.master_port
    else:
        here = d.data_parallel // d.nodes
        yield "--data-parallel-size-local", here
        yield "--data-parallel-start-rank", node * here if node else None
        yield "--data-parallel-address", d.master_address
        yield "--data-parallel-rpc-port", _RPC_PORT
    yield "--headless", node > 0


def _sglang(d: Deployment, node: int) -> Iterator[Option]:
    """With whole experts, replicas share them, and only attention is kept apart (`--attn-dp-size`)."""
    shared = d.expert_parallel and d.data_parallel > 1
    yield "--model-path", d.weights
    yield "--served-model-name", d.served_as
    yield "--dtype", _DTYPES.get(d.weight_format, "auto")
    yield "--quantization", _sglang_quantization(d)
    yield "--tp-size", d.tensor_parallel * (d.data_parallel if shared else 1)
    yield "--pp-size", d.pipeline_parallel if d.pipeline_parallel > 1 else None
    yield "--dp-size", d.data_parallel if d.data_parallel > 1 and not shared else None
    yield "--attn-dp-size", d.data_parallel if shared else None
    yield "--ep-size", d.tensor_parallel * d.data_parallel if d.expert_parallel else None
    yield "--context-length", d.context_tokens
    yield "--max-running-requests", d.most_sequences if shared else -(-d.most_sequences // d.data_parallel)
    yield "--chunked-prefill-size", d.most_batched_tokens
    yield "--mem-fraction-static", max(_OUTSIDE, round(d.memory_share - _OUTSIDE, 3))
    yield "--kv-cache-dtype", "fp8_e4m3" if d.kv_cache_type == "fp8" else None
    yield from _sglang_speculation(d)
    if d.vendor == "Huawei":
        yield "--device", "npu"
        yield "--attention-backend", "ascend"
    if d.nodes > 1:
        yield "--nnodes", d.nodes
        yield "--node-rank", node
        yield "--dist-init-addr", f"{d.master_address}:{d.master_port}"
    yield "--host", d.host
    yield "--port", d.port
    yield "--api-key", f"${d.api_key_env}" if d.api_key_env else None


def _sglang_quantization(d: Deployment) -> str | None:
    if d.quantize_on_load:
        return d.weight_format
    return "modelslim" if d.vendor == "Huawei" and d.weight_format == "int8" else None


def _sglang_speculation(d: Deployment) -> Iterator[Option]:
    if d.speculation is None:
        return
    if d.speculation.method == "ngram":
        yield "--speculative-algorithm", "NGRAM"
        yield "--speculative-num-draft-tokens", d.speculation.tokens
        return
    yield "--speculative-algorithm", "STANDALONE"
    yield "--speculative-draft-model-path", d.speculation.model
    yield "--speculative-num-steps", d.speculation.tokens
    yield "--speculative-eagle-topk", 1
    yield "--speculative-num-draft-tokens", d.speculation.tokens + 1


def _llamacpp(d: Deployment) -> Iterator[Option]:
    """The context is that of all sequences together here, and layers are dealt out to the devices."""
    is_file = d.weights.endswith(".gguf")
    yield "--model" if is_file else "--hf-repo", d.weights
    yield "--alias", d.served_as
    if d.vendor != "CPU":
        yield "--n-gpu-layers", "all"
        yield "--split-mode", "layer" if d.pipeline_parallel > 1 else "none"
    yield "--ctx-size", d.context_tokens * d.most_sequences
    yield "--parallel", d.most_sequences
    yield "--batch-size", d.most_batched_tokens
    yield "--ubatch-size", min(_MICRO_BATCH, d.most_batched_tokens)
    yield "--flash-attn", "on" if d.kv_cache_type == "q8_0" else "auto"
    if d.kv_cache_type == "q8_0":
        yield "--cache-type-k", "q8_0"
        yield "--cache-type-v", "q8_0"
    yield from _llamacpp_speculation(d)
    yield "--host", d.host
    yield "--port", d.port


def _llamacpp_speculation(d: Deployment) -> Iterator[Option]:
    if d.speculation is None:
        return
    if d.speculation.method == "ngram":
        yield "--spec-type", "ngram-simple"
    else:
        yield "--spec-type", "draft-simple"
        yield "--spec-draft-model", d.speculation.model
        yield "--spec-draft-n-max", d.speculation.tokens
