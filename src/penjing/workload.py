"""What the user wants: how much goes in and out, how many at once, and within which limits."""

from __future__ import annotations

from msgspec import Struct, structs

from penjing.errors import UsageError


class Workload(Struct, frozen=True):
    """One kind of use, and the limits that a plan must keep.

    Units:
        prompt_tokens, answer_tokens: per request.
        users: requests at the same time.
        context_tokens: cache positions for each user; None means prompt + answer, as little as needed.
        memory_bytes: a hard limit for weights + cache + buffers; None means what the machine has free.
        max_kld: mean KL divergence to the file given, in nats per token, that may be spent.
    """

    prompt_tokens: int = 512
    answer_tokens: int = 128
    users: int = 1
    context_tokens: int | None = None
    memory_bytes: int | None = None
    max_kld: float | None = None
    min_decode_tokens_per_s: float | None = None
    max_first_token_seconds: float | None = None
    allow_disk: bool = False

    def __post_init__(self) -> None:
        for name in structs.asdict(self):
            value = getattr(self, name)
            least = 0 if name == "max_kld" else 1 if isinstance(value, int) else 1e-9
            if value is not None and not isinstance(value, bool) and not least <= value < 2**63:
                raise UsageError(
                    f"{name} is {value}, but it must be at least {least}",
                    hint="leave the option out to use its default",
                )
        if self.context_tokens is not None and self.context_tokens < self.needed_tokens:
            raise UsageError(
                f"a context of {self.context_tokens} tokens cannot hold {self.prompt_tokens} prompt + "
                f"{self.answer_tokens} answer tokens",
                hint=f"--context {self.needed_tokens}",
            )

    @property
    def needed_tokens(self) -> int:
        """Cache positions that one request fills."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def cache_tokens(self) -> int:
        """Cache positions that one user is given."""
        return self.context_tokens or self.needed_tokens
