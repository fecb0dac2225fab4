"""Seconds of single matrix products, by the engine's own kernels: what a type costs on this machine.

A product has weights in one type and layout and a batch of activations in float32, as in the engine: the conversion of
activations to 8 bits is part of it, and so is the barrier of the threads. Small batches are timed with weights from
memory: many copies of the matrix take turns, together larger than the last-level cache.

`python -m` of this module is the child that times; `KernelTimer` starts it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from penjing.engines.llamacpp import library
from penjing.engines.process import Child, die_with_parent, pack, read_frame, take_stdout, write_all
from penjing.errors import EngineError
from penjing.formats import BY_NAME
from penjing.rates import Kernel, KernelTiming

_LIMIT_SECONDS = 600.0
_F32, _I32 = 0, 26  # numbers of types in ggml.h
_CPU_DEVICE = 0
_REPACKED = b"CPU_REPACK"  # name of its buffer type
_DRAWN_ROWS = 16  # of random weights; the rest repeats them
_MOST_COPIES = 512
_MOST_OPERATIONS = 2e9  # of one pass over the copies
_LEAST_SECONDS = 0.004  # of one sample


class Job(Struct, frozen=True):
    """Time all of `kernels`, which share one matrix and layout, `rounds` times in turn."""

    kernels: tuple[Kernel, ...]
    rounds: int
    cold_bytes: int


class KernelTimer:
    """A child process that times products, with the installed library or another build of it."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        """`env` names another build's library, as `native.environment` does."""
        hint = "close what else runs, and try again"
        self._child = Child(__name__, env, if_killed=hint, if_slow=hint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            self._child.kill()
        self._child.close()

    def time(self, kernels: Sequence[Kernel], rounds: int, cold_bytes: int) -> list[KernelTiming]:
        """See `engines.base.KernelTimer`.

        Raises:
            EngineDied: a kernel aborted; the message has the engine's own words.
        """
        self._child.send(msgspec.json.encode(Job(tuple(kernels), rounds, cold_bytes)))
        document, _ = self._child.receive(_LIMIT_SECONDS, "timing kernels")
        return msgspec.json.decode(document, type=list[KernelTiming])


class _Bench:
    """The kernels of the library in this process."""

    def __init__(self) -> None:
        self.ffi, self.lib = library.bind("ggml.h")
        self.backend = self.lib.ggml_backend_cpu_init()

    def run(self, job: Job) -> list[KernelTiming]:
        with _Matrix(self, job.kernels[0], job.cold_bytes) as matrix:
            graphs = [matrix.graph(kernel) for kernel in job.kernels]
            samples: list[list[tuple[float, float]]] = [[] for _ in graphs]
            for number in range(job.rounds + 1):
                for kernel, (graph, count), taken in zip(job.kernels, graphs, samples, strict=True):
                    found = self._sample(graph, count, kernel.threads)
                    if number:  # the first round warms up
                        taken.append(found)
        return [
            KernelTiming(k, *map(tuple, zip(*s, strict=True)))
            for k, s in zip(job.kernels, samples, strict=True)
        ]

    def _sample(self, graph: Any, count: int, threads: int) -> tuple[float, float]:
        self.lib.ggml_backend_cpu_set_n_threads(self.backend, threads)
        passes, wall, cpu = 0, time.perf_counter(), time.process_time()
        while passes == 0 or time.perf_counter() - wall < _LEAST_SECONDS:
            if self.lib.ggml_backend_graph_compute(self.backend, graph) != 0:
                raise EngineError("the engine's kernels failed")
            passes += 1
        done = passes * count
        return (time.perf_counter() - wall) / done, (time.process_time() - cpu) / done

    def layout(self, repack: bool) -> Any:
        """The buffer type of weights as they are in a file, or repacked."""
        if not repack:
            return self.lib.ggml_backend_cpu_buffer_type()
        device = self.lib.ggml_backend_dev_by_type(_CPU_DEVICE)
        registry = self.lib.ggml_backend_dev_backend_reg(device)
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.lib.ggml_backend_reg_get_proc_address(registry, name)
        if address != self.ffi.NULL:
            found = self.ffi.cast("ggml_backend_buffer_type_t * (*)(void *)", address)(device)
            while found != self.ffi.NULL and found[0] != self.ffi.NULL:  # AMX and others may come before
                if self.ffi.string(self.lib.ggml_backend_buft_name(found[0])) == _REPACKED:
                    return found[0]
                found += 1
        raise EngineError("the engine has no repacked layout on this processor")

    def context(self, tensors: int, graph_size: int = 0) -> Any:
        size = self.lib.ggml_tensor_overhead() * (tensors + 1)
        size += self.lib.ggml_graph_overhead_custom(graph_size, False) if graph_size else 0
        return self.lib.ggml_init({"mem_size": size, "mem_buffer": self.ffi.NULL, "no_alloc": True})


class _Matrix:
    """Copies of one matrix in memory, and graphs of products with them."""

    def __init__(self, bench: _Bench, kernel: Kernel, cold_bytes: int) -> None:
        self._bench, self._kernel = bench, kernel
        ffi, lib = bench.ffi, bench.lib
        number, shape = BY_NAME[kernel.type].id, (kernel.columns, kernel.rows)
        data = _weights(bench, kernel)
        self._copies = min(_MOST_COPIES, max(1, -(-cold_bytes // len(data))))
        context = bench.context(self._copies)
        self.weights = [
            lib.ggml_new_tensor_3d(context, number, *shape, kernel.experts)
            if kernel.experts
            else lib.ggml_new_tensor_2d(context, number, *shape)
            for _ in range(self._copies)
        ]
        buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, bench.layout(kernel.repack))
        if buffer == ffi.NULL:
            raise EngineError(f"the engine has no memory for {self._copies} copies of {len(data)} bytes")
        self._held = [(context, buffer)]
        for tensor in self.weights:
            lib.ggml_backend_tensor_set(tensor, ffi.from_buffer(data), 0, len(data))

    def __enter__(self) -> _Matrix:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for context, buffer in self._held:
            self._bench.lib.ggml_backend_buffer_free(buffer)
            self._bench.lib.ggml_free(context)

    def graph(self, kernel: Kernel) -> tuple[Any, int]:
        """A graph of products with one copy after the other, and how many they are."""
        lib = self._bench.lib
        active = kernel.rows * kernel.columns * max(1, kernel.experts_used)
        count = max(1, min(self._copies, int(_MOST_OPERATIONS / (2 * active * kernel.batch))))
        context = self._bench.context(2 + count, graph_size=2 * count + 8)
        graph = lib.ggml_new_graph_custom(context, 2 * count + 8, False)
        inputs, ids = self._inputs(context, kernel)
        for weights in self.weights[:count]:
            product = (
                lib.ggml_mul_mat_id(context, weights, inputs, ids)
                if kernel.experts
                else lib.ggml_mul_mat(context, weights, inputs)
            )
            lib.ggml_build_forward_expand(graph, product)
        buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, self._bench.layout(False))
        self._held.append((context, buffer))
        self._fill(kernel, inputs, ids)
        return graph, count

    def _inputs(self, context: Any, kernel: Kernel) -> tuple[Any, Any]:
        lib = self._bench.lib
        if not kernel.experts:
            return lib.ggml_new_tensor_2d(context, _F32, kernel.columns, kernel.batch), None
        inputs = lib.ggml_new_tensor_3d(context, _F32, kernel.columns, 1, kernel.batch)
        return inputs, lib.ggml_new_tensor_2d(context, _I32, kernel.experts_used, kernel.batch)

    def _fill(self, kernel: Kernel, inputs: Any, ids: Any) -> None:
        import numpy as np

        draw = np.random.default_rng(kernel.batch)
        self._set(inputs, draw.normal(size=(kernel.batch, kernel.columns)).astype(np.float32))
        if ids is not None:
            chosen = [draw.permutation(kernel.experts)[: kernel.experts_used] for _ in range(kernel.batch)]
            self._set(ids, np.asarray(chosen, dtype=np.int32))

    def _set(self, tensor: Any, values: Any) -> None:
        self._bench.lib.ggml_backend_tensor_set(tensor, self._bench.ffi.from_buffer(values), 0, values.nbytes)


def _weights(bench: _Bench, kernel: Kernel) -> Any:
    """One matrix, or a stack of them, of random weights in the type of the kernel."""
    import numpy as np

    ffi, lib, number = bench.ffi, bench.lib, BY_NAME[kernel.type].id
    rows = min(_DRAWN_ROWS, kernel.rows)
    drawn = np.random.default_rng(1).normal(size=(rows, kernel.columns)).astype(np.float32)
    even = np.ones(kernel.columns, dtype=np.float32)
    kind = BY_NAME[kernel.type]
    row_bytes = kernel.columns // kind.block_weights * kind.block_bytes
    out = np.empty(rows * row_bytes, dtype=np.uint8)
    lib.ggml_quantize_init(number)
    lib.ggml_quantize_chunk(
        number, ffi.from_buffer("float[]", drawn), ffi.from_buffer(out), 0, rows, kernel.columns,
        ffi.from_buffer("float[]", even),
    )  # fmt: skip
    total = kernel.rows * max(1, kernel.experts)
    return np.resize(out, total * row_bytes)


def _jobs() -> Iterator[Job]:
    while frame := read_frame(sys.stdin.buffer):
        yield msgspec.json.decode(frame[0], type=Job)


def main() -> None:
    """Answer jobs until the end of input."""
    sys.tracebacklimit = 0  # of a failure the owner shows one line: that of the error
    die_with_parent()
    out, bench = take_stdout(), _Bench()
    for job in _jobs():
        write_all(out, pack(msgspec.json.encode(bench.run(job))))


if __name__ == "__main__":
    main()
