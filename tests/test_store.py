"""Files of our own: written whole or not at all, and read with a shrug where only a cache is at stake."""

from __future__ import annotations

import os
import shutil
import sys
from subprocess import PIPE, Popen

import pytest

from penjing import store
from penjing.errors import BadFile, Unavailable
from penjing.fingerprint import fingerprint
from penjing.probe.load import busy_share
from penjing.rates import Knobs, Rates
from penjing.workload import Workload

_TAKE = """
import sys
from pathlib import Path
from penjing import store
from penjing.errors import UserError
lock = store.alone(Path(sys.argv[1]))
try:
    lock.__enter__()
except UserError as error:
    sys.exit(f"{error}; {error.hint}")
print("taken", flush=True)
"""
KNOBS = Knobs("decode", 2, True, "auto", "f16", 0)


def test_what_is_remembered_is_recalled():
    """A value survives the cache unchanged."""
    rates = Rates("1").add(KNOBS, 8, 64, (0.5, 0.25))

    assert store.remember("rates/a.json", rates)
    assert rates == store.recall("rates/a.json", Rates)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"engine_version": 3}', b"\xff\x00" * 50, b"[" * 100_000])
def test_damage_counts_as_nothing_known(damage):
    """A damaged cache file is as good as none, and can be written again."""
    path = store.cache_dir() / "rates" / "a.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(damage)

    assert store.recall("rates/a.json", Rates) is None
    assert store.remember("rates/a.json", Rates("1"))
    assert Rates("1") == store.recall("rates/a.json", Rates)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """When writing breaks off, the file still holds what it held, and nothing else is left behind."""
    path = tmp_path / "value.json"
    store.write_atomically(path, b"old")
    with pytest.raises(RuntimeError), store.replacing(path) as temporary:
        temporary.write_bytes(b"half of the new")
        raise RuntimeError("interrupted")

    assert b"old" == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_one_process_at_a_time_makes_a_file(tmp_path):
    """Who comes second is told so, whatever he would have overwritten; after the first one the place is free."""
    out = tmp_path / "small.gguf"
    with store.alone(out):
        taken = Popen([sys.executable, "-c", _TAKE, str(out)], stderr=PIPE, text=True).communicate()[1]
        with store.alone(tmp_path / "other.gguf"):
            pass
    with store.alone(out):
        pass

    assert "another process is making" in taken and "small-2.gguf" in taken
    assert [] == list(tmp_path.iterdir())


def test_a_killed_process_leaves_no_lock(tmp_path):
    """What it held is free at once, although its file is still there."""
    out = tmp_path / "small.gguf"
    with Popen([sys.executable, "-c", _TAKE + "input()", str(out)], stdin=PIPE, stdout=PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"taken\n"
        holder.kill()

    assert out.with_name("small.gguf.lock").exists()
    with store.alone(out):
        pass


def test_an_unwritable_place_is_said_in_words(tmp_path, monkeypatch):
    """Where no folder can be made the error names it; a cache alone only says that it was not kept."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match=r"cannot write `.*/file/value\.json`"):
        store.write_atomically(tmp_path / "file" / "value.json", b"x")

    monkeypatch.setenv("PENJING_CACHE", str(tmp_path / "file"))
    assert not store.remember("a.json", Rates("1"))


def test_a_file_of_the_user_is_not_shrugged_at(tmp_path):
    """A file that the user names and that is no such value is refused with the place where it goes wrong."""
    path = tmp_path / "workload.json"
    path.write_text('{"prompt_tokens": "many"}')

    with pytest.raises(
        BadFile, match=r"is not a Workload: Expected `int`, got `str` - at `\$\.prompt_tokens`"
    ):
        store.read_json(path, Workload)
    with pytest.raises(BadFile, match="No such file"):
        store.read_json(tmp_path / "none.json", Workload)


def test_fingerprint_tells_contents_apart(tmp_path):
    """A copy that keeps its time has the same name; a changed length, edge or time of change has another."""
    one, copy, longer, other = (tmp_path / name for name in "abcd")
    one.write_bytes(bytes(range(256)) * 50_000)
    shutil.copy2(one, copy)
    longer.write_bytes(one.read_bytes() + b"x")
    other.write_bytes(b"y" + one.read_bytes()[1:])

    assert fingerprint([one]) == fingerprint([copy])
    assert 3 == len({fingerprint([path]) for path in (one, longer, other)})
    os.utime(copy, (1, 1))
    assert fingerprint([one]) != fingerprint([copy])
    with pytest.raises(BadFile):
        fingerprint([tmp_path / "none"])


def test_busy_share(tmp_path):
    """The share of ticks that were not idle; nothing where the system does not tell."""
    here = busy_share(0.05)

    assert here is None or 0 <= here <= 1
    assert busy_share(0.0, root=tmp_path) is None
