"""llama.cpp's own OpenAI-compatible server, in a child process."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from penjing.engines.llamacpp import native
from penjing.engines.process import Child, die_with_parent, pack, read_frame, take_stdout, write_all
from penjing.errors import EngineError, Unavailable
from penjing.plan import Drafting, Settings


class Serve(msgspec.Struct, frozen=True):
    """What the child is asked to serve."""

    path: str
    settings: Settings
    host: str
    port: int
    alias: str
    embeds: bool = False


class Up(msgspec.Struct, frozen=True):
    """The child's answer: the URL it listens on, or the problem."""

    url: str = ""
    problem: str = ""


class LlamaServing:
    """See `engines.base.Serving`. A `host` that ends in `.sock` is a path: a socket of this computer alone."""

    def __init__(self, model: Path, serve: Serve, start_seconds: float) -> None:
        host, port = serve.host, serve.port
        if host.endswith(".sock"):
            Path(host).unlink(missing_ok=True)  # one that was killed leaves it, and it cannot be bound again
        else:
            check_port(host, port)
        self._child = Child(__name__, native.environment_of(serve.settings), name="the server")
        try:
            self._child.send(msgspec.json.encode(serve))
            document, _ = self._child.receive(start_seconds, f"starting to serve `{model.name}`")
            up = msgspec.json.decode(document, type=Up)
            if up.problem:
                raise EngineError(
                    f"the engine cannot serve `{model.name}`: {self._child.telling_line() or up.problem}"
                )
        except BaseException:
            self.close()
            raise
        self.url = up.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process_id(self) -> int:
        return self._child.process.pid

    def ended(self) -> str | None:
        """How the server ended, in the engine's own words; None while it runs."""
        return None if self._child.process.poll() is None else str(self._child.died())

    def close(self) -> None:
        self._child.close(grace_seconds=5.0)

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._child.kill()
        self._child.close()


def check_port(host: str, port: int) -> None:
    """Raises Unavailable if `port` is taken; the engine itself would only say that it failed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {host}:{port}: {error.strerror}", hint="`--port 0` takes a free one"
            ) from error


def parameters(x: Any, serve: Serve) -> Any:
    """xllamacpp's CommonParams for `serve`."""
    settings = serve.settings
    params = x.CommonParams()
    params.model.path = serve.path
    params.model_alias = {serve.alias}
    params.hostnames = [serve.host]
    params.port = serve.port
    params.n_parallel = settings.sequences
    params.n_ctx = settings.context_tokens
    params.n_ubatch = settings.micro_batch
    params.cpuparams.n_threads = settings.threads
    params.cpuparams_batch.n_threads = settings.prefill_threads
    params.no_extra_bufts = not settings.repack
    params.cache_type_k = params.cache_type_v = _cache_types(x)[settings.cache_type]
    params.flash_attn_type = _flash_attention(x)[settings.flash_attention]
    load = x.llama_load_mode
    params.load_mode = load.LLAMA_LOAD_MODE_MMAP if settings.mapped else load.LLAMA_LOAD_MODE_NONE
    _draft(x, params.speculative, settings.drafting)
    params.endpoint_metrics = True
    # in caches apart, texts of a batch are pooled in parts: a wrong vector
    params.embedding = params.kv_unified = serve.embeds
    params.cache_ram_mib = 0  # prompts kept beside the cache are memory that no plan has counted: up to 8 GiB
    params.fit_params = False  # the plan has counted; a second opinion would lower the context silently
    params.ui = False
    return params


def _draft(x: Any, speculative: Any, drafting: Drafting) -> None:
    """What guesses ahead, in the server's words."""
    if drafting.kind == "none":
        return
    kinds = x.common_speculative_type
    speculative.types = [
        {
            "ngram": kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE,
            "model": kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE,
            "mtp": kinds.COMMON_SPECULATIVE_TYPE_DRAFT_MTP,
        }[drafting.kind]
    ]
    speculative.draft.n_max = drafting.tokens
    speculative.draft.mparams.path = drafting.draft_model
    if drafting.kind == "ngram":
        speculative.ngram_simple.size_n, speculative.ngram_simple.size_m = drafting.matched, drafting.tokens


def _cache_types(x: Any) -> Mapping[str, Any]:
    return {"f16": x.ggml_type.GGML_TYPE_F16, "q8_0": x.ggml_type.GGML_TYPE_Q8_0}


def _flash_attention(x: Any) -> Mapping[str, Any]:
    kind = x.llama_flash_attn_type
    return {
        "auto": kind.LLAMA_FLASH_ATTN_TYPE_AUTO,
        "on": kind.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": kind.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }


def main() -> None:
    """The child: serve until the owner closes our input."""
    die_with_parent()
    out = take_stdout()
    frame = read_frame(sys.stdin.buffer)
    if frame is None:
        return
    import xllamacpp

    try:
        server = xllamacpp.Server(parameters(xllamacpp, msgspec.json.decode(frame[0], type=Serve)))
    except RuntimeError as error:
        write_all(out, pack(msgspec.json.encode(Up(problem=str(error)))))
        return
    write_all(out, pack(msgspec.json.encode(Up(url=server.listening_address))))
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    threading.Event().wait()


def _exit_at_end_of_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
