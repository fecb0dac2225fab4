"""What one model is asked to do, over llama.cpp's C API. Runs in the child process only."""

from __future__ import annotations

import codecs
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from penjing.drafting import Lookup
from penjing.engines.base import Finished, Sample, Sampling
from penjing.engines.llamacpp.drafts import DraftModel, Drafts
from penjing.engines.llamacpp.drawing import Clock, new_sampler
from penjing.engines.llamacpp.loaded import Loaded, peak_bytes
from penjing.errors import EngineError
from penjing.plan import Drafting, Memory, Settings

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["prefill", "decode", "check"]
_CELLS = 256  # the cache is rounded up to so many positions
_LOGIT_ROWS = 64  # rows in one block of logits: 40 MB for a vocabulary of 150,000


class Runner:
    """A loaded model at work.

    Where the phases want different layouts of the weights, each has its own context, and the cache is
    handed over between them: prefill with the kernels that are fast for many columns, decode with
    those that are fast for one.
    """

    def __init__(self, path: Path, settings: Settings, *, check: bool, warm_up: bool = False) -> None:
        self._loaded = Loaded(path, settings, check=check)
        self.ffi, self.lib, self.vocab = self._loaded.ffi, self._loaded.lib, self._loaded.vocab
        self.vocabulary = int(self.lib.llama_vocab_n_tokens(self.vocab))
        self._draft_model: DraftModel | None = None
        self._draft_for: tuple[str, Settings] | None = None
        self.memory = self.configure(settings)
        for kind in ("prefill", "decode") if warm_up else ():
            self._enter(kind)
            self.decode(self._random_tokens(2, seed=0))

    def configure(self, settings: Settings, outputs: int | None = None, *, unified: bool = True) -> Memory:
        """New, empty contexts; see `Loaded.configure`. Returns the engine's memory by class."""
        outputs = outputs or max(settings.sequences, 1 + settings.drafting.tokens)
        self.memory = self._loaded.configure(settings, outputs, unified=unified)
        self.settings = settings
        self._load_draft_model()
        self._enter("prefill")
        self.context_tokens = int(self.lib.llama_n_ctx(self._context))
        return self.memory

    def _enter(self, kind: Kind) -> None:
        """Work in the context of this phase, with an empty cache."""
        repack = self.settings.prefill_repack if kind == "prefill" else self.settings.repack
        self._context = self._loaded.contexts[repack]
        self.clear()

    def _hand_over(self) -> None:
        """Go on in the context of decode with the cache that prefill has filled."""
        if self.settings.prefill_repack == self.settings.repack:
            return
        state = self._state()
        self._enter("decode")
        if self.lib.llama_state_seq_set_data(self._context, state, len(state), 0) == 0:
            raise EngineError("the engine cannot hand its cache over from prefill to decode")

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
        model = self._loaded.models[self.settings.repack]
        found = self.lib.llama_model_chat_template(model, self.ffi.NULL)
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
        self._enter("prefill")
        sampler = new_sampler(self.lib, sampling)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        clock = Clock()
        try:
            done = self.prefill(tokens, stopped)
            token = self.sample(sampler) if done == len(tokens) else None
            self._hand_over()
            prefill = clock.lap("prefill", done, 0)
            most = min(max_tokens, room)
            drafts = self._drafts()
            draws = drafts.draws([*tokens, token or 0], len(tokens) + most, sampler)
            drawn: list[int] = []
            reason = "stopped" if token is None else "length"
            while token is not None:
                if self.lib.llama_vocab_is_eog(self.vocab, token):
                    reason = "end"
                    break
                drawn.append(token)
                if text := decoder.decode(self.piece(token)):
                    yield text
                if len(drawn) == most:
                    break
                if stopped():
                    reason = "stopped"
                    break
                token = next(draws)
            if rest := decoder.decode(b"", final=True):
                yield rest
            # the first token was drawn from the prefill's logits; the end token was computed like the others
            steps = len(drawn) if reason == "end" else max(0, len(drawn) - 1)
            decode = clock.lap("decode", steps, len(tokens))
            counted = tuple(drawn), drafts.guessed, drafts.right
            yield Finished(reason, prefill, decode, prefill.seconds, peak_bytes(), *counted)  # type: ignore[arg-type]
        finally:
            self.lib.llama_sampler_free(sampler)

    def _drafts(self) -> Drafts:
        """The way to guess that the settings name, with a memory of its own for each answer."""
        drafting = self.settings.drafting
        if drafting.kind == "ngram":
            return Drafts(self, Lookup(drafting.matched, drafting.tokens), drafting.tokens)
        if drafting.kind == "model" and self._draft_model is not None:
            self._draft_model.forget()
            return Drafts(self, self._draft_model, drafting.tokens)
        return Drafts(self, None, 0)

    def _load_draft_model(self) -> None:
        """One that is loaded stays so while nothing changes but whether it is used."""
        plain = replace(self.settings, drafting=Drafting(), prefill_repack=self.settings.repack, sequences=1)
        path = self.settings.drafting.draft_model
        if path and self._draft_for != (path, plain):
            self._draft_model = DraftModel(Runner(Path(path), plain, check=False), self)
            self._draft_for = path, plain

    def time(self, kind: Kind, tokens: int, depth: int, repeats: int, most_seconds: float) -> list[Sample]:
        """Time `tokens` tokens after `depth` others, `repeats` times; decode ends early after `most_seconds`."""
        if depth + tokens >= self.context_tokens:
            raise EngineError(f"cannot time {depth} + {tokens} tokens in a context of {self.context_tokens}")
        ids = self._random_tokens(max(tokens, 1), seed=tokens)
        self._enter(kind)
        self._fill(depth)
        sampler = new_sampler(self.lib, Sampling(seed=1))
        samples = []
        try:
            for _ in range(repeats):
                if kind != "prefill":  # the first step after a prefill pays for a new graph, once an answer
                    self.decode(ids, every=True) if kind == "check" else self.decode(ids[:1])
                handed_over = self.settings.split and kind == "prefill"  # and left the context of prefill
                if handed_over or not self.rewind(depth):
                    self._enter(kind)
                    self._fill(depth)
                samples.append(self._time_once(kind, ids, depth, sampler, most_seconds))
        finally:
            self.lib.llama_sampler_free(sampler)
        return samples

    def time_together(
        self, together: int, tokens: int, depth: int, repeats: int, most_seconds: float
    ) -> list[Sample]:
        """Time `tokens` steps of `together` sequences, each after `depth` tokens, `repeats` times.

        As in the engine's server every sequence has a cache of its own; the contexts are made anew before and after.
        """
        settings = self.settings
        each = -(-(depth + tokens + 2) // _CELLS) * _CELLS
        self.configure(replace(settings, sequences=together, context_tokens=together * each), unified=False)
        sampler = new_sampler(self.lib, Sampling(seed=1))
        try:
            return [self._time_steps(together, tokens, depth, sampler, most_seconds) for _ in range(repeats)]
        finally:
            self.lib.llama_sampler_free(sampler)
            self.configure(settings)

    def _time_steps(
        self, together: int, tokens: int, depth: int, sampler: Any, most_seconds: float
    ) -> Sample:
        self._enter("decode")
        self.prefill(self._random_tokens(depth, seed=depth))
        for sequence in range(1, together):
            self.lib.llama_memory_seq_cp(self._cache, 0, sequence, -1, -1)
        batch = self.lib.llama_batch_init(together, 0, 1)
        try:
            self._step(batch, together, depth, sampler)  # pays for a new graph, as in `time`
            clock, done = Clock(), 0
            while done < tokens and (done == 0 or clock.seconds < most_seconds):
                done += 1
                self._step(batch, together, depth + done, sampler)
            return clock.lap("decode", done, depth)
        finally:
            self.lib.llama_batch_free(batch)

    def _step(self, batch: Any, together: int, position: int, sampler: Any) -> None:
        """The next token of every sequence, and a draw from the logits of each."""
        batch.n_tokens = together
        for i, token in enumerate(self._random_tokens(together, seed=position)):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, i
        self._compute(batch)
        for i in range(together):
            self.lib.llama_sampler_sample(sampler, self._context, i)

    def _time_once(self, kind: Kind, ids: list[int], depth: int, sampler: Any, most_seconds: float) -> Sample:
        clock = Clock()
        if kind == "prefill":
            self.prefill(ids)
            self.sample(sampler)
            self._hand_over()
            return clock.lap(kind, len(ids), depth)
        if kind == "check":
            self.decode(ids, every=True)
            for i in range(len(ids)):
                self.sample(sampler, i)
            return clock.lap(kind, len(ids), depth)
        done = 0
        while done < len(ids) and (done == 0 or clock.seconds < most_seconds):
            self.decode([ids[done]])
            self.sample(sampler)
            done += 1
        return clock.lap(kind, done, depth)

    def logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits after every token, in blocks of rows (≤ 64, vocabulary), float32."""
        import numpy as np

        if len(tokens) > self.context_tokens:
            raise EngineError(
                f"{len(tokens)} tokens exceed the context of {self.context_tokens}",
                hint=f"--context {len(tokens)}",
            )
        self.configure(self.settings, outputs=_LOGIT_ROWS)
        for start in range(0, len(tokens), _LOGIT_ROWS):
            rows = tokens[start : start + _LOGIT_ROWS]
            self.decode(rows, every=True)
            size = len(rows) * self.vocabulary * 4
            raw = self.ffi.buffer(self.lib.llama_get_logits(self._context), size)
            yield np.frombuffer(raw, dtype=np.float32).reshape(len(rows), self.vocabulary)
        self.configure(self.settings)

    def prefill(self, tokens: Sequence[int], stopped: Callable[[], bool] = lambda: False) -> int:
        """Process `tokens` by micro-batches; returns how many were done before `stopped`."""
        for start in range(0, len(tokens), self.settings.micro_batch):
            if start and stopped():
                return start
            self.decode(tokens[start : start + self.settings.micro_batch])
        return len(tokens)

    def decode(self, tokens: Sequence[int], *, every: bool = False) -> None:
        """One pass over `tokens`; logits for the last one, or for `every` one."""
        ids = self.ffi.new("llama_token[]", list(tokens))
        batch = self.lib.llama_batch_get_one(ids, len(ids))
        if every:
            wanted = self.ffi.new("int8_t[]", [1] * len(ids))
            batch.logits = wanted
        self._compute(batch)

    def _compute(self, batch: Any) -> None:
        code = self.lib.llama_decode(self._context, batch)
        if code != 0:
            raise EngineError(
                f"the engine failed on {batch.n_tokens} tokens with code {code}: {self._loaded.telling_line()}"
            )

    def sample(self, sampler: Any, index: int = -1) -> int:
        """Draw from the logits of the token at `index` of the last pass."""
        return int(self.lib.llama_sampler_sample(sampler, self._context, index))

    # ---- the cache -----------------------------------------------------------------------------

    @property
    def _cache(self) -> Any:
        return self.lib.llama_get_memory(self._context)

    def clear(self) -> None:
        """Forget everything."""
        self.lib.llama_memory_clear(self._cache, False)

    def rewind(self, depth: int) -> bool:
        """Forget all after `depth`; False where the cache cannot (recurrent state)."""
        return bool(self.lib.llama_memory_seq_rm(self._cache, 0, depth, -1))

    def _fill(self, depth: int) -> None:
        """Fill the cache with `depth` tokens that are real to the attention kernels, quickly.

        A short prefill is doubled by copying its state to a second sequence, shifting that and merging
        it back, so that timing at depth 4000 costs a prefill of about 32. Caches that cannot be
        shifted (recurrent, multi-axis rotary) are filled by a prefill of the full length.
        """
        self.clear()
        doublings = 0
        while depth >> doublings > 32:
            doublings += 1
        if not self.lib.llama_memory_can_shift(self._cache) or not self.rewind(0):
            doublings = 0
        filled = -(-depth // 2**doublings)
        if filled * 2**doublings > self.context_tokens:
            doublings, filled = 0, depth
        if filled:
            self.prefill(self._random_tokens(filled, seed=depth))
        for _ in range(doublings):
            self._double(filled)
            filled *= 2
        self.rewind(depth)

    def _double(self, filled: int) -> None:
        lib, state = self.lib, self._state()
        if lib.llama_state_seq_set_data(self._context, state, len(state), 1) == 0:
            raise EngineError(f"the engine cannot copy a cache of {filled} tokens")
        lib.llama_memory_seq_add(self._cache, 1, 0, -1, filled)
        lib.llama_memory_seq_cp(self._cache, 1, 0, -1, -1)
        lib.llama_memory_seq_rm(self._cache, 1, -1, -1)

    def _state(self) -> Any:
        """A copy of the cache, as the engine writes it."""
        size = self.lib.llama_state_seq_get_size(self._context, 0)
        state = self.ffi.new("uint8_t[]", size)
        self.lib.llama_state_seq_get_data(self._context, state, size, 0)
        return state

    def _random_tokens(self, count: int, seed: int) -> list[int]:
        draw = random.Random(seed)
        return [draw.randrange(self.vocabulary) for _ in range(count)]
