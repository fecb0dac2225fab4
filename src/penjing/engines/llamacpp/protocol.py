"""What the parent and the engine's child process say to each other."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from penjing.engines.base import Finished, Message, Sample, Sampling
from penjing.plan import Memory, Settings


class Load(Struct, frozen=True, tag=True):
    """First of all: which model, and how.

    `check` reads every weight once and refuses NaN and infinity; `warm_up` computes two tokens.
    """

    path: str
    settings: Settings
    check: bool
    warm_up: bool


class Configure(Struct, frozen=True, tag=True):
    settings: Settings


class Tokenize(Struct, frozen=True, tag=True):
    text: str
    special: bool
    start: bool


class Render(Struct, frozen=True, tag=True):
    messages: tuple[Message, ...]


class Generate(Struct, frozen=True, tag=True):
    tokens: list[int]
    max_tokens: int
    sampling: Sampling


class Stop(Struct, frozen=True, tag=True):
    """The only request that may be sent while another one runs."""


class Time(Struct, frozen=True, tag=True):
    """See `Session.time`."""

    kind: Literal["prefill", "decode", "check"]
    tokens: int
    depth: int
    repeats: int
    most_seconds: float
    together: int = 1


class Logits(Struct, frozen=True, tag=True):
    tokens: list[int]


Request = Load | Configure | Tokenize | Render | Generate | Stop | Time | Logits


class Ready(Struct, frozen=True, tag=True):
    """After `Load` and `Configure`."""

    memory: Memory
    context_tokens: int
    vocabulary: int


class Tokens(Struct, frozen=True, tag=True):
    tokens: list[int]


class Rendered(Struct, frozen=True, tag=True):
    text: str


class Piece(Struct, frozen=True, tag=True):
    text: str


class Answered(Struct, frozen=True, tag=True):
    finished: Finished


class Timed(Struct, frozen=True, tag=True):
    samples: list[Sample]


class Rows(Struct, frozen=True, tag=True):
    """`count` rows of float32 logits follow as the frame's payload; 0 rows end the series."""

    count: int


class Failed(Struct, frozen=True, tag=True):
    problem: str
    hint: str


Reply = Ready | Tokens | Rendered | Piece | Answered | Timed | Rows | Failed
