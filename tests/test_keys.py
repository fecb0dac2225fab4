"""Keys: made once, kept as hashes, compared in constant time, held to a budget."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from commands import penjing, refused
from penjing.serve import keys
from penjing.serve.problems import Problem


def shows(ring: keys.Ring, secret: str) -> str:
    return ring.owner(f"Bearer {secret}")


def refusal_of(ring: keys.Ring, authorization: str | None) -> Problem:
    with pytest.raises(Problem) as caught:
        ring.owner(authorization)
    return caught.value


def test_a_key_opens_and_only_its_hash_is_kept(tmp_path: Path):
    """The file holds neither the key nor a part of it, and only its owner may read it."""
    path = tmp_path / "deep" / "keys.json"
    secret = keys.add(path, "alice", None)

    assert shows(keys.Ring(path), secret) == "alice"
    assert secret[3:12] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "shown", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic {}", "{}", "Bearer {}x"]
)
def test_anything_else_is_a_401(tmp_path: Path, shown: str | None):
    path = tmp_path / "keys.json"
    secret = keys.add(path, "alice", None)

    assert refusal_of(keys.Ring(path), shown and shown.format(secret)).status == 401


@pytest.mark.parametrize("which", [0, 2, None], ids=["the first", "the last", "none"])
def test_every_key_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int | None):
    """Each time, and by a comparison whose time does not depend on where two differ, whether one is right or none."""
    path, compared = tmp_path / "keys.json", []
    secrets = [keys.add(path, name, None) for name in ("one", "two", "three")]
    ring, honest = keys.Ring(path), keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(a) or honest(a, b))
    if which is None:
        assert refusal_of(ring, "Bearer wrong").status == 401
    else:
        assert shows(ring, secrets[which]) == ("one", "two", "three")[which]

    assert compared == [key.digest for key in keys.load(path)]


def test_changes_count_at_once(tmp_path: Path):
    """A running server takes a new key and refuses a removed one; without the file nobody comes in."""
    path = tmp_path / "keys.json"
    ring = keys.Ring(path)
    assert refusal_of(ring, "Bearer x").status == 401
    one, two = keys.add(path, "one", None), keys.add(path, "two", None)
    assert [shows(ring, one), shows(ring, two)] == ["one", "two"]
    keys.remove(path, "one")
    assert refusal_of(ring, f"Bearer {one}").status == 401 and shows(ring, two) == "two"
    path.write_text("{broken")
    assert shows(ring, two) == "two"
    path.unlink()
    assert refusal_of(ring, f"Bearer {two}").status == 401


def test_a_budget_is_spent(tmp_path: Path):
    """Beyond its tokens a key is told when to come again; others are not held by it."""
    path = tmp_path / "keys.json"
    small, other = keys.add(path, "small", 100), keys.add(path, "other", None)
    ring = keys.Ring(path)
    assert shows(ring, small) == "small" and shows(ring, other) == "other"
    for name in ("small", "other"):
        ring.check_budget(name)
        ring.spend(name, 150)

    with pytest.raises(Problem) as caught:
        ring.check_budget("small")
    found = caught.value
    assert (found.status, found.code) == (429, "budget_spent")
    assert found.retry_after is not None and 1500 < found.retry_after < 2000
    ring.check_budget("other")


def test_the_command_makes_lists_and_removes(tmp_path: Path):
    """The key is the only thing on stdout; a list shows names, never keys."""
    where = ("--keys", str(tmp_path / "keys.json"))
    made = penjing("keys", "add", "alice", "--tokens-per-hour", "5000", *where)
    assert made.code == 0 and shows(keys.Ring(tmp_path / "keys.json"), made.stdout.strip()) == "alice"
    listed = json.loads(penjing("keys", "list", "--json", *where).stdout)
    assert listed == [{"name": "alice", "tokens_per_hour": 5000}]
    assert refused("keys", "add", "alice", *where)[1] == "penjing keys remove alice"
    assert penjing("keys", "remove", "alice", *where).code == 0
    assert refused("keys", "remove", "alice", *where) == ("there is no key `alice`", "penjing keys list")
    assert refused("keys", "add", *where)[1] == "penjing keys add alice"


def test_a_damaged_file_is_one_line(tmp_path: Path):
    (tmp_path / "keys.json").write_text("[]")

    assert "is not a Keys" in refused("keys", "list", "--keys", str(tmp_path / "keys.json"))[0]
