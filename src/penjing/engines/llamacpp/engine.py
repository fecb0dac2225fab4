"""`LlamaCpp`: the engine behind the seam, seen from the parent process."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import msgspec

from penjing.cost.memory import Traits
from penjing.engines.base import Finished, Message, Sample, Sampling, Text
from penjing.engines.llamacpp import library, native
from penjing.engines.llamacpp import protocol as p
from penjing.engines.llamacpp.kernels import KernelTimer
from penjing.engines.llamacpp.serving import LlamaServing, Serve
from penjing.engines.process import Child
from penjing.errors import EngineError
from penjing.plan import Build, Memory, Settings
from penjing.units import MIB

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["prefill", "decode", "check"]
R = TypeVar("R", bound=p.Reply)
_DECODER = msgspec.json.Decoder(p.Reply)
_STEP_SECONDS = 600.0  # one micro-batch or one token of a model that is read from a slow disk


class LlamaCpp:
    """llama.cpp as packaged by xllamacpp, always in a child process.

    A chat template that runs longer than `template_seconds` does not end, and is stopped.
    """

    name = "llama.cpp"
    version = f"xllamacpp {library.PINNED}"

    def __init__(self, template_seconds: float = 10.0) -> None:
        self._template_seconds = template_seconds

    def check(self) -> None:
        library.check()

    def traits(self, isa: Collection[str]) -> Traits:
        """Read in ggml-cpu/repack.cpp of the pinned version; the sizes were measured (docs/log.md)."""
        arm = "dotprod" in isa or "i8mm" in isa
        return Traits(
            name=self.name,
            version=self.version,
            repacked_types=frozenset(library.REPACKED_ARM if arm else library.REPACKED_X86),
            base_bytes=55 * MIB,
            vocabulary_bytes=200,
            builds=("wheel", "native") if native.found() else ("wheel",),
        )

    def default(self, physical_cores: int, context_tokens: int, sequences: int = 1) -> Settings:
        """llama.cpp's own choice: a thread for each physical core, repacking, mapped, micro-batches of 512."""
        return Settings(
            threads=physical_cores,
            prefill_threads=physical_cores,
            context_tokens=context_tokens,
            sequences=sequences,
        )

    def open(
        self,
        model: Path,
        settings: Settings,
        *,
        start_seconds: float = 120,
        check_weights: bool = False,
        warm_up: bool = True,
    ) -> LlamaSession:
        self.check()
        load = p.Load(str(model.resolve()), settings, check_weights, warm_up)
        return LlamaSession(load, start_seconds, self._template_seconds)

    def kernels(self, build: Build = "wheel") -> KernelTimer:
        self.check()
        return KernelTimer(native.environment(build))

    def serve(
        self, model: Path, settings: Settings, *, host: str, port: int, alias: str, embeds: bool = False,
        start_seconds: float = 120,
    ) -> LlamaServing:  # fmt: skip
        return LlamaServing(
            model, Serve(str(model.resolve()), settings, host, port, alias, embeds), start_seconds
        )


class LlamaSession:
    """One model in one child process; see `engines.base.Session`."""

    def __init__(self, load: p.Load, start_seconds: float, template_seconds: float) -> None:
        self._template_seconds = template_seconds
        self._child = Child("penjing.engines.llamacpp.child", native.environment_of(load.settings))
        try:
            self._send(load)
            ready = self._expect(p.Ready, start_seconds, f"loading `{Path(load.path).name}`")
            self._become(load.settings, ready)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child; safe to call twice."""
        self._child.close(grace_seconds=2.0)

    @property
    def process_id(self) -> int:
        return self._child.process.pid

    def configure(self, settings: Settings) -> Memory:
        if settings != self.settings:
            self._send(p.Configure(settings))
            self._become(settings, self._expect(p.Ready, _STEP_SECONDS, "making a context"))
        return self.memory

    def tokenize(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        self._send(p.Tokenize(text, special, start))
        return self._expect(p.Tokens, _STEP_SECONDS, "tokenizing").tokens

    def render(self, messages: Sequence[Message]) -> str:
        self._send(p.Render(tuple(messages)))
        return self._expect(p.Rendered, self._template_seconds, "the chat template").text

    def generate(
        self, tokens: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> Iterator[Text | Finished]:
        self._send(p.Generate(list(tokens), max_tokens, sampling))
        while True:
            reply, _ = self._receive(_STEP_SECONDS * max(1, len(tokens) // 512), "the answer")
            if isinstance(reply, p.Piece):
                yield Text(reply.text)
            elif isinstance(reply, p.Answered):
                yield reply.finished
                return
            else:
                raise EngineError(f"the engine sent {type(reply).__name__} in an answer")

    def stop(self) -> None:
        self._send(p.Stop())

    def time(
        self,
        kind: Kind,
        tokens: int,
        depth: int,
        repeats: int,
        most_seconds: float = float("inf"),
        together: int = 1,
    ) -> list[Sample]:
        most = min(most_seconds, 0.8 * _STEP_SECONDS)
        self._send(p.Time(kind, tokens, depth, repeats, most, together))
        limit = _STEP_SECONDS * (1 + (tokens + depth) // 512) * repeats
        return self._expect(p.Timed, limit, f"timing {tokens} tokens of {kind}").samples

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        import numpy as np

        self._send(p.Logits(list(tokens)))
        while True:
            reply, payload = self._receive(_STEP_SECONDS, "computing logits")
            if not isinstance(reply, p.Rows) or reply.count == 0:
                return
            yield np.frombuffer(payload, dtype=np.float32).reshape(reply.count, self.vocabulary)

    def _become(self, settings: Settings, ready: p.Ready) -> None:
        self.settings, self.memory = settings, ready.memory
        self.context_tokens, self.vocabulary = ready.context_tokens, ready.vocabulary

    def _send(self, request: p.Request) -> None:
        self._child.send(msgspec.json.encode(request))

    def _receive(self, limit_seconds: float, doing: str) -> tuple[p.Reply, bytes]:
        document, payload = self._child.receive(limit_seconds, doing)
        reply = _DECODER.decode(document)
        if isinstance(reply, p.Failed):
            raise EngineError(reply.problem, hint=reply.hint)
        return reply, payload

    def _expect(self, kind: type[R], limit_seconds: float, doing: str) -> R:
        reply, _ = self._receive(limit_seconds, doing)
        if not isinstance(reply, kind):
            raise EngineError(f"the engine answered {doing} with {type(reply).__name__}")
        return reply
