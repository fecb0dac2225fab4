"""What the server has seen, for Prometheus and for the page: measured beside predicted."""

from __future__ import annotations

import collections
import time
from statistics import median
from typing import Any

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from penjing.plan import Plan

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_RECENT_SECONDS, _MOST_RECENT = 60.0, 1024


class Done(Struct, frozen=True):
    """A request that was answered.

    Units:
        at: `time.monotonic` of its end. first_seconds: from its arrival to the first piece, queue included.
    """

    at: float
    first_seconds: float
    queue_seconds: float
    answer_seconds: float
    prompt_tokens: int
    answer_tokens: int


class Metrics:
    """Counters since the start, and the last minute, of which at most so many answers are remembered."""

    def __init__(self, plan: Plan) -> None:
        self.registry = CollectorRegistry()
        self._recent: collections.deque[Done] = collections.deque(maxlen=_MOST_RECENT)
        self._requests = self._counter("requests", "Requests by path and status.", ("path", "status"))
        self._rejected = self._counter("rejected", "Requests refused before the engine saw them.", ("code",))
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of answered requests.")
        self._answer = self._counter("answer_tokens", "Tokens of answers.")
        self._first = self._histogram("first_token_seconds", "Arrival to first token.", _SECONDS)
        self._queued = self._histogram("queue_seconds", "Wait for a turn.", _SECONDS)
        self._token = self._histogram(
            "token_seconds", "Mean time of a token after the first.", _TOKEN_SECONDS
        )
        self._load = {
            name: Gauge(f"penjing_{name}", text, registry=self.registry)
            for name, text in (
                ("in_flight", "Answers being written."), ("waiting", "Requests in the queue."),
                ("slots", "Answers that can be written at once."), ("engine_up", "1 while the engine answers."),
                ("engine_restarts", "Times that the engine was started again."),
            )
        }  # fmt: skip
        self._predicted = Gauge(
            "penjing_predicted", "What the plan expects.", ("figure", "bound"), registry=self.registry
        )
        self.plan(plan)

    def plan(self, plan: Plan) -> None:
        """The plan whose figures are shown beside."""
        self._predicted.clear()
        estimates = plan.chosen.estimate
        for name in ("decode_tokens_per_s", "prefill_tokens_per_s", "first_token_seconds", "memory_bytes"):
            for bound in ("value", "low", "high"):
                if (figure := getattr(getattr(estimates, name), bound)) is not None:
                    self._predicted.labels(name, bound).set(figure)

    def request(self, path: str, status: int, code: str | None) -> None:
        self._requests.labels(path, str(status)).inc()
        if code is not None:
            self._rejected.labels(code).inc()

    def answered(self, done: Done) -> None:
        self._prompt.inc(done.prompt_tokens)
        self._queued.observe(done.queue_seconds)
        if not done.answer_tokens:
            return  # a vector has no first token
        self._recent.append(done)
        while done.at - self._recent[0].at > _RECENT_SECONDS:
            self._recent.popleft()
        self._answer.inc(done.answer_tokens)
        self._first.observe(done.first_seconds)
        if done.answer_tokens > 1:
            self._token.observe(done.answer_seconds / (done.answer_tokens - 1))

    def load(self, **values: float) -> None:
        for name, value in values.items():
            self._load[name].set(value)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def recent(self) -> dict[str, Any]:
        """The last minute: requests, tokens a second, and the times of a first token."""
        now = time.monotonic()
        seen = [d for d in self._recent if now - d.at < _RECENT_SECONDS]
        firsts = sorted(d.first_seconds for d in seen)
        rates = [
            (d.answer_tokens - 1) / d.answer_seconds for d in seen if d.answer_tokens > 1 and d.answer_seconds
        ]
        return {
            "seconds": _RECENT_SECONDS,
            "requests": len(seen),
            "answer_tokens": sum(d.answer_tokens for d in seen),
            "prompt_tokens": sum(d.prompt_tokens for d in seen),
            "decode_tokens_per_s": median(rates) if rates else None,
            "first_token_seconds": median(firsts) if firsts else None,
            "first_token_p95_seconds": firsts[int(0.95 * (len(firsts) - 1))] if firsts else None,
        }

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"penjing_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"penjing_{name}", text, buckets=buckets, registry=self.registry)
