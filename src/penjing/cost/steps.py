"""Seconds of one pass of a model over a few tokens or many, on hardware known by its datasheet.

Every kernel moves bytes and computes; what takes longer sets the pace, and near balance both are felt:

    seconds = (memory^p + compute^p)^(1/p) + launches + exchanges

memory    bytes over the share of the datasheet's bandwidth that engines reach on a family of devices
compute   operations over the share of the datasheet's rate; each matrix is computed in tiles, so that n tokens cost
          as much as a few more
launches  a floor for each layer (kernels that start one after the other), and one for each pass (scheduler, sampling)
exchanges two all-reduces for each layer under tensor parallelism: latency, and 2(t - 1)/t of the activations

Layers split over devices take turns: their times add. What lives in host memory is computed there for few tokens, and
carried over the host link for many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penjing.cost.cases import ENGINES, LINKS, MEMORIES, Array, Cases
from penjing.cost.constants import Constants


@dataclass(frozen=True)
class Pass:
    """What goes through the model at once, on one replica: arrays of shape (plans,).

    tokens: over all sequences. sequences: whose caches are read. seen: positions that a token looks at, on average.
    outputs: tokens whose logits are computed. together: tokens that share one sequence's cache, as in prefill.
    """

    tokens: Array
    sequences: Array
    seen: Array
    outputs: Array
    together: Array


@dataclass(frozen=True)
class Seconds:
    """Of a pass, by what it is spent on: arrays of shape (plans,)."""

    memory: Array
    compute: Array
    products: Array
    attention: Array
    host: Array
    launches: Array
    exchanges: Array
    hidden: Array

    @property
    def total(self) -> Array:
        parts = self.products + self.attention + self.host + self.launches + self.exchanges
        return parts - self.hidden


def touched(c: Cases, tokens: Array) -> Array:
    """Share of the routed experts that a pass of so many tokens reads, under uniform routing."""
    return 1 - (1 - np.minimum(c.experts_used / c.experts, 1 - 1e-12)) ** np.maximum(tokens, 1e-9)


def pass_seconds(c: Cases, k: Constants, p: Pass) -> Seconds:
    """Seconds of one pass, and where they go."""
    memory, compute = _memory(c, k, p), _compute(c, k, p)
    products = _blend(k, memory, compute) + _activations(c, k, p)
    attention, host, launches = _attention(c, k, p), _host(c, k, p), _launches(c, k, p)
    hidden = _hidden(c, products + attention + host, launches)
    return Seconds(memory, compute, products, attention, host, launches, _exchanges(c, k, p), hidden)


def _hidden(c: Cases, busy: Array, launches: Array) -> Array:
    """Of eager engines, whose Python runs ahead of the device: of launching and computing, the longer one counts."""
    together = (busy**4 + launches**4) ** 0.25
    return np.where(c.started_class == _EAGER, busy + launches - together, 0.0)


_EAGER = ENGINES.index("eager")


def _blend(k: Constants, one: Array, other: Array) -> Array:
    p = 1 + k.blend
    return (one**p + other**p) ** (1 / p)


def _bandwidth(c: Cases, k: Constants) -> Array:
    """Bytes per second that reading weights reaches on one device: what its memory gives, or its threads can take."""
    there = c.bandwidth * _memory_share(c, k) * k.read_engine[c.engine_class]
    taken = c.threads * k.thread_bandwidth
    return np.where(np.isinf(taken), there, (there**-4.0 + np.minimum(taken, 1e18) ** -4.0) ** -0.25)


def _memory_share(c: Cases, k: Constants) -> Array:
    """Of the datasheet's bandwidth, by kind of memory. That which processor and GPU share counts beside GDDR."""
    beside = np.where(c.memory_class == _SHARED, k.read_memory[_GDDR], 1.0)
    return k.read_memory[c.memory_class] * beside


_SHARED, _GDDR = MEMORIES.index("shared"), MEMORIES.index("gddr")


def _memory(c: Cases, k: Constants, p: Pass) -> Array:
    tokens = np.maximum(p.tokens, 1.0)
    routed = c.routed_bytes * (1 - c.host_routed) * touched(c, tokens * c.expert_ranks) / c.expert_ranks
    dense = c.dense_bytes * (1 - c.host_dense) + c.head_bytes
    unpacked = k.read_kernel[c.kernel_class]
    return (dense + routed / k.routed_read) / (_bandwidth(c, k) * unpacked * c.tensor)


def _compute(c: Cases, k: Constants, p: Pass) -> Array:
    tile = k.tile[c.engine_class]
    tokens = p.tokens * c.expert_ranks  # of all ranks that share the experts
    read = touched(c, tokens)
    each = c.experts_used / c.experts * tokens / read  # tokens for each expert that has any
    mine = c.routed * (1 - c.host_routed) / c.expert_ranks
    routed = mine * read * _padded(each, tile) / k.routed_compute
    dense = c.dense * (1 - c.host_dense) * _padded(p.tokens, tile) + c.head * _padded(p.outputs, tile)
    kernel = k.compute_kernel[c.path_class, c.compute_class]
    share = np.minimum(_compute_share(c, k) * k.compute_engine[c.engine_class] * kernel, _MOST)
    return 2 * (dense + routed) / (c.rate * share * c.share_of_cores**k.thread_compute * c.tensor)


