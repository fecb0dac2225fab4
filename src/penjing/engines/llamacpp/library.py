"""The pinned library: where it lies, whether this machine can run it, and the guarded binding to it.

A binding for one llama.cpp run on another writes into wrong fields without any error, so nothing is
called before the version, the default parameters and the type names agree with `llama.h` of ours.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

from penjing.errors import EngineUnusable

PACKAGE = "xllamacpp"
PINNED = "2026.10.11549"
LLAMA_VERSION = "0.6.0-dev"
CHOSEN = "PENJING_ENGINE_LIBRARY"
_CPU_FLAGS = ("avx2", "fma", "f16c", "bmi2")  # what the wheel was compiled for
CACHE_TYPES = {"f16": 1, "q8_0": 8}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
REPACKED_X86 = ("q4_0", "q4_K", "iq4_nl")
REPACKED_ARM = ("q4_0", "q4_K", "q5_K", "q6_K", "q8_0", "iq4_nl")
_TYPE_NAMES = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    8: "q8_0",
    12: "q4_K",
    14: "q6_K",
    23: "iq4_xs",
    39: "mxfp4",
}


def check(cpuinfo: Path = Path("/proc/cpuinfo"), openmp: str = "libgomp.so.1", pinned: str = PINNED) -> None:
    """Raises EngineUnusable if the engine cannot run here; loads nothing of it."""
    _check_version(pinned)
    if sys.platform == "linux":
        _check_openmp(openmp)
        if platform.machine() == "x86_64":
            _check_cpu(cpuinfo.read_text() if cpuinfo.exists() else "")


def _check_version(pinned: str) -> None:
    import importlib.metadata  # 2 MB, that a server can do without

    hint = f"pip install '{PACKAGE}=={pinned}'"
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise EngineUnusable(f"the engine {PACKAGE} {pinned} is not installed", hint=hint) from None
    if version != pinned:
        raise EngineUnusable(f"{PACKAGE} is {version}, but this penjing is made for {pinned}", hint=hint)


def _check_openmp(name: str) -> None:
    import ctypes

    try:
        ctypes.CDLL(name)
    except OSError:
        raise EngineUnusable(
            f"the engine needs the system library {name}, which is missing",
            hint="apt-get install libgomp1, or: dnf install libgomp",
        ) from None


def _check_cpu(cpuinfo: str) -> None:
    flags = next(
        (line.split(":", 1)[1].split() for line in cpuinfo.splitlines() if line.startswith("flags")), None
    )
    missing = [flag for flag in _CPU_FLAGS if flags is not None and flag not in flags]
    if missing:
        raise EngineUnusable(
            f"the engine was compiled for CPUs with {', '.join(_CPU_FLAGS)}, and this one lacks {', '.join(missing)}",
            hint=f"build it for this CPU: `pip install --no-binary {PACKAGE} {PACKAGE}=={PINNED}`",
        )


def library_path() -> Path:
    """The extension file itself; found without importing the package.

    `$PENJING_ENGINE_LIBRARY`, set for child processes, names that of another build of the same version.
    """
    if chosen := os.environ.get(CHOSEN):
        return Path(chosen)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise EngineUnusable(f"{PACKAGE} is not installed", hint=f"pip install '{PACKAGE}=={PINNED}'")
    return path_in(Path(spec.origin).parent.parent)


def path_in(place: Path) -> Path:
    """The extension file of the package that is installed in `place`."""
    found = sorted((place / PACKAGE).glob(f"{PACKAGE}*.so"))
    if not found:
        raise EngineUnusable(f"{PACKAGE} has no library in `{place / PACKAGE}`", hint="install it again")
    return found[0]


def bind(*headers: str) -> tuple[Any, Any]:
    """(ffi, library), guarded, with the declarations of llama.h and of further `headers` beside it.

    Models are to be loaded in a child process only: a damaged one can abort it.

    Raises:
        EngineUnusable: the library is not the one that `llama.h` describes.
    """
    from cffi import FFI

    ffi = FFI()
    for name in ("llama.h", *headers):
        ffi.cdef(Path(__file__).with_name(name).read_text())
    try:
        library = ffi.dlopen(str(library_path()))
    except OSError as error:
        raise EngineUnusable(
            f"the engine's library does not load: {error}", hint=f"pip install '{PACKAGE}=={PINNED}'"
        ) from error
    _guard(ffi, library)
    return ffi, library


def _guard(ffi: Any, library: Any) -> None:
    context = library.llama_context_default_params()
    model = library.llama_model_default_params()
    seen = {
        "version": ffi.string(library.llama_version()).decode(),
        "context": (context.n_ctx, context.n_batch, context.n_ubatch, context.type_k, context.type_v),
        "flags": (context.offload_kqv, context.no_perf, context.swa_full, context.kv_unified),
        "model": (model.n_gpu_layers, model.load_mode, model.use_extra_bufts, model.check_tensors),
        "types": {number: ffi.string(library.ggml_type_name(number)).decode() for number in _TYPE_NAMES},
    }
    expected = {
        "version": LLAMA_VERSION,
        "context": (512, 2048, 512, 1, 1),
        "flags": (True, True, True, False),
        "model": (-1, -1, True, False),
        "types": _TYPE_NAMES,
    }
    for part, value in expected.items():
        if seen[part] != value:
            raise EngineUnusable(
                f"the engine's library is not the one this penjing is made for: {part} is {seen[part]}, not {value}",
                hint=f"pip install --force-reinstall '{PACKAGE}=={PINNED}'",
            )
