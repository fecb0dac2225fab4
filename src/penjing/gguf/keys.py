"""The numbers of an architecture, each checked before anything is computed from it."""

from __future__ import annotations

import shlex

from penjing.errors import BadFile
from penjing.gguf.cursor import printable
from penjing.gguf.header import Header

# Beyond these the engine aborts (LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS), or sizes overflow its 32-bit
# sums: a context of 2³² − 1 loads and then aborts at the first request. The longest context of a real
# model is some 10 million tokens, so 2³⁰ turns nobody away.
_LIMITS = {
    "block_count": (1, 512),
    "context_length": (1, 2**30),
    "embedding_length": (1, 2**20),
    "attention.head_count": (0, 2**16),
    "attention.head_count_kv": (0, 2**16),
    "attention.key_length": (1, 2**16),
    "attention.value_length": (1, 2**16),
    "expert_count": (0, 1024),
    "expert_used_count": (0, 1024),
    "expert_gating_func": (0, 4),
    "full_attention_interval": (1, 512),
    "interleave_moe_layer_step": (0, 512),
}
_ANY = (0, 2**30)


class Keys:
    """Metadata under the prefix of an architecture: `Keys(header, "llama", …).number("block_count")`."""

    def __init__(self, header: Header, architecture: str) -> None:
        self.architecture = architecture
        self.file = header.files[0]
        self._metadata = header.metadata
        self.n_layers = self.number("block_count")

    def __contains__(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._metadata

    def bad(self, problem: str) -> BadFile:
        return BadFile(
            f"`{self.file}` {problem}",
            hint=f"pip install gguf && gguf-dump --no-tensors {shlex.quote(self.file)}",
        )

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number, within the limits of its key.

        Raises:
            BadFile: missing without a `default`, of another type, or out of its limits.
        """
        full = f"{self.architecture}.{key}"
        value = self._metadata.get(full, default)
        if value is None:
            raise self.bad(f"lacks the key `{full}`, which every model has")
        return self._checked(key, value)

    def per_layer(self, key: str, default: int | tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A number for each layer, whether the file gives one for all or one each."""
        values = self._metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(values, tuple):
            return (self.number(key, default if isinstance(default, int) else None),) * self.n_layers
        if len(values) != self.n_layers:
            raise self.bad(
                f"has {len(values)} values of `{self.architecture}.{key}` for {self.n_layers} layers"
            )
        return tuple(self._checked(key, value) for value in values)

    def flags(self, key: str) -> tuple[bool, ...] | None:
        """A yes or no for each layer, if the file lists them; layers past the list are no."""
        values = self._metadata.get(f"{self.architecture}.{key}")
        if not isinstance(values, tuple):
            return None
        listed = [bool(value) for value in values[: self.n_layers]]
        return tuple(listed + [False] * (self.n_layers - len(listed)))

    def _checked(self, key: str, value: object) -> int:
        full = f"{self.architecture}.{key}"
        if type(value) is not int:
            raise self.bad(f"has `{full}` = {printable(repr(value))}, which is no whole number")
        least, most = _LIMITS.get(key, _ANY)
        if not least <= value <= most:
            raise self.bad(f"has `{full}` = {value}, it must be from {least} to {most}")
        return value
