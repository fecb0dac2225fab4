"""How a model is run on devices, and what it is asked for: all that the cost model needs beside hardware and shapes."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Engine = Literal["serving", "compiled", "eager", "llama", "cpu", "cpu_tuned", "graph", "offload"]
"""Classes of engines.

serving: vLLM, SGLang, TensorRT-LLM and the like. compiled: one stream, fused or compiled kernels (gpt-fast, ExLlama,
MLC). eager: one kernel at a time from Python. llama: llama.cpp on a GPU. cpu, cpu_tuned: llama.cpp and its faster
relatives on processors. graph: OpenVINO and vendors' graph compilers. offload: weights streamed from the host.
"""

Kernel = Literal["f16", "f8", "i8", "i4", "fp4", "q8", "q4", "qk", "iq", "low"]
"""Classes of weight formats by how they are computed.

f16; f8 and i8 with a scale for each row or block; i4: groups of 4 bits for GPUs (AWQ, GPTQ); fp4: MXFP4 and NVFP4;
q8, q4: llama.cpp's plain blocks; qk: its K-quants; iq: its codebooks; low: 1 to 3 bits from tables.
"""

Phase = Literal["prefill", "decode", "mixed", "in_flight"]


class Weights(Struct, frozen=True):
    """The format of weights.

    Units:
        bits: of a weight in matrices of the layers; routed_bits: in routed experts; end_bits: in embedding and output.
        file_bytes: of all of them together, where known: it overrules the bits.
        activations: computed in the format itself too (W8A8), not only stored in it.
    """

    name: str
    kernel: Kernel
    bits: float
    routed_bits: float
    end_bits: float
    file_bytes: float | None = None
    activations: bool = False


class Way(Struct, frozen=True):
    """How a model is run.

    Units:
        tensor, pipeline, data: degrees of parallelism. expert: tensor ranks hold whole experts. shared: each data
            rank holds all of the rest and a part of the routed experts. split: devices that take turns (llama.cpp).
        host_routed, host_dense: shares of routed experts, and of other weights, that live in host memory.
        cache_bits: of a cached element. micro_batch: most tokens of a pass; None for as many as there are.
        most_sequences: that the engine runs at once. threads: of a processor; None for all.
        on_disk: what is not on the device streams from disk. flash: fused attention. year: of the engine's build.
        graphs: steps are recorded once and started as a whole (CUDA graphs and the like).
        batched: a step takes all sequences; else one after the other, each with all weights.
    """

    engine: Engine
    weights: Weights
    tensor: int = 1
    pipeline: int = 1
    expert: bool = False
    data: int = 1
    shared: bool = False
    split: int = 1
    host_routed: float = 0.0
    host_dense: float = 0.0
    cache_bits: float = 16.0
    micro_batch: int | None = None
    most_sequences: int | None = None
    threads: int | None = None
    on_disk: bool = False
    flash: bool = True
    year: float | None = None
    graphs: bool = True
    batched: bool = True

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline * self.data * self.split


class Job(Struct, frozen=True):
    """What is asked for.

    Units:
        sequences: at once; None where the engine chooses. requests: in all, where known.
        prompt_tokens: of each. depth_tokens: already in the cache. output_tokens: of each.
        loaded: measured while other requests were served. served: through a server, not in the engine's process.
        varied: answers are of many lengths, as in conversations; else all are as long.
    """

    phase: Phase
    sequences: float | None
    prompt_tokens: float = 0.0
    depth_tokens: float = 0.0
    output_tokens: float = 0.0
    requests: float | None = None
    loaded: bool = False
    served: bool = False
    varied: bool = False