_MOST = 0.95  # of a rate, that any product reaches
_RAMP = 8.0  # tokens, up to which kernels for single vectors are used


def _padded(tokens: Array, tile: Array) -> Array:
    """Tokens that a product costs as much as: with a few, whole tiles are computed, or vectors one by one."""
    return tokens + tile * tokens / (tokens + _RAMP)


def _compute_share(c: Cases, k: Constants) -> Array:
    """Of the datasheet's rate, by maker; less where the power limit is low for the rate, and where kernels of
    llama.cpp meet the widest chips."""
    return (
        k.compute_maker[c.maker_class]
        * ((1 + c.strain**2) / 2) ** (-k.strain / 2)
        * np.where(c.wide_hbm > 0, k.wide, 1.0)
        * k.progress[c.engine_class] ** c.age
    )


def _activations(c: Cases, k: Constants, p: Pass) -> Array:
    """Reading and writing what goes from kernel to kernel: bytes for each token, layer and element of its width."""
    n_bytes = k.activation[c.engine_class] * p.tokens * c.layers * c.width / c.tensor
    return n_bytes / (c.bandwidth * _memory_share(c, k))


def _attention(c: Cases, k: Constants, p: Pass) -> Array:
    """Reading the cache, and multiplying with it."""
    near = np.minimum(p.seen, c.window)
    far = np.minimum(p.seen, c.seen)
    heads = np.minimum(c.tensor, np.maximum(c.kv_heads, 1.0))
    n_bytes = (
        p.sequences
        * (c.read_bytes * far + c.index_read_bytes * p.seen + c.window_read_bytes * near + 2 * c.state_bytes)
        / heads
    )
    reading = n_bytes / (c.bandwidth * _memory_share(c, k) * k.attention_read[c.engine_class])
    alone = p.together <= 1
    wide = np.where((alone | (c.absorbed > 0)) & (c.latent_attention > 0), c.latent_attention, c.attention)
    pairs = p.tokens * (wide * far + c.window_attention * near) / c.tensor
    share = np.where(c.flash > 0, k.attention_compute[c.engine_class], k.attention_plain) * _compute_share(
        c, k
    )
    return _blend(k, reading, 2 * pairs / (c.wide_rate * share * c.share_of_cores**k.thread_compute))


def _host(c: Cases, k: Constants, p: Pass) -> Array:
    """Weights in host memory: computed by its processor, or carried to the device, whichever is faster."""
    n_bytes = c.routed_bytes * c.host_routed * touched(c, p.tokens) + c.dense_bytes * c.host_dense
    weights = c.routed * c.host_routed * c.experts_used / c.experts + c.dense * c.host_dense
    reading = n_bytes / (c.host_bandwidth * k.host_read)
    computing = 2 * weights * p.tokens / (c.host_rate * k.host_compute)
    carried = n_bytes / (np.where(c.disk > 0, 2e9, c.host_link) * k.host_link)
    there = _blend(k, reading, computing)
    return np.where(c.disk > 0, carried, np.minimum(there, carried))


def _launches(c: Cases, k: Constants, p: Pass) -> Array:
    layers = c.layers + k.routed_launch * c.moe_layers
    # eager engines start each kernel as ever
    fused = np.where(c.started_class == _EAGER, 1.0, k.fusion**c.age)
    each = k.launch[c.started_class] * k.launch_maker[c.launch_class] / fused
    return (
        layers * each
        + k.step[c.engine_class] * (c.split + c.pipeline - 1)
        + k.sequence[c.engine_class] * p.outputs
    )


def _exchanges(c: Cases, k: Constants, p: Pass) -> Array:
    """All-reduces of tensor parallelism, two in each layer; and where ranks share the experts, tokens that go to them
    in 8 bits and come back in 16."""
    t, latency, link = np.minimum(c.tensor, _NODE), k.latency[c.link_class], c.link * k.link[c.link_class]
    n_bytes = 2 * p.tokens * c.width
    reduced = (
        latency * np.log2(np.maximum(t, 1)) + 2 * (t - 1) / t * n_bytes / link + _between_nodes(c, k, n_bytes)
    )
    n = c.expert_ranks
    sent = 2 * latency + p.tokens * c.experts_used * c.width * 3 * (n - 1) / n / link
    return np.where(t > 1, 2 * c.layers * reduced, 0.0) + np.where(n > 1, c.moe_layers * sent, 0.0)


def _between_nodes(c: Cases, k: Constants, n_bytes: Array) -> Array:
    """What an all-reduce over more devices than a node has takes besides: an exchange over its network adapters."""
    nodes = np.maximum(np.ceil(c.tensor / _NODE), 1.0)
    moved = 2 * (nodes - 1) / nodes * n_bytes / (_NODE * _ADAPTER * k.link[_NETWORK])
    return k.latency[_NETWORK] * np.log2(nodes) + moved


_NODE = 8.0  # devices with links of their own among them (HGX, DGX)
_ADAPTER = 25e9  # bytes per second of a device's network adapter, in one direction (200 Gb/s)
_NETWORK = LINKS.index("network")
