"""Layers that keep a state of fixed size instead of a cache, and their tensors."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from penjing.catalogue.attention import Weight, Width

_STATE_BYTES = 4  # engines keep states in F32


class Recurrent(Struct, frozen=True, forbid_unknown_fields=True):
    """A gated delta net in the layers that have no cache: heads, their widths, taps of its convolution."""

    key_heads: Width
    value_heads: Width
    key_width: Width
    value_width: Width
    taps: Width = 4

    @property
    def channels(self) -> int:
        """Elements of queries, keys and values together, which the convolution runs over."""
        return 2 * self.key_heads * self.key_width + self.value_heads * self.value_width

    @property
    def state_bytes(self) -> int:
        """Fixed memory of one sequence in one layer: the last inputs of the convolution, the state."""
        convolution = (self.taps - 1) * self.channels
        return _STATE_BYTES * (convolution + self.value_heads * self.key_width * self.value_width)

    def weights(self, width: int) -> Iterator[Weight]:
        value = self.value_heads * self.value_width
        yield "attn_qkv.weight", "attention_qkv", (width, self.channels)
        yield "attn_gate.weight", "attention_gate", (width, value)
        yield "ssm_beta.weight", "recurrent", (width, self.value_heads)
        yield "ssm_alpha.weight", "recurrent", (width, self.value_heads)
        yield "ssm_out.weight", "recurrent", (value, width)
        yield "ssm_conv1d.weight", "recurrent", (self.taps, self.channels)
        yield "ssm_a", "recurrent", (self.value_heads,)
        yield "ssm_dt.bias", "bias", (self.value_heads,)
        yield "ssm_norm.weight", "norm", (self.value_width,)


class Lightning(Struct, frozen=True, forbid_unknown_fields=True):
    """Linear attention with a decay per head and a gate on its output (MiniMax-01)."""

    heads: Width
    head_width: Width

    @property
    def state_bytes(self) -> int:
        return _STATE_BYTES * self.heads * self.head_width**2

    def weights(self, width: int) -> Iterator[Weight]:
        inner = self.heads * self.head_width
        yield "attn_qkv.weight", "attention_qkv", (width, 3 * inner)
        yield "attn_gate.weight", "attention_gate", (width, inner)
        yield "attn_output.weight", "attention_output", (inner, width)
        yield "attn_out_norm.weight", "norm", (inner,)


class KimiDelta(Struct, frozen=True, forbid_unknown_fields=True):
    """A delta net that forgets per channel (KDA). full_gate: its output gate is projected in one step."""

    heads: Width
    head_width: Width
    taps: Width = 4
    full_gate: bool = False

    @property
    def state_bytes(self) -> int:
        inner = self.heads * self.head_width
        return _STATE_BYTES * (3 * inner * (self.taps - 1) + inner * self.head_width)

    def weights(self, width: int) -> Iterator[Weight]:
        inner = self.heads * self.head_width
        yield "attn_q.weight", "attention_q", (width, inner)
        yield "attn_k.weight", "attention_k", (width, inner)
        yield "attn_v.weight", "attention_v", (width, inner)
        yield "ssm_conv1d.weight", "recurrent", (self.taps, 3 * inner)
        yield "ssm_f_a.weight", "recurrent", (width, self.head_width)
        yield "ssm_f_b.weight", "recurrent", (self.head_width, inner)
        yield "ssm_dt.bias", "bias", (inner,)
        yield "ssm_a", "recurrent", (self.heads,)
        yield "ssm_beta.weight", "recurrent", (width, self.heads)
        yield from self._gate(width, inner)
        yield "ssm_norm.weight", "norm", (self.head_width,)
        yield "attn_output.weight", "attention_output", (inner, width)

    def _gate(self, width: int, inner: int) -> Iterator[Weight]:
        if self.full_gate:
            yield "ssm_g.weight", "recurrent", (width, inner)
        else:
            yield "ssm_g_a.weight", "recurrent", (width, self.head_width)
            yield "ssm_g_b.weight", "recurrent", (self.head_width, inner)


class Mamba(Struct, frozen=True, forbid_unknown_fields=True):
    """Mamba-2: `state_width` elements of state for each of `heads` times `head_width` channels."""

    heads: Width
    head_width: Width
    groups: Width
    state_width: Width
    taps: Width = 4

    @property
    def inner(self) -> int:
        return self.heads * self.head_width

    @property
    def channels(self) -> int:
        """What the convolution runs over: the inner channels, and two vectors of state per group."""
        return self.inner + 2 * self.groups * self.state_width

    @property
    def state_bytes(self) -> int:
        return _STATE_BYTES * ((self.taps - 1) * self.channels + self.inner * self.state_width)

    def weights(self, width: int) -> Iterator[Weight]:
        yield "ssm_in.weight", "recurrent", (width, self.inner + self.channels + self.heads)
        yield "ssm_conv1d.weight", "recurrent", (self.taps, self.channels)
        yield "ssm_conv1d.bias", "bias", (self.channels,)
        yield "ssm_dt.bias", "bias", (self.heads,)
        yield "ssm_a", "recurrent", (self.heads,)
        yield "ssm_d", "recurrent", (self.heads,)
        yield "ssm_norm.weight", "norm", (self.inner,)
        yield "ssm_out.weight", "recurrent", (self.inner, width)


Mixer = Recurrent | Lightning | KimiDelta | Mamba
