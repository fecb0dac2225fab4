"""Every test has its own caches, and none sees the settings of whoever runs it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import known, measured, refuses, tiny

__all__ = ["known", "measured", "refuses", "tiny"]  # fixtures for every test

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

_OURS = ("PENJING_", "HF_", "HUGGING", "GGML_", "LLAMA_")


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that outlive one test: no settings from outside, and caches of this run alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_OURS)]:
            patch.delenv(name)
        _isolate(patch, tmp_path_factory.mktemp("session"))
        yield


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each test: empty caches. The model that ships stays findable, for it is installed."""
    _isolate(monkeypatch, tmp_path_factory.mktemp("caches"))


def _isolate(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("PENJING_CACHE", str(folder / "penjing"))
    patch.setenv("HF_HOME", str(folder / "hub"))
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("OMP_WAIT_POLICY", "passive")  # spinning threads crawl beside other work on the same cores
