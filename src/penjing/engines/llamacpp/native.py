"""The pinned engine, compiled on this machine for its own processor.

The wheel is made for every CPU with AVX2; the same source compiled here uses all that this CPU has. The package's own
build is called through pip, without the parts that would fetch more from the internet (HTTPS in the server, LLGuidance
grammars, the web page). A build is complete and tried before it gets its name: half of one is never found.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from penjing import store
from penjing.engines.llamacpp import library
from penjing.engines.llamacpp.kernels import KernelTimer
from penjing.errors import EngineError, EngineUnusable, Unavailable, UserError
from penjing.plan import Settings
from penjing.rates import Kernel
from penjing.units import GIB, show_bytes

_CMAKE_ARGS = "-DLLAMA_BUILD_BORINGSSL=OFF -DLLAMA_LLGUIDANCE=OFF -DLLAMA_USE_PREBUILT_UI=OFF"
_ROOM_BYTES = 2 * GIB  # sources and objects
_SHARE = re.compile(rb"\[ *(\d+)%\]")
_FAILED = re.compile(rb"\berror:|CMake Error", re.IGNORECASE)
_ELSEWHERE = "choose another place: `PENJING_CACHE=FOLDER penjing engine build`"
_NOTE = "build.json"
_HUGE_PAGES = "glibc.malloc.hugetlb=1"  # since glibc 2.35; others do not read it
_TRIED = ("q4_0", "q4_K", "q8_0", "f16", "iq4_xs")


class Build(Struct, frozen=True):
    """An engine compiled here. `seconds` is what it took; `flags` are the processor's that it was made for."""

    name: str
    version: str
    compiler: str
    flags: tuple[str, ...]
    seconds: float
    built: str


def folder() -> Path:
    """Where the build for this processor and Python lies, or would lie."""
    from penjing.probe import cpu  # here, because a server of the wheel would carry a megabyte for nothing

    made_for = f"{cpu.name()} {' '.join(_cpu_flags())} {sys.implementation.cache_tag}"
    mark = hashlib.sha256(made_for.encode()).hexdigest()[:8]
    return store.cache_dir() / "engines" / f"{library.PACKAGE}-{library.PINNED}-native-{mark}"


def found() -> Build | None:
    """The build for this processor and version, if there is a whole one."""
    path = folder()
    if not any((path / library.PACKAGE).glob(f"{library.PACKAGE}*.so")):
        return None
    try:
        return store.read_json(path / _NOTE, Build)
    except UserError:
        return None


def environment(build: str) -> dict[str, str]:
    """What a child process has to know to use a build; its server imports the package, the rest opens the library."""
    if build != "native":
        return {}
    if found() is None:
        raise EngineUnusable("there is no native build of the engine here", hint="penjing engine build")
    path = os.pathsep.join(filter(None, [str(folder()), os.environ.get("PYTHONPATH")]))
    return {library.CHOSEN: str(library.path_in(folder())), "PYTHONPATH": path}


def environment_of(settings: Settings) -> dict[str, str]:
    """What a child process that runs `settings` has to know: the build, and that its memory is to lie in huge pages.

    A 4 KiB page for every 4 KiB of weights takes more translations than a processor keeps (docs/log.md: up to 7 % of a
    prefill). The engine as installed with a mapped file is left as it is: that is what others run, and compare with.
    """
    found = environment(settings.build)
    if settings.build == "wheel" and settings.mapped:
        return found
    tunables = filter(None, (os.environ.get("GLIBC_TUNABLES"), _HUGE_PAGES))
    return found | {"GLIBC_TUNABLES": ":".join(tunables)}


def build(progress: Callable[[float], None]) -> Build:
    """Compile the engine, try it, and give it its name; `progress` is told the share done, 0 to 1.

    Raises:
        EngineUnusable: no cmake, compiler or pip.
        Unavailable: no room on the disk, no permission.
        EngineError: the build failed, or what it made does not run; names the log.
    """
    compiler = check_tools()
    target = folder()
    work = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        return _built(work, target, compiler, progress)
    except OSError as error:
        problem = f"cannot build in `{target.parent}`: {error.strerror}"
        raise Unavailable(problem, hint=_ELSEWHERE) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _built(work: Path, target: Path, compiler: str, progress: Callable[[float], None]) -> Build:
    from penjing.probe import cpu

    stage, log, start = work / "engine", target.with_name(target.name + ".log"), time.monotonic()
    _install(stage, work, log, progress)
    try_out(stage, log)
    seconds = time.monotonic() - start
    built = Build("native", library.PINNED, compiler, cpu.isa(), seconds, _today())
    store.write_atomically(stage / _NOTE, msgspec.json.format(msgspec.json.encode(built)))
    if target.exists():
        target.replace(work / "old")
    stage.replace(target)
    return built


