"""An engine without a model, for tests: it keeps the contract of `engines.base`, and its clock is a function.

Tokens are bytes, the answer repeats the prompt's last line, and every time it reports is what the function
given to it says, so that a test knows the right choice beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from penjing.cost.memory import Traits
from penjing.engines.base import Finished, Message, Sample, Sampling, Serving, Text
from penjing.errors import EngineError, Unavailable
from penjing.plan import Build, Memory, Settings
from penjing.rates import Kernel, KernelTiming

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["prefill", "decode", "check"]
Pace = Callable[[Kind, Settings, int, int], float]
_VOCABULARY = 256


def steady(kind: Kind, settings: Settings, tokens: int, depth: int) -> float:
    """Seconds of an ordinary engine: prefill ten times as quick as decode, attention grows with depth."""
    threads = settings.prefill_threads if kind == "prefill" else settings.threads
    each = (0.001 if kind == "prefill" else 0.01) / threads
    return tokens * each * (1 + (depth + tokens / 2) / 4096)


class FakeEngine:
    """See the module. `pace(kind, settings, tokens, depth)` returns seconds."""

    name = "fake"
    version = "1"

    def __init__(
        self,
        pace: Pace = steady,
        repacked_types: Collection[str] = ("q4_0", "q4_K"),
        weights_bytes: int = 10**6,
    ) -> None:
        self.pace, self.weights_bytes = pace, weights_bytes
        self._repacked_types = frozenset(repacked_types)
        self.opened: list[Settings] = []

    def check(self) -> None:
        pass

    def traits(self, isa: Collection[str]) -> Traits:
        return Traits(self.name, self.version, self._repacked_types, base_bytes=10**6, vocabulary_bytes=0)

    def default(self, physical_cores: int, context_tokens: int, sequences: int = 1) -> Settings:
        return Settings(physical_cores, physical_cores, context_tokens=context_tokens, sequences=sequences)

    def kernels(self, build: Build = "wheel") -> FakeKernels:
        return FakeKernels()

    def open(
        self,
        model: Path,
        settings: Settings,
        *,
        start_seconds: float = 120,
        check_weights: bool = False,
        warm_up: bool = True,
    ) -> FakeSession:
        if not model.exists():
            raise EngineError(f"the engine cannot load `{model.name}`", hint="name a file that is there")
        self.opened.append(settings)
        return FakeSession(self.pace, settings, self.weights_bytes)

    def serve(
        self,
        model: Path,
        settings: Settings,
        *,
        host: str,
        port: int,
        alias: str,
        start_seconds: float = 120,
    ) -> Serving:
        raise Unavailable("the fake engine has no server", hint="use `engines.llamacpp`")


class FakeSession:
    """See `engines.base.Session`."""

    vocabulary = _VOCABULARY

    def __init__(self, pace: Pace, settings: Settings, weights_bytes: int) -> None:
        self._pace, self._weights_bytes = pace, weights_bytes
        self._stopped = False
        self.configure(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def configure(self, settings: Settings) -> Memory:
        self.settings, self.context_tokens = settings, settings.context_tokens
        self.memory = Memory(self._weights_bytes, 0, 100 * settings.context_tokens, 10**5, 10**6)
        return self.memory

    def tokenize(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        return list(text.encode())

    def render(self, messages: Sequence[Message]) -> str:
        return "\n".join(f"{m.role}: {m.content}" for m in messages)

    def generate(
        self,
        tokens: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
    ) -> Iterator[Text | Finished]:
        self._stopped = False
        answer = bytes(tokens).decode("utf-8", "replace").splitlines()[-1][:max_tokens]
        drawn = 0
        for character in answer:
            yield Text(character)
            drawn += 1
            if self._stopped:
                break
        reason: Literal["end", "length", "stopped"] = "length" if drawn == max_tokens else "end"
        prefill = self._sample("prefill", len(tokens), 0)
        decode = self._sample("decode", max(1, drawn - 1), len(tokens))
        yield Finished("stopped" if self._stopped else reason, prefill, decode, prefill.seconds, 10**6)

    def stop(self) -> None:
        self._stopped = True

    def time(
        self,
        kind: Kind,
        tokens: int,
        depth: int,
        repeats: int,
        most_seconds: float = float("inf"),
        together: int = 1,
    ) -> list[Sample]:
        return [self._sample(kind, tokens, depth) for _ in range(repeats)]

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        import numpy as np

        for start in range(0, len(tokens), 32):
            rows = np.asarray(tokens[start : start + 32])
            yield np.cos(np.add.outer(rows, np.arange(_VOCABULARY))).astype(np.float32)

    def _sample(self, kind: Kind, tokens: int, depth: int) -> Sample:
        seconds = self._pace(kind, self.settings, tokens, depth)
        threads = self.settings.prefill_threads if kind == "prefill" else self.settings.threads
        return Sample(kind, tokens, depth, seconds, seconds * threads)


class FakeKernels:
    """Every product takes 1 ns for each weight read, and a tenth for each further token, shared by all threads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def time(self, kernels: Sequence[Kernel], rounds: int, cold_bytes: int) -> list[KernelTiming]:
        found = []
        for k in kernels:
            work = 1e-9 * k.rows * k.columns * max(1, k.experts_used) * (1 + 0.1 * (k.batch - 1))
            found.append(KernelTiming(k, (work / k.threads,) * rounds, (work,) * rounds))
        return found
