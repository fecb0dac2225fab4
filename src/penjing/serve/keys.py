"""Keys of the API: kept as hashes, compared in constant time, each with a name and perhaps a budget."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from penjing import store
from penjing.errors import BadFile, UnknownName, UsageError
from penjing.serve.fairness import Bucket
from penjing.serve.problems import Problem

_PREFIX = "pj-"


class Key(Struct, frozen=True):
    """What is kept of a key: it cannot be made from its digest (SHA-256 of 256 random bits)."""

    name: str
    digest: str
    tokens_per_hour: int | None = None


class Keys(Struct, frozen=True):
    """The file of keys."""

    keys: tuple[Key, ...] = ()


def usual_file() -> Path:
    """`$PENJING_KEYS`, or `penjing/keys.json` in the user's configuration folder."""
    chosen = os.environ.get("PENJING_KEYS")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "penjing" / "keys.json"


def load(path: Path) -> tuple[Key, ...]:
    """The keys in a file; none if there is no file."""
    return store.read_json(path, Keys).keys if path.exists() else ()


def add(path: Path, name: str, tokens_per_hour: int | None) -> str:
    """Make a key and keep its hash; the key itself is returned, and nowhere kept."""
    found = load(path)
    if any(key.name == name for key in found):
        raise UsageError(f"there is a key `{name}` already", hint=f"penjing keys remove {name}")
    secret = _PREFIX + secrets.token_urlsafe(32)
    _write(path, (*found, Key(name, digest(secret), tokens_per_hour)))
    return secret


def remove(path: Path, name: str) -> None:
    found = load(path)
    left = tuple(key for key in found if key.name != name)
    if len(left) == len(found):
        raise UnknownName(f"there is no key `{name}`", hint="penjing keys list")
    _write(path, left)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    with store.replacing(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(Keys(keys))))
        temporary.chmod(0o600)


class Ring:
    """The keys of a running server, read again when their file changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._keys: tuple[Key, ...] = ()
        self._buckets: dict[str, Bucket] = {}
        self.renew()

    @property
    def asked(self) -> bool:
        """Requests need a key."""
        return self._path is not None

    def renew(self) -> None:
        """Read the file if it changed; a damaged one changes nothing, so that nobody is let in by it."""
        if self._path is None:
            return
        try:
            found = self._path.stat()
        except OSError:
            self._keys, self._stamp = (), None
            return
        stamp = found.st_mtime_ns, found.st_ino
        if stamp != self._stamp:
            with contextlib.suppress(BadFile):
                self._keys, self._stamp = load(self._path), stamp

    def owner(self, authorization: str | None) -> str:
        """The name of the key that a request shows; empty where none is asked for.

        Every key is compared, in the same time whether one is right or none.

        Raises:
            Problem: 401 without a right key.
        """
        if not self.asked:
            return ""
        self.renew()
        scheme, _, secret = (authorization or "").partition(" ")
        shown = digest(secret.strip()) if scheme.lower() == "bearer" else digest("")
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, shown):
                found = key
        if found is None:
            raise Problem(401, "a key is needed: `Authorization: Bearer KEY`", code="invalid_api_key")
        return found.name

    def spend(self, name: str, tokens: int) -> None:
        """`tokens` were given to a key."""
        if (bucket := self._bucket(name)) is not None:
            bucket.take(tokens, time.monotonic())

    def check_budget(self, name: str) -> None:
        """Raises Problem: 429 when the budget of a key is spent."""
        bucket = self._bucket(name)
        wait = 0.0 if bucket is None else bucket.wait_seconds(time.monotonic())
        if bucket is not None and wait > 0:
            text = f"the key `{name}` has spent its {bucket.tokens_per_hour} tokens an hour"
            raise Problem(429, text, code="budget_spent", retry_after=int(wait) + 1)

    def _bucket(self, name: str) -> Bucket | None:
        """The bucket of a key that has a budget; a new one where the budget has changed."""
        limit = next((key.tokens_per_hour for key in self._keys if key.name == name), None)
        found = self._buckets.get(name)
        if limit is None:
            self._buckets.pop(name, None)
            return None
        if found is None or found.tokens_per_hour != limit:
            found = self._buckets[name] = Bucket(limit, time.monotonic())
        return found
