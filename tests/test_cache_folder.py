"""The cache folder full, locked, damaged or misplaced: it is a convenience, and stops no work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from commands import penjing, without_privilege
from penjing import store
from penjing.errors import Unavailable
from penjing.fingerprint import fingerprint
from penjing.machine import Machine
from penjing.rates import Rates

SMALL_DISK = """
mount -t tmpfs -o size=64k none "$0" && head -c 1000000 /dev/zero > "$0/rest" 2> /dev/null
exec "$@"
"""


def test_a_full_disk_under_the_cache(tmp_path: Path, tiny: Path):
    """Nothing can be kept, and the answer comes all the same."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mount namespace")
    small = [*alone, "sh", "-c", SMALL_DISK, str(tmp_path)]

    cache = {"PENJING_CACHE": str(tmp_path)}
    done = penjing("run", str(tiny), "Hi", "--max-tokens", "4", env=cache, prefix=small)

    assert done.code == 0 and done.stdout.strip(), done
    assert "predicted" in done.stderr


def test_a_cache_folder_that_may_not_be_written(known: Path, tiny: Path):
    """What is known is used, what is new is not kept, and the answer comes all the same."""
    for rates in (known / "rates").glob(f"{fingerprint([tiny])}-*"):
        rates.unlink()
    before = sorted(known.rglob("*"))
    for folder in (known, known / "rates"):
        folder.chmod(0o555)

    words = ("run", str(tiny), "Hi", "--max-tokens", "4")
    done = penjing(*words, prefix=without_privilege())
    for folder in (known, known / "rates"):
        folder.chmod(0o755)

    assert done.code == 0 and done.stdout.strip(), done
    assert sorted(known.rglob("*")) == before


def test_damaged_cache_files_are_rebuilt(known: Path, tiny: Path):
    """Random bytes where the machine and the rates were kept are ignored, and replaced by new measurements."""
    files = [known / "machine.json", *(known / "rates").glob(f"{fingerprint([tiny])}-*")]
    for file in files:
        file.write_bytes(os.urandom(1000))

    done = penjing("run", str(tiny), "Hi", "--max-tokens", "4")

    assert done.code == 0 and done.stdout.strip(), done
    assert "measuring" in done.stderr and "reading from DRAM" in done.stderr
    assert json.loads((known / "machine.json").read_bytes())
    assert any(file.read_bytes().startswith(b"{") for file in files[1:])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b'{"name": 1}', b"\xff\xfe", b"{}" * 1000, None], ids=str
)
def test_a_damaged_file_counts_as_none(content: bytes | None):
    """Whatever lies where a value was kept, even a folder, is as good as nothing there."""
    file = store.cache_dir() / "machine.json"
    file.parent.mkdir(parents=True)
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)

    assert store.recall("machine.json", Machine) is None


def test_rates_that_cannot_be_are_as_good_as_none(known: Path, tiny: Path):
    """Numbers that no clock gives are damage too, for they would be divided by."""
    file = next((known / "rates").glob(f"{fingerprint([tiny])}-*"))
    name = str(file.relative_to(known))
    assert store.recall(name, Rates) is not None
    file.write_text(re.sub(r'("seconds": \[\s*)[\d.e-]+', r"\g<1>0.0", file.read_text(), count=1))

    assert store.recall(name, Rates) is None


def test_a_cache_in_the_wrong_place_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file where the folder should be: nothing is kept, nothing is found, nothing is raised or changed."""
    file = tmp_path / "file"
    file.write_text("mine")
    monkeypatch.setenv("PENJING_CACHE", str(file))

    assert not store.remember("machine.json", {"name": "x"})
    assert store.recall("machine.json", dict) is None
    assert file.read_text() == "mine"


def test_what_cannot_be_kept_whole_is_not_kept_at_all(tmp_path: Path):
    """An error while writing leaves the old content, and no temporary file beside it."""
    target = tmp_path / "kept.json"
    target.write_text("old")

    with pytest.raises(Unavailable) as caught, store.replacing(target) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    assert str(caught.value) == f"cannot write `{target}`: No space left on device"
    assert "free some space" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"] and target.read_text() == "old"
