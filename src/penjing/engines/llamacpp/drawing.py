"""Drawing tokens from logits, and the time that it takes. Runs in the child process only."""

from __future__ import annotations

import random
import time
from typing import Any, Literal

from penjing.engines.base import Sample, Sampling

Kind = Literal["prefill", "decode", "check"]


def new_sampler(lib: Any, sampling: Sampling) -> Any:
    """llama.cpp's usual chain: top-k, top-p, min-p, temperature, draw; to be freed by who asked for it."""
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    if sampling.temperature <= 0:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        return chain
    seed = random.getrandbits(32) if sampling.seed is None else sampling.seed % 2**32
    for link in (
        lib.llama_sampler_init_top_k(sampling.top_k),
        lib.llama_sampler_init_top_p(sampling.top_p, 1),
        lib.llama_sampler_init_min_p(sampling.min_p, 1),
        lib.llama_sampler_init_temp(sampling.temperature),
        lib.llama_sampler_init_dist(seed),
    ):
        lib.llama_sampler_chain_add(chain, link)
    return chain


class Clock:
    """Wall and CPU seconds since it was made, or since the last lap."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._wall

    def lap(self, kind: Kind, tokens: int, depth: int) -> Sample:
        wall, cpu = time.perf_counter(), time.process_time()
        sample = Sample(kind, tokens, depth, wall - self._wall, cpu - self._cpu)
        self._wall, self._cpu = wall, cpu
        return sample
