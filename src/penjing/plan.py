"""How to run a model on a machine, what that is expected to give, and what was turned down."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from msgspec import Struct, field

from penjing.figures import Estimate
from penjing.workload import Workload

FlashAttention = Literal["auto", "on", "off"]
CacheType = Literal["f16", "q8_0"]
Build = Literal["wheel", "native"]


class Drafting(Struct, frozen=True, order=True):
    """How tokens are guessed ahead of the model, which then checks them all in one pass.

    `ngram` guesses what followed when the text last ended in the same `matched` tokens; `model` is a smaller model, the
    file `draft_model`; `mtp` are heads for it in the model's own file.

    Units:
        tokens: most that are guessed at once.
    """

    kind: Literal["none", "ngram", "model", "mtp"] = "none"
    tokens: int = 0
    matched: int = 0
    draft_model: str = ""

    def __str__(self) -> str:
        """`n-grams (3 matched, 8 guessed)`, or `draft model small.gguf (4 guessed)`."""
        if self.kind == "ngram":
            return f"n-grams ({self.matched} matched, {self.tokens} guessed)"
        if self.kind == "model":
            return f"draft model {Path(self.draft_model).name} ({self.tokens} guessed)"
        return f"drafting heads ({self.tokens} guessed)" if self.kind == "mtp" else "no drafting"


class Settings(Struct, frozen=True, order=True):
    """The engine's knobs.

    Units:
        threads, prefill_threads: compute threads for decode and for prefill.
        repack, prefill_repack: use weights copied into the layouts of llama.cpp's repacked kernels
            (`use_extra_bufts`) for decode and for prefill. If they differ, both layouts are kept.
        micro_batch: tokens in one pass of the prefill.
        context_tokens: cache positions in all, shared by `sequences` users.
        mapped: map the file, so that the kernel can drop and re-read weights, instead of reading it into
            private memory once. With `repack` the map is a second copy of what was repacked.
        build: the engine as it is installed, or as `penjing engine build` compiled it for this processor.
        drafting: how tokens are guessed ahead, in decode.
    """

    threads: int
    prefill_threads: int
    repack: bool = True
    prefill_repack: bool = True
    flash_attention: FlashAttention = "auto"
    cache_type: CacheType = "f16"
    micro_batch: int = 512
    context_tokens: int = 4096
    sequences: int = 1
    mapped: bool = True
    build: Build = "wheel"
    drafting: Drafting = Drafting()

    @property
    def split(self) -> bool:
        """The phases use different layouts of the weights, each with a cache of its own."""
        return self.repack != self.prefill_repack


class Memory(Struct, frozen=True):
    """Bytes by class, as the engine divides them.

    Units:
        weights_bytes: tensors as they lie in the file (mapped, so the kernel can drop and re-read them).
        repacked_bytes: weights copied to another layout; they replace mapped ones but cannot be dropped.
        cache_bytes: KV cache and recurrent state. compute_bytes: activations and logits.
        base_bytes: the engine itself: libraries, vocabulary, interpreter.
    """

    weights_bytes: int
    repacked_bytes: int
    cache_bytes: int
    compute_bytes: int
    base_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.pinned_bytes

    @property
    def pinned_bytes(self) -> int:
        """What has to stay in memory even when the weights are read from disk."""
        return self.repacked_bytes + self.cache_bytes + self.compute_bytes + self.base_bytes


class Estimates(Struct, frozen=True):
    """What a plan is expected to give. `kld` is against the file given, in nats per token."""

    decode_tokens_per_s: Estimate
    prefill_tokens_per_s: Estimate
    first_token_seconds: Estimate
    total_seconds: Estimate
    memory_bytes: Estimate
    kld: Estimate


class Refusal(Struct, frozen=True):
    """A candidate that was not chosen, and the reason in words."""

    what: str
    why: str


class Chosen(Struct, frozen=True):
    """One way to run the model, complete enough to run it.

    `types`: what each matrix is to be stored in, where the plan chooses that; empty for a file that is run as it is.
    """

    engine: str
    engine_version: str
    settings: Settings
    tensor_types: dict[str, int]
    n_bytes: int = field(name="bytes")
    memory: Memory
    estimate: Estimates
    is_default: bool
    from_disk: bool
    why: str
    types: dict[str, str] = {}


class Plan(Struct, frozen=True):
    """The answer of a search: the chosen way, the others worth knowing, and what was refused.

    `default` is what the engine would do if nobody chose, estimated in the same way.
    """

    model: str
    machine: str
    workload: Workload
    chosen: Chosen
    default: Chosen | None
    frontier: tuple[Chosen, ...]
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...] = ()
