"""GGUF files of Hugging Face repositories, through `huggingface_hub` and into its own cache.

What the hub's client does not do, since 2.x, is to go on with a download that an earlier run began.
So the bytes are carried here, into a partial file beside the place that the client keeps them in, and
the client then finds them there and finishes its own book-keeping.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from penjing import progress
from penjing.errors import BadFile, Unavailable, UnknownName, UserError
from penjing.fetch.shipped import alone, refuse_if_full, sha256_of
from penjing.units import show_bytes

_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_TYPE = re.compile(r"(?:^|[-._/])((?:I?Q|TQ|MXFP|NVFP|BF|FP?)\d+(?:_\w+)?)(?=[-./])", re.IGNORECASE)
_NOT_A_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_PREFERRED, _LEAST_BITS = "Q4_K_M", 4
_ANSWER_SECONDS = 15


class Candidate(Struct, frozen=True):
    """One model of a repository: the files it is split into, and the type its name tells."""

    name: str
    files: tuple[str, ...]
    n_bytes: int
    type: str | None

    @property
    def bits(self) -> int | None:
        found = re.search(r"\d+", self.type or "")
        return int(found[0]) if found else None


def download(repository: str, kind: str | None = None, file: str | None = None) -> Path:
    """A GGUF of `repository`: `file`, or the one of type `kind`, or a sensible one; of split files the first.

    Without a network, what an earlier run fetched is used.

    Raises:
        Unavailable: `huggingface_hub` is not installed, no network, no space, no access.
        UnknownName: no such repository, or no such file in it.
        BadFile: the repository holds no GGUF, or what arrived is damaged.
    """
    _require_client(repository)
    sizes, snapshot = _list(repository)
    chosen = pick(repository, candidates(sizes), kind, file, len(sizes))
    paths = [snapshot / part if snapshot else _get(repository, part) for part in chosen.files]
    return paths[0]


def candidates(sizes: dict[str, int]) -> list[Candidate]:
    """The models among the files of a repository (path: bytes); sets that lack a part are left out."""
    sets: dict[str, list[str]] = {}
    for path in sorted(sizes):
        if path.lower().endswith(".gguf") and not _NOT_A_MODEL.search(path):
            sets.setdefault(_PART.sub("", path), []).append(path)
    return [_candidate(name, files, sizes) for name, files in sets.items() if _is_complete(files)]


def _candidate(name: str, files: list[str], sizes: dict[str, int]) -> Candidate:
    types = _TYPE.findall(name)
    return Candidate(
        name, tuple(files), sum(sizes[file] for file in files), types[-1].upper() if types else None
    )


def _is_complete(files: list[str]) -> bool:
    part = _PART.search(files[0])
    return part is None or len(files) == int(part[2])


def pick(
    repository: str, found: list[Candidate], kind: str | None, file: str | None, n_files: int
) -> Candidate:
    """The model that is asked for, or Q4_K_M, or the smallest of at least 4 bits; says which, if it chose."""
    if not found:
        raise BadFile(
            f"`{repository}` has no GGUF among its {n_files} files",
            hint=f"look for a conversion, often called `{repository.rpartition('/')[2]}-GGUF`",
        )
    if file or kind:
        return _named(repository, found, kind, file)
    best = _best(found)
    if len(found) > 1:
        others = ", ".join(sorted({other.type for other in found if other.type}))
        progress.say(
            f"{repository}: taking `{best.name}` ({show_bytes(best.n_bytes)}) of {len(found)} files; "
            f"for another type ({others}) write `{repository}:TYPE`"
        )
    return best


def _named(repository: str, found: list[Candidate], kind: str | None, file: str | None) -> Candidate:
    for one in found:
        if file in (one.name, *one.files) or (kind and (one.type or "").lower() == kind.lower()):
            return one
    names = [one.name for one in found] if file else sorted({one.type or one.name for one in found})
    raise UnknownName(
        f"`{repository}` has no `{kind or file}`",
        hint=f"it has {', '.join(f'`{name}`' for name in names[:12])}",
    )


def _best(found: list[Candidate]) -> Candidate:
    preferred = [one for one in found if one.type == _PREFERRED]
    enough = [one for one in found if (one.bits or 0) >= _LEAST_BITS]
    # where all are below 4 bits, or say nothing, the largest loses least
    return min(
        preferred or enough, key=lambda one: one.n_bytes, default=max(found, key=lambda one: one.n_bytes)
    )


def _require_client(repository: str) -> None:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            f"fetching `{repository}` needs the package huggingface_hub", hint="pip install 'penjing[hub]'"
        ) from error


def _list(repository: str) -> tuple[dict[str, int], Path | None]:
    """Bytes of each file of a repository; and if the hub is out of reach, the cached snapshot of them."""
    from huggingface_hub import HfApi

    try:
        with _explained(repository):
            # not `list_repo_tree`: without a network it tries for half a minute
            about = HfApi().model_info(repository, files_metadata=True, timeout=_ANSWER_SECONDS)
            return {file.rfilename: file.size or 0 for file in about.siblings or ()}, None
    except Unreachable:
        snapshot = _snapshot(repository)
        if snapshot is None:
            raise
        progress.say(f"{repository}: the hub cannot be reached, using what was fetched before")
        files = (path for path in snapshot.rglob("*") if path.is_file())
        return {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in files}, snapshot


def _folder(repository: str) -> Path:
    """Where the hub's cache keeps a repository: `blobs/` by hash, `snapshots/` by commit, `refs/`."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def _snapshot(repository: str) -> Path | None:
    folder = _folder(repository)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        return snapshot if snapshot.is_dir() else None
    return None


