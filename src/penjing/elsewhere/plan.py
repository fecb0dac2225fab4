"""What is said of a model on hardware that is not here: nouns, and JSON documents."""

from __future__ import annotations

from msgspec import Struct, field

from penjing.figures import Estimate
from penjing.plan import Refusal
from penjing.workload import Workload


class Placement(Struct, frozen=True):
    """How a model is spread over devices.

    Units:
        devices: in use. tensor, pipeline, data: degrees; expert: experts are shared out over the tensor degree.
        split: devices that hold some layers each and take turns (llama.cpp).
        host_experts, host_rest: shares of routed experts, and of other weights, in the memory behind the devices.
        sequences: most at once that the memory holds at this length.
    """

    format: str
    cache_type: str
    devices: int
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: bool = False
    split: int = 1
    host_experts: float = 0.0
    host_rest: float = 0.0
    sequences: int = 1

    def __str__(self) -> str:
        """`BF16 on 8: tensor 4, data 2`."""
        degrees = {
            "tensor": self.tensor,
            "pipeline": self.pipeline,
            "data": self.data,
            "layers over": self.split,
        }
        told = [f"{name} {n}" for name, n in degrees.items() if n > 1]
        told += ["experts shared out"] if self.expert else []
        told += [f"{self.host_experts:.0%} of experts in host memory"] if self.host_experts else []
        told += [f"{self.host_rest:.0%} of the rest in host memory"] if self.host_rest else []
        where = f"{self.format} on {self.devices}" if self.devices > 1 else self.format
        return f"{where}: {', '.join(told)}" if told else where


class FarEstimates(Struct, frozen=True):
    """What a way is expected to give.

    Units:
        decode_tokens_per_s: of one user. throughput_tokens_per_s: answers of all users together, prompts included
        in the time. per_token_seconds: between two tokens of a user while the others are served.
        watts: of the devices in use, at their power limit. joules_per_million_tokens: of answers, at those watts.
        cost_per_million_tokens: in the user's money.
    """

    decode_tokens_per_s: Estimate
    prefill_tokens_per_s: Estimate
    first_token_seconds: Estimate
    per_token_seconds: Estimate
    total_seconds: Estimate
    throughput_tokens_per_s: Estimate
    memory_bytes: Estimate
    kld: Estimate
    watts: Estimate
    joules_per_million_tokens: Estimate
    cost_per_million_tokens: Estimate


class FarChosen(Struct, frozen=True):
    """One way to run the model there. `binds`: what takes most of the time of prompts, of answers and of serving."""

    engine: str
    engine_version: str
    settings: Placement
    tensor_types: dict[str, int]
    n_bytes: int = field(name="bytes")
    estimate: FarEstimates
    binds: dict[str, str]
    why: str


class FarPlan(Struct, frozen=True):
    """The answer of a search for described hardware, in the form of `plan.Plan`."""

    model: str
    machine: str
    workload: Workload
    chosen: FarChosen
    default: FarChosen | None
    frontier: tuple[FarChosen, ...]
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...] = ()


class Prices(Struct, frozen=True):
    """What the user pays: for an hour of one device, and for a kilowatt-hour."""

    per_hour: float | None = None
    per_kwh: float | None = None
