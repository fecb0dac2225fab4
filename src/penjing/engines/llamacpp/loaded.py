"""Weights and contexts of one model over llama.cpp's C API. Lives in the child process only."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import Any

from penjing.engines.llamacpp import library
from penjing.errors import EngineError
from penjing.plan import Memory, Settings

_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([\d.]+) MiB")
_DEBUG, _ERROR = 1, 4  # levels of ggml's log
_READ, _MAP = 0, 1  # load modes: into private memory, or mapped


class Loaded:
    """The model once for each layout of its weights that a phase wants, and a context for each.

    `contexts` has the keys False (weights as in the file) and True (repacked), or one of them.
    """

    def __init__(self, path: Path, settings: Settings, *, check: bool) -> None:
        self.ffi, self.lib = library.bind()
        self.contexts: dict[bool, Any] = {}
        self._lines: list[str] = []
        self._errors: list[str] = []
        self._log = self.ffi.callback("void(int, const char *, void *)", self._on_log)
        self.lib.llama_log_set(self._log, self.ffi.NULL)
        self.lib.llama_backend_init()
        before = resident_bytes()
        layouts = sorted({settings.prefill_repack, settings.repack})
        # repacked weights beside plain ones are read: a second map of the file would serve nothing
        reads = {True: not settings.mapped or len(layouts) == 2, False: not settings.mapped}
        self.models = {repack: self._load(path, repack, reads[repack], check) for repack in layouts}
        self.vocab = self.lib.llama_model_get_vocab(self.models[settings.repack])
        self._layouts, self._mapped = set(layouts), settings.mapped
        self._weights, self._private = self._model_bytes()
        grown = max(0, resident_bytes()["RssAnon"] - self._private)
        self._base = grown + before["RssFile"]

    def _load(self, path: Path, repack: bool, read: bool, check: bool) -> Any:
        params = self.lib.llama_model_default_params()
        params.use_extra_bufts = repack
        params.load_mode = _READ if read else _MAP
        params.check_tensors = check
        model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if model == self.ffi.NULL:
            raise EngineError(
                f"the engine cannot load `{path.name}`: {self.telling_line()}",
                hint="the file may be damaged or of a family that this engine does not know; fetch it again",
            )
        return model

    def configure(self, settings: Settings, outputs: int, *, unified: bool = True) -> Memory:
        """New, empty contexts that give logits of at most `outputs` tokens at once.

        `unified`: sequences share one cache; otherwise each has its part of it.
        """
        if {settings.prefill_repack, settings.repack} != self._layouts or settings.mapped != self._mapped:
            raise EngineError(
                "repacking and mapping cannot change after loading", hint="load the model again"
            )
        while self.contexts:
            self.lib.llama_free(self.contexts.popitem()[1])
        self._lines.clear()
        for layout in self._layouts:
            self.contexts[layout] = self._new_context(self.models[layout], settings, outputs, unified=unified)
        sizes = self._buffer_bytes()
        return Memory(
            weights_bytes=self._weights,
            repacked_bytes=self._private,
            cache_bytes=sizes.get("KV", 0) + sizes.get("RS", 0),
            compute_bytes=sizes.get("compute", 0) + sizes.get("output", 0),
            base_bytes=self._base,
        )

    def _new_context(self, model: Any, settings: Settings, outputs: int, *, unified: bool) -> Any:
        params = self.lib.llama_context_default_params()
        params.n_ctx = settings.context_tokens
        params.n_batch = params.n_ubatch = settings.micro_batch
        params.n_seq_max = max(2, settings.sequences)  # the second one is for filling the cache quickly
        params.n_outputs_max = params.n_outputs_max_per_seq = max(outputs, params.n_seq_max)  # fewer abort it
        params.n_threads, params.n_threads_batch = settings.threads, settings.prefill_threads
        params.flash_attn_type = library.FLASH_ATTENTION[settings.flash_attention]
        params.type_k = params.type_v = library.CACHE_TYPES[settings.cache_type]
        params.swa_full, params.kv_unified = False, unified
        context = self.lib.llama_init_from_model(model, params)
        if context == self.ffi.NULL:
            raise EngineError(
                f"the engine cannot make a context of {settings.context_tokens} tokens: {self.telling_line()}",
                hint="try a smaller `--context`",
            )
        return context

    def telling_line(self) -> str:
        """The first line that the engine itself calls an error."""
        return (self._errors or ["it gives no reason"])[0][:240]

    def _on_log(self, level: int, text: Any, _data: Any) -> None:
        if level == _DEBUG:
            return
        line = self.ffi.string(text).decode("utf-8", "replace")
        self._lines.append(line.rstrip())
        if level == _ERROR:
            self._errors.append(re.sub(r"^\w+: ", "", line.strip()))
        sys.stderr.write(line)

    def _buffer_bytes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for line in self._lines:
            if match := _BUFFER.search(line):
                _, kind, mib = match.groups()
                sizes[kind] = sizes.get(kind, 0) + round(float(mib) * 2**20)
        return sizes

    def _model_bytes(self) -> tuple[int, int]:
        """(mapped, private) bytes of the weights: those that the kernel can drop, and the others."""
        mapped = private = 0
        for line in self._lines:
            if (match := _BUFFER.search(line)) and match.group(2) == "model":
                n_bytes = round(float(match.group(3)) * 2**20)
                if "Mapped" in match.group(1):
                    mapped += n_bytes
                else:
                    private += n_bytes
        return mapped, private


def peak_bytes() -> int:
    """The largest resident size so far, in bytes.

    Linux hands ru_maxrss on from the process that started us, so VmHWM is asked there.
    """
    return resident_bytes()["VmHWM"] or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes() -> dict[str, int]:
    """RssAnon, RssFile and VmHWM of this process in bytes; zeros where the system does not tell."""
    sizes = {"RssAnon": 0, "RssFile": 0, "VmHWM": 0}
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
    return sizes