def _get(repository: str, file: str) -> Path:
    """The file in the hub's cache, fetched as far as it is missing there."""
    from huggingface_hub import (
        constants,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    with _explained(repository):
        url = hf_hub_url(repository, file)
        about = get_hf_file_metadata(url)
        known = try_to_load_from_cache(repository, file, revision=about.commit_hash)
        plain = about.etag and re.fullmatch(r"[\w-]+", about.etag)
        # above the limit for plain downloads the client has ways of its own
        if (
            not isinstance(known, str)
            and plain
            and about.size
            and about.size <= constants.MAX_HTTP_DOWNLOAD_SIZE
        ):
            _carry(url, _folder(repository) / "blobs" / str(about.etag), about.size)
        return Path(hf_hub_download(repository, file))


def _carry(url: str, blob: Path, n_bytes: int) -> None:
    """Fetch `url` into `blob`, going on where an earlier run stopped; checked before it takes its place."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    partial = blob.with_name(f"{blob.name}.penjing.incomplete")
    blob.parent.mkdir(parents=True, exist_ok=True)
    with alone(f"{blob.name}.lock"):
        if blob.exists():
            return
        with partial.open("ab") as file:
            if file.tell() > n_bytes:
                file.truncate(0)
            done = file.tell()
            refuse_if_full(blob.parent, n_bytes - done, "HF_HOME")
            if done:
                progress.say(f"going on at {show_bytes(done)} of {show_bytes(n_bytes)}")
            http_get(url, file, resume_size=done, headers=build_hf_headers(), expected_size=n_bytes)
        _check(partial, blob.name)
        partial.replace(blob)


def _check(partial: Path, etag: str) -> None:
    """Large files are named by their SHA-256 at the hub; raise BadFile if this one is another."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return
    found = sha256_of(partial)
    if found != etag:
        partial.unlink()
        raise BadFile(
            f"what arrived is not what the hub announced: its SHA-256 begins {found[:12]}, not {etag[:12]}",
            hint="run the same command again; it starts from the beginning",
        )


class Unreachable(Unavailable):
    """The hub gave no answer, or none that can be used."""

    def __init__(self, repository: str, why: str) -> None:
        super().__init__(
            f"the hub cannot be reached for `{repository}`: {why}",
            hint="check the network and run the same command again: what was fetched is kept",
        )


@contextlib.contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn the errors of the hub's client, and of the transport under it, into ours."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        ours = _refused(repository, error) or _broken(repository, error)
        if ours is None:
            raise
        raise ours from error


def _refused(repository: str, error: Exception) -> UserError | None:
    """For an answer of the hub that is a no."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return Unavailable(
            f"`{repository}` is open only to those who asked for it",
            hint="ask on its page at the hub, then `hf auth login`",
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return UnknownName(
            f"`{repository}` is neither here nor a repository of the hub that you may read",
            hint="check the name; a private repository needs `hf auth login`",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return UnknownName(
            f"`{repository}` does not have that file any more", hint=f"`penjing run {repository}` picks one"
        )
    return None


def _broken(repository: str, error: Exception) -> UserError | None:
    """For what failed on the way, here or in the network."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return Unreachable(repository, f"status {error.response.status_code}")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Unavailable(
            "the disk of the hub's cache is full",
            hint="free some space, or name another folder: `HF_HOME=/path/with/space`",
        )
    if isinstance(error, OSError) and error.filename:
        return Unavailable(
            f"cannot write `{error.filename}`: {error.strerror}",
            hint="name a folder that you may write to: `HF_HOME=/path`",
        )
    # the client's transport has changed its name over its versions
    transport = type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3"))
    if transport or isinstance(error, OSError):
        return Unreachable(repository, str(error) or type(error).__name__)
    return None
