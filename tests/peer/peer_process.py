"""llama-cpp-python in a child process: another build of llama.cpp, asked what it would do.

It is a child because two builds of llama.cpp do not belong in one process, and because a file can abort it.
`python peer_process.py` reads one JSON object per line, `{"do": NAME, ...}`, and answers each with one line.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

_LINE = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), .*?(?:\((\w+)\))?$", re.MULTILINE)
_MOST_TOKENS = 512


class Peer:
    """The child, seen from the tests."""

    def __enter__(self) -> Peer:
        self._errors = TemporaryFile("w+")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._child = subprocess.Popen([sys.executable, __file__], text=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()
        self._errors.close()

    def version(self) -> str:
        """Of the llama.cpp in it."""
        return self._ask(do="version")

    def planned_types(self, source: Path, file_type: int, **options: Any) -> dict[str, str]:
        """The type of every tensor that `llama_model_quantize` would store, by a dry run; options as `quantize`."""
        return self._ask(do="planned_types", source=str(source), file_type=file_type, **options)

    def quantize(
        self,
        source: Path,
        target: Path,
        file_type: int,
        *,
        pure: bool = False,
        importance: bool = False,
        overrides: Sequence[tuple[str, int]] = (),
    ) -> None:
        """`importance` gives an importance matrix; `overrides` are (pattern, number of a type)."""
        options = {"pure": pure, "importance": importance, "overrides": overrides}
        self._ask(do="quantize", source=str(source), target=str(target), file_type=file_type, **options)

    def continuation(self, model: Path, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` most probable tokens after `tokens`, one after the other."""
        return self._ask(do="continuation", model=str(model), tokens=tokens, count=count)

    def logits(self, model: Path, tokens: Sequence[int], out: Path) -> None:
        """Write the logits after every token to `out`, as numpy does."""
        self._ask(do="logits", model=str(model), tokens=tokens, out=str(out))

    def _ask(self, **job: Any) -> Any:
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(json.dumps(job) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass
        reply = self._child.stdout.readline()
        self._errors.seek(0)
        assert reply, f"the peer died of {job}:\n{self._errors.read()[-2000:]}"
        done = json.loads(reply)
        assert "answer" in done, f"{job}: {done['refused']}"
        return done["answer"]


# ---- in the child --------------------------------------------------------------------------------------------


def version() -> str:
    return _llama().llama_version().decode()


def planned_types(source: str, file_type: int, **options: Any) -> dict[str, str]:
    log = _quantize(source, source + ".dry", file_type, dry_run=True, **options)
    return {name: after or before for name, before, after in _LINE.findall(log)}


def quantize(source: str, target: str, file_type: int, **options: Any) -> None:
    _quantize(source, target, file_type, **options)


def continuation(model: str, tokens: list[int], count: int) -> list[int]:
    opened = _open(model)
    found: list[int] = []
    for _ in range(count):
        opened.eval(found[-1:] or tokens)
        found.append(int(opened.scores[opened.n_tokens - 1].argmax()))
    return found


def logits(model: str, tokens: list[int], out: str) -> None:
    import numpy as np

    opened = _open(model)
    opened.eval(tokens)
    np.save(out, opened.scores[: len(tokens)])


def _quantize(
    source: str,
    target: str,
    file_type: int,
    *,
    dry_run: bool = False,
    pure: bool = False,
    importance: bool = False,
    overrides: Sequence[tuple[str, int]] = (),
) -> str:
    """What the quantizer said."""
    llama = _llama()
    settings = llama.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.allow_requantize = file_type, 2, True
    settings.dry_run, settings.pure = dry_run, pure
    patterns = [llama.llama_model_tensor_override(pattern.encode(), kind) for pattern, kind in overrides]
    settings.tt_overrides = _ended(llama.llama_model_tensor_override, patterns)
    if importance:
        value = (ctypes.c_float * 1)(1)
        settings.imatrix = _ended(
            llama.llama_model_imatrix_data, [llama.llama_model_imatrix_data(b"any", value, 1)]
        )
    code, log = _heard(
        lambda: llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings))
    )
    if code:
        raise RuntimeError(log[-300:])
    return log


def _heard(call: Callable[[], int]) -> tuple[int, str]:
    """What a call gave, and what llama.cpp said meanwhile."""
    llama, said = _llama(), list[bytes]()
    listen = llama.llama_log_callback(lambda _level, text, _data: said.append(text))
    llama.llama_log_set(listen, None)
    code = call()
    llama.llama_log_set(_SILENT, None)
    return code, b"".join(said).decode()


def _ended(kind: Any, items: list[Any]) -> Any:
    """A C array that ends with an empty item."""
    return (kind * (len(items) + 1))(*items)


def _open(model: str) -> Any:
    """One thread, and nothing else chosen."""
    import llama_cpp

    return llama_cpp.Llama(
        model, n_ctx=_MOST_TOKENS, n_batch=_MOST_TOKENS, n_threads=1, n_threads_batch=1,
        logits_all=True, verbose=False,
    )  # fmt: skip


def _llama() -> Any:
    from llama_cpp import llama_cpp

    return llama_cpp


def main() -> None:
    global _SILENT
    llama = _llama()
    _SILENT = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(_SILENT, None)
    jobs: Mapping[str, Any] = {
        f.__name__: f for f in (version, planned_types, quantize, continuation, logits)
    }
    for line in sys.stdin:
        job = json.loads(line)
        try:
            reply = {"answer": jobs[job.pop("do")](**job)}
        except Exception as error:
            reply = {"refused": str(error)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
