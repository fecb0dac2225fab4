"""How a model is served by an engine on big hardware: all that a launch file needs, and nothing that runs."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from penjing.errors import UsageError

EngineName = Literal["vllm", "sglang", "llama.cpp"]
ServedCache = Literal["auto", "fp8", "q8_0"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Speculation(Struct, frozen=True):
    """Drafted tokens, checked by the model in one pass.

    `tokens` at a time, looked up in the text so far (`ngram`) or written by a smaller `model` (`draft`).
    """

    method: Literal["ngram", "draft"]
    tokens: int
    model: str = ""


class Deployment(Struct, frozen=True):
    """One way to serve a model, complete enough to write its launch files.

    Units:
        engine_version: that the files are written for. plugin: what an engine needs besides, on devices of `vendor`.
        weights: the repository, folder or GGUF file that the engine is given; `served_as` is its name in the API.
        weight_format: in which they are computed; `quantize_on_load` if they are stored in 16 bits and are
            rounded while they are loaded.
        devices: in all, over `nodes` of equal size. Each device is a part of one replica, of which there are
            `data_parallel`; a replica has `tensor_parallel` x `pipeline_parallel` devices.
        expert_parallel: whole experts on each device instead of a slice of every one.
        most_sequences: at once, over all replicas. context_tokens: of one sequence, prompt and answer together.
        most_batched_tokens: in one pass. memory_share: of each device's memory that the engine may take.
        api_key_env: the variable that holds the API key; empty for none, which only a loopback host may have.
        master_address, master_port: of the first node, where others meet it; `$NAME` is a variable of theirs.
        plan: in words, what chose all this. notes: what should be known before it is started.
    """

    engine: EngineName
    engine_version: str
    weights: str
    served_as: str
    weight_format: str
    device: str
    vendor: str
    devices: int
    tensor_parallel: int
    most_sequences: int
    most_batched_tokens: int
    context_tokens: int
    plugin: str = ""
    quantize_on_load: bool = False
    nodes: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False
    kv_cache_type: ServedCache = "auto"
    memory_share: float = 0.9
    speculation: Speculation | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_env: str = ""
    master_address: str = "$MASTER_ADDR"
    master_port: int = 29500
    plan: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for wrong, why, hint in self._faults():
            if wrong:
                raise UsageError(why, hint=hint)

    def _faults(self) -> tuple[tuple[bool, str, str], ...]:
        parts = self.replica_devices * self.data_parallel
        return (
            (
                parts != self.devices,
                f"{self.tensor_parallel} x {self.pipeline_parallel} x {self.data_parallel} parts are {parts}, "
                f"but there are {self.devices} devices",
                f"--count {parts}",
            ),
            (
                self.devices % self.nodes > 0,
                f"{self.devices} devices are not the same number on each of {self.nodes} nodes",
                "--per-node N says how many devices a node has",
            ),
            (
                self.host not in LOOPBACK and not self.api_key_env,
                f"`{self.host}` is open to others, and there is no API key",
                "--host 127.0.0.1",
            ),
            (not 0 < self.memory_share <= 1, f"a memory share of {self.memory_share} is not in (0, 1]", ""),
        )

    @property
    def replica_devices(self) -> int:
        """Devices that hold the model once."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def devices_per_node(self) -> int:
        return self.devices // self.nodes

    @property
    def replica_spans_nodes(self) -> bool:
        """One copy of the model lies on several nodes, rather than each node having copies of its own."""
        return self.replica_devices > self.devices_per_node
