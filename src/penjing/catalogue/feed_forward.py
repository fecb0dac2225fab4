"""What follows the attention in a layer: one network for all tokens, or experts for some; their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from penjing.catalogue.attention import Count, Weight, Width


class Experts(Struct, frozen=True, forbid_unknown_fields=True):
    """A mixture of experts in place of the dense feed-forward network.

    hidden: of one routed expert. shared_hidden: of all shared experts together, 0 for none.
    shared_gate: a learned gate on the shared expert. router_bias: one number per expert.
    router_scale: one number per input and one per expert. bias: on the experts' own projections.
    gate: every expert multiplies two projections of its input; without it, one is rectified.
    inner_width: the routed experts work on a projection of that width, None for the full width.
    every: every n-th layer has experts, the others the dense network.
    beside_dense: layers with experts have the dense network too.
    type: in which the makers publish the experts, if not in 16 bits.
    """

    count: Width
    used: Width
    hidden: Width
    shared_hidden: Count = 0
    shared_gate: bool = False
    router_bias: bool = False
    router_scale: bool = False
    bias: bool = False
    gate: bool = True
    inner_width: Width | None = None
    every: Width = 1
    beside_dense: bool = False
    type: Literal["mxfp4"] | None = None

    def weights(self, width: int) -> Iterator[Weight]:
        yield from self._router(width)
        yield from self._routed(self.inner_width or width)
        if self.inner_width:
            yield "ffn_latent_down.weight", "ffn_down", (width, self.inner_width)
            yield "ffn_latent_up.weight", "ffn_up", (self.inner_width, width)
        if self.bias:
            yield "ffn_gate_exps.bias", "bias", (self.hidden, self.count)
            yield "ffn_up_exps.bias", "bias", (self.hidden, self.count)
            yield "ffn_down_exps.bias", "bias", (width, self.count)
        if self.shared_hidden:
            yield from self._shared(width)

    def _router(self, width: int) -> Iterator[Weight]:
        yield "ffn_gate_inp.weight", "router", (width, self.count)
        if self.router_bias:
            yield "exp_probs_b.bias", "bias", (self.count,)
        if self.router_scale:
            yield "ffn_gate_inp.scale", "norm", (width,)
            yield "ffn_down_exps.scale", "norm", (self.count,)

    def _routed(self, width: int) -> Iterator[Weight]:
        if self.gate:
            yield "ffn_gate_exps.weight", "expert_gate", (width, self.hidden, self.count)
        yield "ffn_up_exps.weight", "expert_up", (width, self.hidden, self.count)
        yield "ffn_down_exps.weight", "expert_down", (self.hidden, width, self.count)

    def _shared(self, width: int) -> Iterator[Weight]:
        if self.gate:
            yield "ffn_gate_shexp.weight", "shared_gate", (width, self.shared_hidden)
        yield "ffn_up_shexp.weight", "shared_up", (width, self.shared_hidden)
        yield "ffn_down_shexp.weight", "shared_down", (self.shared_hidden, width)
        if self.shared_gate:
            yield "ffn_gate_inp_shexp.weight", "shared_router", (width,)


def dense(width: int, hidden: int, gate: bool, bias: bool) -> Iterator[Weight]:
    """One network for all tokens; without `gate` it has two matrices instead of three."""
    if gate:
        yield "ffn_gate.weight", "ffn_gate", (width, hidden)
    yield "ffn_up.weight", "ffn_up", (width, hidden)
    yield "ffn_down.weight", "ffn_down", (hidden, width)
    if bias:
        yield "ffn_up.bias", "bias", (hidden,)
        yield "ffn_down.bias", "bias", (width,)
