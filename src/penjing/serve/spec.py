"""What a server is started with: one document from the command that planned it to the process that serves."""

from __future__ import annotations

from msgspec import Struct

from penjing.errors import UsageError
from penjing.model import Model
from penjing.plan import Plan
from penjing.serve.gate import Rules
from penjing.serve.requests import Limits

SPEC, SOCKET = "spec.json", "engine.sock"  # in the folder of a server


class Line(Struct, frozen=True):
    """A kernel of this machine in the roofline: operations for each byte of weights, operations per second."""

    name: str
    points: tuple[tuple[float, float], ...]


class Roof(Struct, frozen=True):
    """The machine as the page draws it; `tiers` are name, capacity and read rate."""

    name: str
    cores: str
    tiers: tuple[tuple[str, int | None, float | None], ...]
    lines: tuple[Line, ...] = ()


class Spec(Struct, frozen=True):
    """A server that may be started.

    Units:
        most_waiting: requests in the queue, at most. patience_seconds: how long one may wait there.
        stall_seconds: an engine that gives no sign of life for so long is started again.
        drain_seconds: how long answers under way may take to end when the server is stopped.
    """

    path: str
    model: Model
    plan: Plan
    roof: Roof
    host: str
    port: int
    start_seconds: float
    stall_seconds: float
    plan_file: str | None = None
    keys_file: str | None = None
    most_waiting: int = 64
    patience_seconds: float = 60.0
    drain_seconds: float = 30.0
    as_json: bool = False

    @property
    def limits(self) -> Limits:
        model = self.model
        return Limits(model.name, model.vocabulary, self.plan.chosen.settings.sequences, model.embeds)

    @property
    def context_tokens(self) -> int:
        """Cache positions for each request."""
        settings = self.plan.chosen.settings
        return settings.context_tokens // settings.sequences

    @property
    def usual_tokens(self) -> int:
        return self.plan.workload.needed_tokens

    @property
    def rules(self) -> Rules:
        usual = self.plan.chosen.estimate.total_seconds.value
        slots = self.plan.chosen.settings.sequences
        return Rules(slots, self.most_waiting, self.patience_seconds, usual or 10.0)


def stall_seconds(plan: Plan) -> float:
    """Ten times what the longest pass takes by the plan: 2048 tokens of prompts; half a minute at least."""
    rate = plan.chosen.estimate.prefill_tokens_per_s.low
    return max(30.0, 10 * 2048 / rate) if rate else 120.0


def check_plan(plan: Plan, file: str, model: Model, path: str) -> None:
    """Raises UsageError for a plan of another model, or one that the engine's server cannot follow."""
    if plan.model != model.name:
        raise UsageError(
            f"`{file}` is a plan for `{plan.model}`, not for `{model.name}`",
            hint=f"penjing plan {path} --json > plan.json",
        )
    if plan.chosen.settings.split:
        raise UsageError(
            f"the plan in `{file}` keeps two layouts of the weights, which the engine's server cannot",
            hint=f"penjing serve {path}",
        )
