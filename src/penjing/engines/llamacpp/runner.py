"""One model over llama.cpp's C API. Runs in the child process only."""

from __future__ import annotations

import codecs
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penjing.engines.base import Finished, Sample, Sampling
from penjing.engines.llamacpp import library
from penjing.errors import EngineError
from penjing.plan import Memory, Settings

if TYPE_CHECKING:
    import numpy as np

_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([\d.]+) MiB")
_LOAD_MODE = {False: 0, True: 1}  # read into private memory, or map
_DEBUG, _ERROR = 1, 4  # levels of ggml's log
_LOGIT_ROWS = 32  # rows in one block of logits: 20 MB for a vocabulary of 150,000


class Runner:
    """A loaded model and its context."""

    def __init__(self, path: Path, settings: Settings, *, check: bool, warm_up: bool = False) -> None:
        self.ffi, self.lib = library.bind()
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._model: Any = None
        self._context: Any = None
        self._log = self.ffi.callback("void(int, const char *, void *)", self._on_log)
        self.lib.llama_log_set(self._log, self.ffi.NULL)
        self.lib.llama_backend_init()
        self.settings = settings
        before = _resident_bytes()
        self._load(path, settings, check)
        self.vocab = self.lib.llama_model_get_vocab(self._model)
        self.vocabulary = int(self.lib.llama_vocab_n_tokens(self.vocab))
        weights, private = self._model_bytes()
        grown = max(0, _resident_bytes()["RssAnon"] - private)
        self._weights = (weights, private, grown + before["RssFile"])
        self.memory = self.configure(settings)
        if warm_up:
            self._decode(self._random_tokens(2, seed=0))
            self._clear()

    # ---- loading -------------------------------------------------------------------------------

    def _load(self, path: Path, settings: Settings, check: bool) -> None:
        params = self.lib.llama_model_default_params()
        params.use_extra_bufts = settings.repack
        params.load_mode = _LOAD_MODE[settings.mapped]
        params.check_tensors = check
        self._model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if self._model == self.ffi.NULL:
            raise EngineError(
                f"the engine cannot load `{path.name}`: {self._telling_line()}",
                hint="the file may be damaged or of a family that this engine does not know; fetch it again",
            )

    def configure(self, settings: Settings) -> Memory:
        """A new, empty context. Returns the engine's memory by class."""
        if settings.repack != self.settings.repack or settings.mapped != self.settings.mapped:
            raise EngineError(
                "repacking and mapping cannot change after loading", hint="load the model again"
            )
        if self._context is not None:
            self.lib.llama_free(self._context)
            self._context = None
        self.lines.clear()
        self._context = self._new_context(settings, outputs=settings.sequences)
        self.settings = settings
        self.context_tokens = int(self.lib.llama_n_ctx(self._context))
        weights, private, base = self._weights
        sizes = self._buffer_bytes()
        self.memory = Memory(
            weights_bytes=weights,
            repacked_bytes=private,
            cache_bytes=sizes.get("KV", 0) + sizes.get("RS", 0),
            compute_bytes=sizes.get("compute", 0) + sizes.get("output", 0),
            base_bytes=base,
        )
        return self.memory

    def _new_context(self, settings: Settings, outputs: int) -> Any:
        params = self.lib.llama_context_default_params()
        params.n_ctx = settings.context_tokens
        params.n_batch = params.n_ubatch = settings.micro_batch
        params.n_seq_max = max(2, settings.sequences)  # the second one is for filling the cache quickly
        params.n_outputs_max = params.n_outputs_max_per_seq = max(outputs, params.n_seq_max)  # fewer abort it
        params.n_threads, params.n_threads_batch = settings.threads, settings.prefill_threads
        params.flash_attn_type = library.FLASH_ATTENTION[settings.flash_attention]
        params.type_k = params.type_v = library.CACHE_TYPES[settings.cache_type]
        params.swa_full, params.kv_unified = False, True
        context = self.lib.llama_init_from_model(self._model, params)
        if context == self.ffi.NULL:
            raise EngineError(
                f"the engine cannot make a context of {settings.context_tokens} tokens: {self._telling_line()}",
                hint="try a smaller `--context`",
            )
        return context

    def _on_log(self, level: int, text: Any, _data: Any) -> None:
        if level == _DEBUG:
            return
        line = self.ffi.string(text).decode("utf-8", "replace")
        self.lines.append(line.rstrip())
        if level == _ERROR:
            self.errors.append(re.sub(r"^\w+: ", "", line.strip()))
        sys.stderr.write(line)

    def _telling_line(self) -> str:
        """The first line that the engine itself calls an error."""
        return (self.errors or ["it gives no reason"])[0][:240]

    def _buffer_bytes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for line in self.lines:
            if match := _BUFFER.search(line):
                _, kind, mib = match.groups()
                sizes[kind] = sizes.get(kind, 0) + round(float(mib) * 2**20)
        return sizes

    def _model_bytes(self) -> tuple[int, int]:
        """(mapped, private) bytes of the weights: those that the kernel can drop, and the others."""
        mapped = private = 0
        for line in self.lines:
            if (match := _BUFFER.search(line)) and match.group(2) == "model":
                n_bytes = round(float(match.group(3)) * 2**20)
                if "Mapped" in match.group(1):
                    mapped += n_bytes
                else:
                    private += n_bytes
        return mapped, private

    # ---- text ----------------------------------------------------------------------------------

    def tokenize(self, text: str, *, special: bool, start: bool) -> list[int]:
        raw = text.encode()
        space = self.ffi.new("llama_token[]", len(raw) + 8)
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), space, len(space), start, special)
        if count < 0:
            raise EngineError(f"the text of {len(raw)} bytes cannot be tokenized", hint="shorten it")
        return [int(token) for token in space[0:count]]

    def piece(self, token: int) -> bytes:
        space = self.ffi.new("char[]", 64)
        count = self.lib.llama_token_to_piece(self.vocab, token, space, len(space), 0, False)
        if count < 0:
            space = self.ffi.new("char[]", -count)
            count = self.lib.llama_token_to_piece(self.vocab, token, space, len(space), 0, False)
        return bytes(self.ffi.buffer(space, max(0, count)))

    def template(self) -> str | None:
        found = self.lib.llama_model_chat_template(self._model, self.ffi.NULL)
        return None if found == self.ffi.NULL else self.ffi.string(found).decode("utf-8", "replace")

    def special_texts(self) -> dict[str, str]:
        """The start and end tokens as text, which chat templates may ask for."""
        tokens = {
            "bos_token": self.lib.llama_vocab_bos(self.vocab),
            "eos_token": self.lib.llama_vocab_eos(self.vocab),
        }
        return {
            name: self.ffi.string(self.lib.llama_vocab_get_text(self.vocab, token)).decode("utf-8", "replace")
            for name, token in tokens.items()
            if token >= 0
        }

    # ---- work ----------------------------------------------------------------------------------

    def generate(
        self, tokens: Sequence[int], max_tokens: int, sampling: Sampling, stopped: Callable[[], bool]
    ) -> Iterator[str | Finished]:
        """Answer to `tokens`; pieces of text, then `Finished`."""
        room = self.context_tokens - len(tokens)
        if room < 1:
            raise EngineError(
                f"the prompt has {len(tokens)} tokens, the context {self.context_tokens}",
                hint=f"--context {len(tokens) + max_tokens}",
            )
        self._clear()
        sampler = self._sampler(sampling)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        clock = _Clock()
        try:
            done = self._prefill(tokens, stopped)
            token = self._sample(sampler) if done == len(tokens) else None
            prefill = clock.lap("prefill", done, 0)
            drawn, reason = 0, "stopped" if token is None else "length"
            while token is not None:
                if self.lib.llama_vocab_is_eog(self.vocab, token):
                    reason = "end"
                    break
                drawn += 1
                if text := decoder.decode(self.piece(token)):
                    yield text
                if drawn == min(max_tokens, room):
                    break
                if stopped():
                    reason = "stopped"
                    break
                self._decode([token])
                token = self._sample(sampler)
            if rest := decoder.decode(b"", final=True):
                yield rest
            # the first token was drawn from the prefill's logits; the end token was computed like the others
            steps = drawn if reason == "end" else max(0, drawn - 1)
            decode = clock.lap("decode", steps, len(tokens))
            yield Finished(reason, prefill, decode, prefill.seconds, peak_bytes())  # type: ignore[arg-type]
        finally:
            self.lib.llama_sampler_free(sampler)

    def time(self, kind: Literal["prefill", "decode"], tokens: int, depth: int, repeats: int) -> list[Sample]:
        """Time `tokens` tokens after `depth` others, `repeats` times."""
        if depth + tokens >= self.context_tokens:
            raise EngineError(f"cannot time {depth} + {tokens} tokens in a context of {self.context_tokens}")
        ids = self._random_tokens(max(tokens, 1), seed=tokens)
        self._fill(depth)
        sampler = self._sampler(Sampling(seed=1))
        samples = []
        try:
            for _ in range(repeats):
                if kind == "decode":  # the first step after a prefill pays for a new graph, once an answer
                    self._decode(ids[:1])
                if not self._rewind(depth):
                    self._fill(depth)
                samples.append(self._time_once(kind, ids, depth, sampler))
        finally:
            self.lib.llama_sampler_free(sampler)
        return samples

    def _time_once(
        self, kind: Literal["prefill", "decode"], ids: list[int], depth: int, sampler: Any
    ) -> Sample:
        clock = _Clock()
        if kind == "prefill":
            self._prefill(ids, lambda: False)
            self._sample(sampler)
        else:
            for token in ids:
                self._decode([token])
                self._sample(sampler)
        return clock.lap(kind, len(ids), depth)

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits after every token, in blocks of rows (≤ 32, vocabulary), float32."""
        import numpy as np

        if len(tokens) > self.context_tokens:
            raise EngineError(
                f"{len(tokens)} tokens exceed the context of {self.context_tokens}",
                hint=f"--context {len(tokens)}",
            )
        self.lib.llama_free(self._context)
        self._context = self._new_context(self.settings, outputs=_LOGIT_ROWS)
        for start in range(0, len(tokens), _LOGIT_ROWS):
            rows = tokens[start : start + _LOGIT_ROWS]
            self._decode(rows, every=True)
            size = len(rows) * self.vocabulary * 4
            raw = self.ffi.buffer(self.lib.llama_get_logits(self._context), size)
            yield np.frombuffer(raw, dtype=np.float32).reshape(len(rows), self.vocabulary)
        self.configure(self.settings)

    def _prefill(self, tokens: Sequence[int], stopped: Callable[[], bool]) -> int:
        """Process `tokens` by micro-batches; returns how many were done before `stopped`."""
        for start in range(0, len(tokens), self.settings.micro_batch):
            if start and stopped():
                return start
            self._decode(tokens[start : start + self.settings.micro_batch])
        return len(tokens)

    def _decode(self, tokens: Sequence[int], *, every: bool = False) -> None:
        """One pass over `tokens`; logits for the last one, or for `every` one."""
        ids = self.ffi.new("llama_token[]", list(tokens))
        batch = self.lib.llama_batch_get_one(ids, len(ids))
        if every:
            wanted = self.ffi.new("int8_t[]", [1] * len(ids))
            batch.logits = wanted
        code = self.lib.llama_decode(self._context, batch)
        if code != 0:
            raise EngineError(
                f"the engine failed on {len(ids)} tokens with code {code}: {self._telling_line()}"
            )

    def _sample(self, sampler: Any) -> int:
        return int(self.lib.llama_sampler_sample(sampler, self._context, -1))

    def _sampler(self, sampling: Sampling) -> Any:
        """llama.cpp's usual chain: top-k, top-p, min-p, temperature, draw."""
        lib = self.lib
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

    # ---- the cache -----------------------------------------------------------------------------

    @property
    def _cache(self) -> Any:
        return self.lib.llama_get_memory(self._context)

    def _clear(self) -> None:
        self.lib.llama_memory_clear(self._cache, False)

    def _rewind(self, depth: int) -> bool:
        """Forget all after `depth`; False where the cache cannot (recurrent state)."""
        return bool(self.lib.llama_memory_seq_rm(self._cache, 0, depth, -1))

    def _fill(self, depth: int) -> None:
        """Fill the cache with `depth` tokens that are real to the attention kernels, quickly.

        A short prefill is doubled by copying its state to a second sequence, shifting that and merging
        it back, so that timing at depth 4000 costs a prefill of about 32. Caches that cannot be
        shifted (recurrent, multi-axis rotary) are filled by a prefill of the full length.
        """
        self._clear()
        doublings = 0
        while depth >> doublings > 32:
            doublings += 1
        if not self.lib.llama_memory_can_shift(self._cache) or not self._rewind(0):
            doublings = 0
        filled = -(-depth // 2**doublings)
        if filled * 2**doublings > self.context_tokens:
            doublings, filled = 0, depth
        if filled:
            self._prefill(self._random_tokens(filled, seed=depth), lambda: False)
        for _ in range(doublings):
            self._double(filled)
            filled *= 2
        self._rewind(depth)

    def _double(self, filled: int) -> None:
        lib, context = self.lib, self._context
        size = lib.llama_state_seq_get_size(context, 0)
        state = self.ffi.new("uint8_t[]", size)
        lib.llama_state_seq_get_data(context, state, size, 0)
        if lib.llama_state_seq_set_data(context, state, size, 1) == 0:
            raise EngineError(f"the engine cannot copy a cache of {filled} tokens")
        lib.llama_memory_seq_add(self._cache, 1, 0, -1, filled)
        lib.llama_memory_seq_cp(self._cache, 1, 0, -1, -1)
        lib.llama_memory_seq_rm(self._cache, 1, -1, -1)

    def _random_tokens(self, count: int, seed: int) -> list[int]:
        draw = random.Random(seed)
        return [draw.randrange(self.vocabulary) for _ in range(count)]


class _Clock:
    """Wall and CPU seconds since it was made, or since the last lap."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self, kind: Literal["prefill", "decode"], tokens: int, depth: int) -> Sample:
        wall, cpu = time.perf_counter(), time.process_time()
        sample = Sample(kind, tokens, depth, wall - self._wall, cpu - self._cpu)
        self._wall, self._cpu = wall, cpu
        return sample


def peak_bytes() -> int:
    """The largest resident size so far, in bytes.

    Linux hands ru_maxrss on from the process that started us, so VmHWM is asked there.
    """
    return _resident_bytes()["VmHWM"] or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident_bytes() -> dict[str, int]:
    """RssAnon, RssFile and VmHWM of this process in bytes; zeros where the system does not tell."""
    sizes = {"RssAnon": 0, "RssFile": 0, "VmHWM": 0}
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
    return sizes
