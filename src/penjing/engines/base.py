"""The contract between penjing and an engine, in about a page.

An `Engine` is a recipe: cheap to make, starts nothing. `open` starts a child process that holds one
model; the `Session` it returns is the only way to talk to it. Whatever happens in the child (an
abort, a hang, a kill) reaches the caller as an `EngineError` with the engine's own words, and never
outlives the session: leaving the `with` block, by any way, ends the child.

Calls are made one at a time; only `stop` may be called from another thread or a signal handler while
`generate` runs. Timings are of the engine's work alone, without tokenizing, templates or start-up.

`engines.llamacpp` is the real engine; `engines.fake` keeps the same contract without any model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self

from msgspec import Struct

from penjing.cost.memory import Traits
from penjing.plan import Build, Memory, Settings
from penjing.rates import Kernel, KernelTiming

if TYPE_CHECKING:
    import numpy as np


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(Struct, frozen=True):
    """How the next token is drawn; temperature 0 takes the most probable. The defaults are llama.cpp's."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None


class Sample(Struct, frozen=True):
    """One timing of `tokens` tokens after `depth` others: wall and CPU seconds (of all threads).

    `check` is one pass that gives logits for all of its tokens, and a draw from each.
    """

    kind: Literal["prefill", "decode", "check"]
    tokens: int
    depth: int
    seconds: float
    cpu_seconds: float


class Text(Struct, frozen=True):
    """A piece of the answer, of one or more whole characters."""

    text: str


class Finished(Struct, frozen=True):
    """The end of an answer. `first_token_seconds` runs from the request to the first drawn token.

    Units:
        tokens: what was drawn, without an end token.
        guessed, right: tokens that were guessed ahead, and how many of them were drawn.
    """

    reason: Literal["end", "length", "stopped"]
    prefill: Sample
    decode: Sample
    first_token_seconds: float
    peak_memory_bytes: int
    tokens: tuple[int, ...] = ()
    guessed: int = 0
    right: int = 0


class Session(Protocol):
    """One model, loaded in a child process."""

    settings: Settings
    memory: Memory
    context_tokens: int
    vocabulary: int

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def configure(self, settings: Settings) -> Memory:
        """Change what can change without loading again (all but `repack` and `mapped`); empties the cache."""
        ...

    def tokenize(self, text: str, *, special: bool = False, start: bool = True) -> list[int]:
        """Token ids; `special` reads control tokens written in the text, `start` adds the start token."""
        ...

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's chat template makes of a conversation, ready to be answered."""
        ...

    def generate(
        self, tokens: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> Iterator[Text | Finished]:
        """Answer piece by piece; the last item is `Finished`, also after `stop`."""
        ...

    def stop(self) -> None:
        """End a running `generate` at the next token."""
        ...

    def time(
        self,
        kind: Literal["prefill", "decode", "check"],
        tokens: int,
        depth: int,
        repeats: int,
        most_seconds: float = ...,
        together: int = ...,
    ) -> list[Sample]:
        """Time `tokens` tokens after `depth` others, `repeats` times, on random text.

        Decode ends a sample early after `most_seconds`; the sample says how many tokens it has. Of more than one
        sequence decoded `together` every step gives a token to each; `tokens` counts the steps. To `check` more
        tokens than one, drafting of at least as many less one has to be among the settings.
        """
        ...

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits after every token, float32, in blocks of shape (≤ 64, vocabulary); empties the cache."""
        ...


class Serving(Protocol):
    """An OpenAI-compatible HTTP server in a child process, up and answering."""

    url: str

    @property
    def process_id(self) -> int: ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def ended(self) -> str | None:
        """How it ended, in words; None while it runs."""
        ...

    def kill(self) -> None:
        """End it at once, whatever it does."""
        ...


class KernelTimer(Protocol):
    """A child process that times products of matrices, without any model."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def time(self, kernels: Sequence[Kernel], rounds: int, cold_bytes: int) -> list[KernelTiming]:
        """Products of one matrix in one layout, `rounds` times in turn.

        `cold_bytes`: what small batches have to read before they meet the same weights again.
        """
        ...


class Engine(Protocol):
    """A way to run models."""

    name: str
    version: str

    def check(self) -> None:
        """Raises EngineUnusable, in words, if this machine cannot run the engine. Loads nothing."""
        ...

    def traits(self, isa: Collection[str]) -> Traits:
        """What costs depend on: facts of this version on a CPU with these instructions."""
        ...

    def default(self, physical_cores: int, context_tokens: int, sequences: int = 1) -> Settings:
        """What the engine does when nobody chooses."""
        ...

    def open(
        self,
        model: Path,
        settings: Settings,
        *,
        start_seconds: float = 120,
        check_weights: bool = False,
        warm_up: bool = True,
    ) -> Session:
        """Load `model` in a child process; raises EngineTimeout after `start_seconds`.

        `check_weights` reads every weight once and refuses a file with NaN or infinity in it;
        `warm_up` computes two tokens, so that the first answer does not pay for what is done once.
        """
        ...

    def kernels(self, build: Build = "wheel") -> KernelTimer:
        """Start timing the kernels of a build."""
        ...

    def serve(
        self, model: Path, settings: Settings, *, host: str, port: int, alias: str, embeds: bool = False,
        start_seconds: float = 120,
    ) -> Serving:  # fmt: skip
        """Start the engine's server; port 0 takes a free one, a host like `/path/x.sock` a socket of its own.

        `embeds`: it gives vectors of texts too, which the model has to know how to. Whether the engine can run at all
        is for `check` to say, before.
        """
        ...
