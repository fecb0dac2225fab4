"""The reader's figures against the real engine: it loads the same files and says what cache it makes.

Run as a program it is the child that holds the engine, because a file can abort it:
`python test_gguf_engine.py FILE...` prints one JSON document per file, the log lines about its caches.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gguf_files
from gguf_families import FAMILIES, WIDTH, changed
from gguf_files import Tiny
from penjing.engines.llamacpp.library import bind, library_path
from penjing.errors import BadFile
from penjing.formats import REMOVED, TYPES
from penjing.gguf import read_model
from penjing.model import Layer

CELLS, SEQUENCES = 16_384, 64
NO_VOCABULARY = {"tokenizer.ggml.model": "no_vocab"}
_CACHE = re.compile(r"\( *(\d+) cells.*K \(f16\): +([\d.]+) MiB, V \(f16\): +([\d.]+) MiB")
_STATES = re.compile(r"recurrent: size = +([\d.]+) MiB")


def test_types_are_those_of_the_engine():
    """Names, block sizes and removed ids agree with the library for every type it knows."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef("const char * ggml_type_name(int); int64_t ggml_blck_size(int); size_t ggml_type_size(int);")
    library = ffi.dlopen(str(library_path()))
    ids = range(43)  # GGML_TYPE_COUNT of the pinned version

    theirs = {
        i: (
            ffi.string(library.ggml_type_name(i)).decode(),
            library.ggml_blck_size(i),
            library.ggml_type_size(i),
        )
        for i in ids
    }

    assert {i: (t.name, t.block_weights, t.block_bytes) for i, t in TYPES.items()} == {
        i: row for i, row in theirs.items() if row[1]
    }
    assert set(REMOVED) == {i for i, row in theirs.items() if not row[1]}


def test_caches_are_those_of_the_engine(tmp_path: Path):
    """For each family the engine accepts the file and allocates the widths and states that we read."""
    paths = [
        gguf_files.write(tmp_path / f"{name}.gguf", model, extra=NO_VOCABULARY)
        for name, model in FAMILIES.items()
    ]

    done = _child(*paths)

    assert done.returncode == 0, done.stderr
    logs = [json.loads(line) for line in done.stdout.splitlines()]
    for name, path, lines in zip(FAMILIES, paths, logs, strict=True):
        assert lines is not None, f"{name}: {done.stderr}"
        layers = read_model(path).layers
        windowed = [layer for layer in layers if layer.attention == "window"]
        whole = [layer for layer in layers if layer.attention in ("full", "latent")]
        expected = [_widths(group) for group in (whole, windowed) if group]
        assert (name, _engine_widths(lines)) == (name, expected)
        states = sum(layer.state_bytes for layer in layers) * SEQUENCES / 2**20
        assert _engine_states(lines) == pytest.approx(states, abs=0.01), name


def _widths(layers: list[Layer]) -> tuple[int, int]:
    return sum(layer.key_width for layer in layers), sum(layer.value_width for layer in layers)


def _engine_widths(lines: list[str]) -> list[tuple[int, int]]:
    """Elements per cell, of K and of V, in each cache of the engine: MiB, two bytes an element."""
    found = []
    for match in filter(None, map(_CACHE.search, lines)):
        cells = int(match[1])
        found.append(tuple(round(float(mib) * 2**20 / (2 * cells)) for mib in match.groups()[1:]))
    return found


def _engine_states(lines: list[str]) -> float:
    return sum(float(match[1]) for match in filter(None, map(_STATES.search, lines)))


_NARROW = {f"blk.{i}.attn_{x}.weight": (WIDTH, 48) for i in range(2) for x in "kv"}
_THIN_VALUES = {f"blk.{i}.attn_v.weight": (WIDTH, 16) for i in range(2)}


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (changed("llama", block_count=999), "has `llama.block_count` = 999, it must be from 1 to 512"),
        (changed("llama", block_count=2**31), "has `llama.block_count` = 2147483648"),
        (changed("llama", rope__scaling__type="sideways"), "scales its rotary positions by `sideways`"),
        (changed("llama", _NARROW, attention__head_count_kv=3), "which its 3 KV heads do not divide"),
        (changed("llama", expert_used_count=2), "uses 2 of 0 experts"),
        (changed("qwen2", rope__dimension_count=8), "rotates 8 dimensions of a key head of 16"),
        (changed("qwen3moe", expert_used_count=9), "uses 9 of 8 experts"),
        (changed("qwen3moe", expert_count=2000), "= 2000, it must be from 0 to 1024"),
        (changed("qwen3moe", expert_group_count=3), "uses 0 of 3 groups of 8 experts"),
        (changed("qwen35", nextn_predict_layers=6), "is for drafting alone: 6 of its 5 layers"),
        (changed("qwen35", full_attention_interval=0), "has `qwen35.full_attention_interval` = 0"),
        (changed("glm4", _THIN_VALUES, attention__value_length=8), "key heads of 16 and value heads of 8"),
        (changed("glm4moe", expert_count=None, expert_used_count=None), "has no `glm4moe.expert_count`"),
        (changed("minimax-m2", expert_gating_func=None), "has no `minimax-m2.expert_gating_func`"),
        (changed("minimax-m2", expert_gating_func=9), "has `minimax-m2.expert_gating_func` = 9"),
        (changed("ernie4_5-moe", interleave_moe_layer_step=0), "has no `ernie4_5-moe.interleave_moe"),
        (changed("deepseek2", attention__key_length_mla=8), "rotates 8 dimensions of a decompressed head"),
        (changed("gemma3", attention__sliding_window_pattern=1), "has a sliding window that no layer uses"),
    ],
)
def test_what_kills_the_engine_is_refused(tmp_path: Path, model: Tiny, problem: str):
    """A file on which the engine's process dies never gets past the reader."""
    path = gguf_files.write(tmp_path / "bad.gguf", model, extra=NO_VOCABULARY)

    assert _child(path).returncode in (-signal.SIGABRT, -signal.SIGFPE)
    with pytest.raises(BadFile, match=re.escape(problem)):
        read_model(path)


def _child(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, *map(str, paths)]
    quiet = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=60, check=False)


def main() -> None:
    ffi, library = bind()
    library.llama_backend_init()
    for path in sys.argv[1:]:
        print(json.dumps(_caches(ffi, library, path)), flush=True)


def _caches(ffi, library, path: str) -> list[str] | None:
    """What the engine logs about its caches; None (and the reason on stderr) if it refuses the file."""
    lines: list[str] = []

    @ffi.callback("void(int, const char *, void *)")
    def listen(_level, text, _data):
        lines.append(ffi.string(text).decode(errors="replace"))

    library.llama_log_set(listen, ffi.NULL)
    model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
    settings = library.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = CELLS, SEQUENCES, SEQUENCES
    settings.n_seq_max, settings.kv_unified, settings.swa_full = SEQUENCES, True, False
    settings.flash_attn_type, settings.n_threads, settings.n_threads_batch = 1, 1, 1
    context = library.llama_init_from_model(model, settings) if model else ffi.NULL
    library.llama_log_set(ffi.NULL, ffi.NULL)
    if not context:
        sys.stderr.write("".join(lines[-5:]))
        return None
    library.llama_free(context)
    library.llama_model_free(model)
    return [line for line in lines if ": size = " in line]


if __name__ == "__main__":
    main()
