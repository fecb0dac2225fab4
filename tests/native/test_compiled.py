"""`penjing engine build` with the real sources and compiler: minutes of both cores, once by `make native`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from commands import Done, penjing
from gguf_files import real_model
from penjing.engines.llamacpp import LlamaCpp, library, native
from penjing.evaluate import log_softmax
from penjing.plan import Settings

_BUILD_SECONDS = 1500
_WORDS = 64

pytestmark = pytest.mark.timeout(_BUILD_SECONDS + 60)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def compiled(cache: Path) -> Done:
    """The command as its users type it, in a cache where there is nothing."""
    return penjing(
        "engine", "build", "--json", limit_seconds=_BUILD_SECONDS, env={"PENJING_CACHE": str(cache)}
    )


@pytest.fixture(autouse=True)
def _in_it(cache: Path, compiled: Done, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PENJING_CACHE", str(cache))
    assert compiled.code == 0, compiled.stderr
    yield


def test_it_is_compiled_for_this_processor(cache: Path, compiled: Done):
    """Its own library beside the log, nothing half done, listed; and there is nothing to build again."""
    said = json.loads(compiled.stdout)
    log = native.folder().with_name(native.folder().name + ".log").read_text()

    assert sorted(path.name for path in native.folder().parent.iterdir()) == sorted(
        [native.folder().name, native.folder().name + ".log"]
    )
    assert said["version"] == library.PINNED and said["path"].startswith(str(cache))
    assert "100%" in log and "ggml" in log
    assert Path(said["path"]).read_bytes() != library.library_path().read_bytes()
    assert [e["name"] for e in json.loads(penjing("engine", "list", "--json").stdout)] == ["wheel", "native"]
    assert "already built" in penjing("engine", "build").stderr


def test_it_answers_as_the_wheel_does():
    """The same model: other kernels, which round in other places, and no other answers."""
    engine, settings, tokens = (
        LlamaCpp(),
        Settings(2, 2, context_tokens=256),
        list(range(1000, 1000 + _WORDS)),
    )
    wheel, ours = (
        _log_probabilities(engine, replace(settings, build=b), tokens) for b in ("wheel", "native")
    )  # type: ignore[arg-type]

    assert (np.exp(wheel) * (wheel - ours)).sum(axis=1).mean() < 0.01
    assert (wheel.argmax(axis=1) == ours.argmax(axis=1)).mean() > 0.9


def _log_probabilities(engine: LlamaCpp, settings: Settings, tokens: list[int]) -> np.ndarray:
    """Of shape (tokens, vocabulary), from the library that `settings` names."""
    with engine.open(real_model(), settings) as session:
        maps = Path(f"/proc/{session.process_id}/maps").read_text()
        assert (str(native.folder()) in maps) == (settings.build == "native")
        return np.concatenate([log_softmax(rows) for rows in session.logits(tokens)])
