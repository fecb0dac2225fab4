"""Files of our own: the cache folder, atomic writes, and reads that shrug at damage."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from penjing.errors import BadFile, Unavailable, UserError

T = TypeVar("T")


def cache_dir() -> Path:
    """`$PENJING_CACHE`, or `penjing` in the user's cache folder."""
    chosen = os.environ.get("PENJING_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penjing"


def remember(name: str, value: object) -> bool:
    """Keep `value` as JSON under `name` in the cache; False if the folder cannot be written.

    A cache is a convenience: a full or read-only disk must not stop the work.
    """
    try:
        write_atomically(cache_dir() / name, msgspec.json.format(msgspec.json.encode(value)))
    except UserError:
        return False
    return True


def recall(name: str, kind: type[T]) -> T | None:
    """The value kept under `name`, or None if there is none, or it is damaged or of an older form."""
    try:
        return msgspec.json.decode((cache_dir() / name).read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def read_json(path: Path, kind: type[T]) -> T:
    """The value in a JSON file that the user names.

    Raises:
        BadFile: the file cannot be read, or its content is not a `kind`; says where.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise BadFile(f"cannot read `{path}`: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BadFile(
            f"`{path}` is not a {kind.__name__}: {error}",
            hint=f"`penjing {kind.__name__.lower()} --help` shows how to make one",
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either what it held before or all of it.

    Raises:
        Unavailable: no space, no permission.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, flushed to disk, when the block succeeds.

    Raises:
        Unavailable: no space, no permission.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())  # what any other new file would get
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps other processes from making `out` while the block runs.

    The lock is on the file `OUT.lock`, and goes with the process, however that ends.

    Raises:
        Unavailable: another process is making it, or the folder cannot be written.
    """
    import fcntl

    lock = out.with_name(out.name + ".lock")
    try:
        file = lock.open("wb")
    except OSError as error:
        raise _unwritable(lock, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = out.with_name(f"{out.stem}-2{out.suffix}")
            raise Unavailable(
                f"another process is making `{out}`",
                hint=f"wait for it, or take another name: `--out {other}`",
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> Unavailable:
    do = "free some space there" if error.errno == errno.ENOSPC else "see who may write there: `ls -ld`"
    if path.is_relative_to(cache_dir()):
        do += ", or name another folder: `PENJING_CACHE=/path`"
    return Unavailable(f"cannot write `{path}`: {error.strerror}", hint=do)
