"""Prefill, decode, fixed batches and served throughput of plans on any hardware, in seconds and tokens per second."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import numpy as np

from penjing.cost.cases import ENGINES, Array, Cases
from penjing.cost.constants import Constants
from penjing.cost.steps import Pass, Seconds, pass_seconds
from penjing.cost.ways import Phase

_USABLE = 0.90  # of the memory, for weights and cache: the default of vLLM, SGLang and TensorRT-LLM
_COPIES = 4  # of the activations, so that stages can work at the same time (llama.cpp's pipeline)
_SEQUENCES = 256.0  # at once, where nobody says: the default of vLLM for servers
_OFFLINE_SEQUENCES = 2048.0  # and of TensorRT-LLM where all requests are there from the start


def prefill_seconds(c: Cases, k: Constants, sequences: Array, prompt: Array, depth: Array) -> Array:
    """Seconds to process prompts of `prompt` tokens, with `depth` tokens in the cache before them."""
    one, passes = prefill_pass(c, k, sequences, prompt, depth)
    return _stages(c, k, one, passes)


def prefill_pass(
    c: Cases, k: Constants, sequences: Array, prompt: Array, depth: Array
) -> tuple[Seconds, Array]:
    """One of the passes that prompts are cut into, in the middle of them, and how many there are."""
    mine = np.maximum(sequences / c.data, 1.0)
    tokens = np.maximum(sequences * prompt / c.data, 1.0)
    each = np.minimum(tokens, c.micro_batch)
    together = np.minimum(prompt, each)
    inside = np.clip(each / np.maximum(prompt, 1.0), 1.0, mine)
    one = pass_seconds(c, k, Pass(each, inside, depth + prompt / 2, np.minimum(mine, each), together))
    return one, np.maximum(tokens / each, 1.0)


def _stages(c: Cases, k: Constants, one: Seconds, passes: Array) -> Array:
    """Passes that follow one another through devices which hold a part of the layers each: stages overlap."""
    stages = c.split * c.pipeline
    overlapped = np.minimum(stages, _COPIES)
    return one.total * np.maximum(
        (passes + overlapped - 1) / (overlapped * k.overlap ** (overlapped > 1)), 1.0
    )


def decode_seconds(c: Cases, k: Constants, sequences: Array, seen: Array) -> Array:
    """Seconds of a step that makes one token for each sequence, `seen` positions deep."""
    return decode_step(c, k, sequences, seen).total


def decode_step(c: Cases, k: Constants, sequences: Array, seen: Array) -> Seconds:
    """Such a step by what it is spent on. Stages of a pipeline work on parts of the batch at the same time: all get
    their token while one part goes through."""
    mine = np.maximum(sequences / c.data / c.pipeline, 1.0)
    each = np.where(c.batched > 0, mine, 1.0)
    one = pass_seconds(c, k, Pass(each, each, seen, each, np.ones_like(mine)))
    return Seconds(**{f.name: getattr(one, f.name) * mine / each for f in fields(Seconds)})


def main_pass(c: Cases, k: Constants, phase: str) -> Seconds:
    """The pass that takes most of a phase: of prompts in prefill, and where they take longer than the answers."""
    b = np.where(np.isnan(c.sequences), 1.0, c.sequences) if phase != "in_flight" else batch_in_flight(c)
    prompts, passes = prefill_pass(c, k, b, np.maximum(c.prompt, 1.0), c.depth)
    if phase == "prefill":
        return prompts
    step = decode_step(c, k, b, np.maximum(c.depth, c.prompt) + c.output / 2)
    if phase == "decode":
        return step
    longer = prompts.total * passes > step.total * c.output
    return Seconds(
        **{f.name: np.where(longer, getattr(prompts, f.name), getattr(step, f.name)) for f in fields(Seconds)}
    )


_SERVING = ENGINES.index("serving")
PHASES: tuple[str, ...] = get_args(Phase)


def per_second(c: Cases, k: Constants, phase: str) -> Array:
    """Tokens per second over all devices: of prompts in prefill, of answers otherwise."""
    if phase == "in_flight":
        return in_flight(c, k)
    b = np.where(np.isnan(c.sequences), 1.0, c.sequences)
    if phase == "prefill":
        alone = prefill_seconds(c, k, b, c.prompt, c.depth)
        return b * c.prompt / np.where(c.loaded > 0, loaded_first_seconds(c, k) * b, alone)
    if phase == "decode":
        alone = decode_seconds(c, k, b, c.depth + c.output / 2)
        return b / np.where(c.loaded > 0, loaded_token_seconds(c, k), alone)
    return b * c.output / static_seconds(c, k, b)


def static_seconds(c: Cases, k: Constants, b: Array) -> Array:
    """Seconds of a fixed batch: all prompts, then a step for every token after the first.

    A server takes what does not fit the memory in turns.
    """
    once = np.where(c.engine_class == _SERVING, np.minimum(b, capacity(c)), b)
    steps = np.maximum(c.output - 1, 0)
    prompts = prefill_seconds(c, k, once, c.prompt, c.depth)
    return b / once * (prompts + steps * decode_seconds(c, k, once, c.prompt + c.output / 2))


def capacity(c: Cases) -> Array:
    """Sequences whose caches fit beside the weights, over all replicas: whole ones, and one at least."""
    devices = c.tensor * c.pipeline * c.split
    weights = c.dense_bytes + c.routed_bytes / c.expert_ranks + c.head_bytes + c.lookup_bytes
    free = np.maximum(_USABLE * c.memory * devices - weights, 0.02 * c.memory * devices)
    length = c.prompt + c.output
    replicated = np.maximum(c.tensor / np.maximum(c.kv_heads, 1), 1)
    each = (
        c.cache_bytes * length + c.window_cache_bytes * np.minimum(length, c.window)
    ) * replicated + c.state_bytes
    return np.maximum(np.floor(free / np.maximum(each, 1.0)), 1.0) * c.data


def batch_in_flight(c: Cases) -> Array:
    """Sequences that run at once: no more than are asked for, than there are requests, than the engine starts, and
    than memory holds."""
    usual = np.where(c.served > 0, _SEQUENCES, _OFFLINE_SEQUENCES)
    most = np.where(np.isnan(c.most_sequences), usual, c.most_sequences) * c.data
    asked = np.fmin(np.fmin(c.sequences, c.requests), np.inf)  # NaN where nobody says: no limit
    return np.maximum(np.minimum(np.minimum(capacity(c), most), asked), 1.0)


def in_flight(c: Cases, k: Constants) -> Array:
    """Generated tokens per second where the engine keeps as many sequences going as it can.

    Each round of `b` sequences takes their prompts in and makes their answers; a server spends time on every request
    and every token besides. How a run ends counts where its number of requests is known.
    """
    b = batch_in_flight(c)
    output = np.maximum(c.output, 1.0)
    each = round_seconds(c, k, b) / b
    ended = np.where(c.varied > 0, each + _draining_seconds(c, k, b), _waves_seconds(c, k, b))
    return output / (np.where(np.isnan(c.requests), each, ended) + serving_seconds(c, k) * c.served)


def _waves_seconds(c: Cases, k: Constants, b: Array) -> Array:
    """Seconds for each request where all are of one length: rounds of `b`, and one of those that remain."""
    requests = np.maximum(np.nan_to_num(c.requests, nan=1.0), b)
    full = np.floor(requests / b)
    rest = requests - full * b
    last = np.where(rest > 0, round_seconds(c, k, np.maximum(rest, 1.0)), 0.0)
    return (full * round_seconds(c, k, b) + last) / requests


def _draining_seconds(c: Cases, k: Constants, b: Array) -> Array:
    """Seconds for each request, by which the end of a run with answers of many lengths exceeds a full batch.

    Of answers with exponential lengths, the last of n is ln(n) + 0.58 times as long as the mean; the batch shrinks
    meanwhile, evenly in its logarithm.
    """
    seen, output = c.prompt + c.output, np.maximum(c.output, 1.0)
    while_fewer = [decode_seconds(c, k, b ** ((2 * j - 1) / 8), seen) for j in (1, 2, 3, 4)]
    last, full = (decode_seconds(c, k, n, seen) for n in (np.ones_like(b), b))
    steps = np.log(b) * np.mean(while_fewer, axis=0) + _EULER * last - full
    return k.tail * output * np.maximum(steps, 0.0) / np.maximum(np.nan_to_num(c.requests, nan=1.0), b)


_EULER = 0.577  # by which the sum of 1/i exceeds the logarithm


def round_seconds(c: Cases, k: Constants, b: Array) -> Array:
    """Seconds to take in the prompts of `b` sequences, and to make their answers."""
    output = np.maximum(c.output, 1.0)
    step = decode_seconds(c, k, b, c.prompt + output / 2)
    return prefill_seconds(c, k, b, c.prompt, np.zeros_like(b)) + output * step


def serving_seconds(c: Cases, k: Constants) -> Array:
    """What a server spends on one request: reading it, and sending each of its tokens."""
    return k.request + k.stream * np.maximum(c.output, 1.0)


def loaded_token_seconds(c: Cases, k: Constants) -> Array:
    """Seconds between two tokens of a sequence while others are served: a step, and the prompts taken in between.

    Of a round's prompts, a sequence waits for those of the others alone; and those that came with it were all taken
    in before their second tokens, as the first round of a short run shows.
    """
    b = batch_in_flight(c)
    output = np.maximum(c.output, 1.0)
    requests = np.where(np.isnan(c.requests), np.inf, c.requests)
    prompts = prefill_seconds(c, k, b, c.prompt, np.zeros_like(b))
    others = (b - 1) / b * (1 - b / (2 * np.maximum(requests, b)))
    step = decode_seconds(c, k, b, c.prompt + output / 2)
    return step + prompts / output * others + k.stream * b * c.served


def loaded_first_seconds(c: Cases, k: Constants) -> Array:
    """Seconds to the first token while others are served: the queue, half of the prompts that came together, a step."""
    b = batch_in_flight(c)
    asked = np.where(np.isnan(c.sequences), b, c.sequences)
    queue = np.maximum(asked / b - 1, 0) / 2 * round_seconds(c, k, b)
    mine = prefill_seconds(c, k, np.maximum(b / 2, 1.0), c.prompt, np.zeros_like(b))
    return queue + mine + decode_seconds(c, k, b, c.prompt) + k.request * np.maximum(b / 2, 1.0)
