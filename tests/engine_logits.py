"""The real engine's logits of small files, computed in a child process because a file can abort it.

`python engine_logits.py '[TOKEN, ...]' FILE...` prints one JSON list of logits, (tokens, vocabulary), per file.
All in F32, the cache too, so that nothing is rounded on the way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from penjing.engines.llamacpp.library import bind

_F32, _FLASH_OFF = 0, 0


def engine_logits(paths: Sequence[Path], tokens: Sequence[int]) -> list[np.ndarray]:
    """(tokens, vocabulary) for each file."""
    command = [sys.executable, __file__, json.dumps(list(tokens)), *map(str, paths)]
    quiet = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [np.array(json.loads(line), dtype=np.float32) for line in done.stdout.splitlines()]


def main(tokens: list[int], paths: list[str]) -> None:
    ffi, library = bind()
    library.llama_backend_init()
    for path in paths:
        model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        assert model, path
        settings = library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
        settings.n_outputs_max = settings.n_outputs_max_per_seq = len(tokens)
        settings.type_k = settings.type_v = _F32
        settings.flash_attn_type, settings.n_threads, settings.n_threads_batch = _FLASH_OFF, 1, 1
        context = library.llama_init_from_model(model, settings)
        assert context, path
        print(json.dumps(_decode(ffi, library, model, context, tokens)), flush=True)
        library.llama_free(context)
        library.llama_model_free(model)


def _decode(ffi, library, model, context, tokens: list[int]) -> list[list[float]]:
    ids = ffi.new("llama_token[]", tokens)
    wanted = ffi.new("int8_t[]", [1] * len(tokens))
    batch = library.llama_batch_get_one(ids, len(tokens))
    batch.logits = wanted
    assert library.llama_decode(context, batch) == 0
    width = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    found = np.frombuffer(ffi.buffer(library.llama_get_logits(context), len(tokens) * width * 4), np.float32)
    return found.reshape(len(tokens), width).tolist()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