def try_out(place: Path, log: Path) -> None:
    """Run kernels of the library in `place`; raises EngineError if they do not answer."""
    try:
        with KernelTimer({library.CHOSEN: str(library.path_in(place))}) as timer:
            for kind in _TRIED:
                timer.time([Kernel(kind, 256, 512, 8, 2)], 1, 0)
    except UserError as error:
        raise EngineError(f"the engine was built but does not run: {error}", hint=f"less {log}") from error


def _install(stage: Path, work: Path, log: Path, progress: Callable[[float], None]) -> None:
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--verbose", "--no-deps",
        "--no-binary", library.PACKAGE, "--no-cache-dir", "--target", str(stage),
        f"{library.PACKAGE}=={library.PINNED}",
    ]  # fmt: skip
    # pip unpacks and compiles in TMPDIR: ours goes with us, whatever happens
    environment = {**os.environ, "CMAKE_ARGS": _CMAKE_ARGS, "TMPDIR": str(work)}
    environment.pop("XLLAMACPP_RELEASE", None)  # would compile for every CPU
    said = b""
    with log.open("wb", buffering=0) as kept, _running(command, environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            said = said or (line.strip() if _FAILED.search(line) else b"")
            if share := _SHARE.search(line):
                progress(int(share[1]) / 100)
    if process.returncode != 0:
        words = said.decode("utf-8", "replace")[:300] or f"pip ended with {process.returncode}"
        raise EngineError(f"the engine could not be built: {words}", hint=f"less {log}")


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all its children, ended together if the block is left early."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        yield process
        process.wait()
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def check_tools() -> str:
    """The compiler's name and version.

    Raises:
        EngineUnusable: no cmake, compiler or pip; says how to get them.
    """
    compiler = next(
        (c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None
    )
    missing = [
        name
        for name, there in (
            ("cmake", shutil.which("cmake")),
            ("C++ compiler", compiler),
            ("Python.h", (Path(sysconfig.get_path("include")) / "Python.h").exists()),
        )
        if not there
    ]
    if missing:
        raise EngineUnusable(
            f"the engine cannot be compiled here: no {' and no '.join(missing)}", hint=_how_to_install()
        )
    assert compiler is not None
    if subprocess.run(
        [sys.executable, "-m", "pip", "--version"], capture_output=True, check=False
    ).returncode:
        raise EngineUnusable(
            "the engine cannot be compiled here: pip is missing", hint=f"{sys.executable} -m ensurepip"
        )
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    return said.splitlines()[0] if said else compiler


def _how_to_install() -> str:
    known = {
        "apt-get": "apt-get install cmake g++ python3-dev",
        "dnf": "dnf install cmake gcc-c++ python3-devel",
        "zypper": "zypper install cmake gcc-c++ python3-devel",
        "pacman": "pacman -S cmake gcc",
        "brew": "brew install cmake",
    }
    return next(
        (hint for tool, hint in known.items() if shutil.which(tool)), "install cmake and a C++ compiler"
    )


def _check_room(place: Path) -> None:
    free = shutil.disk_usage(place).free
    if free < _ROOM_BYTES:
        raise Unavailable(
            f"a build needs {show_bytes(_ROOM_BYTES)}, but the disk of `{place}` has {show_bytes(free)} left",
            hint=_ELSEWHERE,
        )


def _cpu_flags() -> list[str]:
    """All that the processor says it can: the compiler uses more of it than we have names for."""
    from penjing.probe import cpu
    from penjing.probe.text import ROOT, read

    fields = cpu.parse_cpuinfo(read(ROOT / "proc/cpuinfo"))
    return sorted(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
