"""A small world for tests of cost and search: a model, a machine and a question, without files or clocks."""

from __future__ import annotations

from penjing.engines.fake import FakeEngine
from penjing.figures import Figure
from penjing.machine import Cores, Machine, Tier
from penjing.model import Layer, Model, Tensor
from penjing.planner import question_for
from penjing.rates import Rates
from penjing.search.choose import Question
from penjing.workload import Workload

MIB = 2**20


def model(kind: str = "q4_K", layers: int = 4, width: int = 1024) -> Model:
    """A dense model of `layers` layers: one square matrix each of 1 MiB, and an F16 embedding of 2 MiB."""
    matrices = tuple(
        Tensor(f"blk.{n}.ffn_up.weight", "ffn_up", (width, width), kind, MIB, n) for n in range(layers)
    )
    embedding = Tensor(
        "token_embd.weight", "token_embedding", (width, 1024), "f16", 2 * MIB, active_share=1 / 1024
    )
    layer = Layer("full", heads=8, key_width=256, value_width=256)
    return Model("small", "llama", True, "test", width, 1024, 8192, (layer,) * layers, (embedding, *matrices))


def machine(cores: int = 2, memory_bytes: int = 2**30, disk: bool = True) -> Machine:
    tiers = (Tier("DRAM", memory_bytes, Figure(1e9, "measured")),)
    if disk:
        tiers += (
            Tier("disk", None, Figure(1e8, "measured"), random_read_bytes_per_s=Figure(5e7, "measured")),
        )
    return Machine("tray", Cores(cores, cores, cores), ("avx2",), memory_bytes, memory_bytes, None, tiers)


def question(workload: Workload | None = None, rates: Rates | None = None, **changes: object) -> Question:
    from msgspec.structs import replace

    asked = question_for(model(), machine(), workload or Workload(), FakeEngine())
    return replace(asked, rates=rates, **changes)
