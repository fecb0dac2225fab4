"""Needs what `make peer` installs: llama-cpp-python beside penjing, in an environment of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import natural_f16
from gguf_files import real_model
from peer_process import Peer


@pytest.fixture(scope="session")
def peer() -> Iterator[Peer]:
    with Peer() as opened:
        yield opened


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that ships, in F16."""
    target = tmp_path_factory.mktemp("source") / "f16.gguf"
    natural_f16.write(real_model(), target, seed=0)
    return target
