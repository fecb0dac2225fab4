"""Repositories of the hub, through the real client, from a stand-in server on this machine."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penjing.errors import BadFile, UnknownName
from penjing.fetch import hub, resolve
from stand_ins import COMMIT, Hub

CHUNK = 10 * 2**20  # what the hub's client writes at once
BIG = random.Random(7).randbytes(2 * CHUNK + 12_345)
FILES = {
    "README.md": b"read me",
    "tiny-Q2_K.gguf": b"2" * 20,
    "tiny-Q4_0.gguf": b"4" * 40,
    "tiny-Q4_K_M.gguf": b"M" * 45,
    "tiny-Q8_0.gguf": b"8" * 80,
    "mmproj-F16.gguf": b"v" * 9,
    "BF16/tiny-BF16-00001-of-00002.gguf": b"a" * 90,
    "BF16/tiny-BF16-00002-of-00002.gguf": b"b" * 70,
}
# The hub's client reads its settings when it is imported, so each run is a process of its own.
RUN = """
import json, sys
from penjing.errors import UserError
from penjing.fetch import resolve
try:
    print(json.dumps({"path": str(resolve(sys.argv[1]))}))
except UserError as error:
    print(json.dumps({"kind": type(error).__name__, "problem": str(error), "hint": error.hint}))
"""


def command(model: str, before: str = "") -> list[str]:
    return [sys.executable, "-c", before + RUN, model]


def run(model: str, endpoint: str, before: str = "") -> tuple[dict[str, Any], str]:
    """What `resolve` gave in a process that takes `endpoint` for the hub, and its talk."""
    done = subprocess.run(
        command(model, before),
        env={**os.environ, "HF_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub(
        {"owner/name": FILES, "owner/big": {"big.gguf": BIG}, "owner/text": {"a.safetensors": b"x"}}
    ).running() as it:
        yield it


def test_repository_gives_its_q4_k_m(server: Hub) -> None:
    """Of several files Q4_K_M is fetched into the hub's own cache, and the choice is said."""
    answer, talk = run("owner/name", server.url)
    path = Path(answer["path"])
    assert path.read_bytes() == FILES["tiny-Q4_K_M.gguf"]
    assert path.is_relative_to(os.environ["HF_HOME"]) and path.parent.name == COMMIT
    assert "taking `tiny-Q4_K_M.gguf` (45 B) of 5 files" in talk and "Q8_0" in talk
    assert "owner/name:TYPE" in talk


def test_second_time_nothing_is_fetched(server: Hub) -> None:
    """What the cache has is not fetched again."""
    first, _ = run("owner/name:Q8_0", server.url)
    second, _ = run("owner/name:q8_0", server.url)
    assert first == second
    assert server.downloads() == [("tiny-Q8_0.gguf", None)]


def test_named_file_and_split_file(server: Hub) -> None:
    """A file is found by its path; of a split one all parts are fetched and the first is given."""
    answer, _ = run("owner/name/BF16/tiny-BF16-00001-of-00002.gguf", server.url)
    path = Path(answer["path"])
    assert path.name == "tiny-BF16-00001-of-00002.gguf" and path.read_bytes() == b"a" * 90
    assert path.with_name("tiny-BF16-00002-of-00002.gguf").read_bytes() == b"b" * 70


def test_broken_connection_is_resumed(server: Hub) -> None:
    """After a broken download the next run asks for the rest alone, and the bytes are right."""
    server.break_at = CHUNK + 5000
    answer, _ = run("owner/big", server.url)
    assert answer["kind"] == "Unreachable" and "what was fetched is kept" in answer["hint"]

    server.break_at, server.broken = None, False
    server.asked.clear()
    answer, talk = run("owner/big", server.url)
    assert server.downloads() == [("big.gguf", f"bytes={CHUNK}-")]
    assert Path(answer["path"]).read_bytes() == BIG
    assert "going on at 10.0 MiB of 20.0 MiB" in talk


def test_killed_run_is_resumed(server: Hub) -> None:
    """A run that is killed in the middle leaves what it has for the next one."""
    server.stall_at = CHUNK + 5000
    child = subprocess.Popen(command("owner/big"), env={**os.environ, "HF_ENDPOINT": server.url})
    assert server.stalled.wait(20)
    partial = wait_for_partial(CHUNK)
    child.send_signal(signal.SIGKILL)
    child.wait()
    begun = partial.stat().st_size

    server.stall_at = None
    server.asked.clear()
    answer, _ = run("owner/big", server.url)
    assert server.downloads() == [("big.gguf", f"bytes={begun}-")]
    assert Path(answer["path"]).read_bytes() == BIG
    assert not partial.exists()


def wait_for_partial(n_bytes: int) -> Path:
    """The partial file, once it holds about `n_bytes`."""
    import time

    end = time.monotonic() + 20
    while time.monotonic() < end:
        for path in Path(os.environ["HF_HOME"]).rglob("*.penjing.incomplete"):
            if path.stat().st_size >= n_bytes - 2**16:
                return path
        time.sleep(0.02)
    raise TimeoutError


def test_damaged_bytes_are_refused(server: Hub) -> None:
    """Bytes that do not have the announced hash are refused and not kept."""
    server.etags["big.gguf"] = "0" * 64
    answer, _ = run("owner/big", server.url)
    assert answer["kind"] == "BadFile" and "SHA-256" in answer["problem"]
    assert list(Path(os.environ["HF_HOME"]).rglob("*.incomplete")) == []
    assert list(Path(os.environ["HF_HOME"]).rglob("*.gguf")) == []


@pytest.mark.parametrize(
    ("model", "kind", "problem", "hint"),
    [
        ("owner/none", "UnknownName", "`owner/none` is neither here nor a repository", "check the name"),
        ("owner/name:Q3_K", "UnknownName", "`owner/name` has no `Q3_K`", "`BF16`, `Q2_K`, `Q4_0`, `Q4_K_M`"),
        ("owner/name/x.gguf", "UnknownName", "has no `x.gguf`", "`tiny-Q4_0.gguf`"),
        ("owner/text", "BadFile", "`owner/text` has no GGUF among its 1 files", "`text-GGUF`"),
    ],
)
def test_what_the_hub_does_not_have(model: str, kind: str, problem: str, hint: str, server: Hub) -> None:
    """A repository or file that is not there is one line, with what is there."""
    answer, talk = run(model, server.url)
    assert answer["kind"] == kind
    assert problem in answer["problem"] and hint in answer["hint"]
    assert "Traceback" not in talk


def test_without_network(server: Hub) -> None:
    """With the hub out of reach, what was fetched before is used, and anything else is one line."""
    fetched, _ = run("owner/name", server.url)
    again, talk = run("owner/name", "http://127.0.0.1:9")
    assert fetched == again and "the hub cannot be reached, using what was fetched before" in talk
    answer, talk = run("owner/big", "http://127.0.0.1:9")
    assert (
        answer["kind"] == "Unreachable" and "the hub cannot be reached for `owner/big`" in answer["problem"]
    )
    assert "Traceback" not in talk


def test_client_is_not_installed() -> None:
    """Without huggingface_hub the way to install it is said."""
    answer, _ = run("owner/name", "http://127.0.0.1:9", "import sys; sys.modules['huggingface_hub'] = None\n")
    assert answer == {
        "kind": "Unavailable",
        "problem": "fetching `owner/name` needs the package huggingface_hub",
        "hint": "pip install 'penjing[hub]'",
    }


def chosen(*names: str) -> str:
    """What is picked of files that are the larger the later they are named."""
    sizes = {name: 10 * (i + 1) for i, name in enumerate(names)}
    return hub.pick("o/n", hub.candidates(sizes), None, None, len(sizes)).name


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["m-Q3_K_S.gguf", "m-IQ4_XS.gguf", "m-Q8_0.gguf"], "m-IQ4_XS.gguf"),
        (["m-Q8_0.gguf", "m.q4_k_m.gguf"], "m.q4_k_m.gguf"),
        (["m-IQ1_S.gguf", "m-Q2_K.gguf", "m-IQ3_XXS.gguf"], "m-IQ3_XXS.gguf"),
        (["m-mxfp4.gguf", "m-F16.gguf"], "m-mxfp4.gguf"),
        (["Qwen3-8B-Q5_K_M.gguf", "Qwen3-8B-UD-Q4_K_XL.gguf"], "Qwen3-8B-Q5_K_M.gguf"),
        (["a.gguf", "b.gguf"], "b.gguf"),
        (["mmproj-m-Q4_K_M.gguf", "m-BF16.gguf"], "m-BF16.gguf"),
        (["m-Q4_K_M-00001-of-00002.gguf", "m-Q6_K.gguf"], "m-Q6_K.gguf"),
        (["Q4_K_M/m-00001-of-00001.gguf", "Q6_K/m-00001-of-00001.gguf"], "Q4_K_M/m.gguf"),
    ],
)
def test_which_file_is_picked(names: list[str], expected: str) -> None:
    """Q4_K_M, else the smallest of 4 bits and more, else the largest; no projectors, no incomplete sets."""
    assert chosen(*names) == expected


def test_path_that_exists_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is taken, also a folder, also where it looks like a repository."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve("owner/name") == Path("owner/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/owner") == tmp_path / "owner"


@pytest.mark.parametrize(
    "model", ["none.gguf", "./none", "/no/such/model.gguf", "folder/none.gguf", "~/none"]
)
def test_missing_path(model: str) -> None:
    """What can only be a path, and is not there, is not asked of the hub."""
    with pytest.raises(BadFile, match="there is no file"):
        resolve(model)


@pytest.mark.parametrize(
    "model", ["", "gpt", "a b/c", "a/b/c/d", "x" * 5000, "nul\0byte", "owner/name:", "http://x/y"]
)
def test_name_of_nothing(model: str) -> None:
    """What is neither a path nor a repository is refused in words."""
    with pytest.raises(UnknownName, match="is neither a file nor a repository"):
        resolve(model)


def test_catalogue_name_is_for_planning() -> None:
    """A name of the catalogue has shapes and no weights: the hint says what it is good for."""
    with pytest.raises(UnknownName) as caught:
        resolve("qwen3-8b")
    assert "`Qwen3-8B`, as shapes for `penjing plan` alone" in caught.value.hint
