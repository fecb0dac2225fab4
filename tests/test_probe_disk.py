"""Timed reads of a disk: `pytest tests/test_probe_disk.py`."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from penjing.probe import disk
from penjing.units import MIB


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Shorter passes and a smaller file: the work is the same."""
    monkeypatch.setattr(disk, "PASS_SECONDS", 0.2)
    monkeypatch.setattr(disk, "FILE_BYTES", 64 * MIB)


def test_folder(tmp_path):
    """A folder's disk is measured with a file that is gone afterwards."""
    began = time.monotonic()

    tier = disk.measure(tmp_path)

    assert time.monotonic() - began < 5
    assert (tier.name, tier.path) == ("disk", str(tmp_path))
    assert tier.read_bytes_per_s.value > 1e5
    assert tier.random_read_bytes_per_s.value > 1e4
    assert tier.read_bytes_per_s.source == "measured"
    assert 0 < tier.capacity_bytes < 2**63
    assert list(tmp_path.iterdir()) == []


def test_folder_that_does_not_exist_yet(tmp_path):
    """A path that is still to be made lies on the disk of the nearest folder above it; nothing is made."""
    path = tmp_path / "not" / "yet"

    assert disk.existing(path) == tmp_path
    assert disk.device(path) == disk.device(tmp_path)
    assert disk.measure(path).read_bytes_per_s.value > 1e5
    assert list(tmp_path.iterdir()) == []


def test_model_file_is_read_and_not_changed(tmp_path):
    """A file that is large enough is read itself where direct reads work; it stays as it is, alone."""
    path = tmp_path / "model.gguf"
    content = os.urandom(MIB)
    path.write_bytes(content * 32)

    tier = disk.measure(path)

    assert tier.read_bytes_per_s.value > 1e5
    with path.open("rb") as file:
        where = "on the file itself" if disk._go_direct(file.raw) else "on a temporary file"
    assert where in tier.read_bytes_per_s.note
    assert path.read_bytes() == content * 32
    assert list(tmp_path.iterdir()) == [path]


def test_small_file_is_no_measure(tmp_path):
    """Beside a small file a temporary one is measured."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")

    tier = disk.measure(path)

    assert "on a temporary file" in tier.read_bytes_per_s.note
    assert list(tmp_path.iterdir()) == [path]


def test_without_direct_reads(tmp_path, monkeypatch):
    """On a file system without direct reads, pages are dropped from the cache before each pass."""
    monkeypatch.setattr(disk, "_go_direct", lambda _: False)

    tier = disk.measure(tmp_path)

    assert tier.read_bytes_per_s.value > 1e5
    assert tier.read_bytes_per_s.note.startswith("dropped pages on a temporary file")


def test_write_that_fails(tmp_path):
    """If the file cannot be written, the rates are None, with the system's words; nothing is left behind."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, limits[1]))
    try:
        tier = disk.measure(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert tier.read_bytes_per_s.value is None
    assert tier.random_read_bytes_per_s.value is None
    assert tier.read_bytes_per_s.note
    assert list(tmp_path.iterdir()) == []


def test_no_space():
    """Where nothing is free the rates are None, with both numbers."""
    tier = disk.measure(Path("/proc"))

    assert tier.read_bytes_per_s.value is None
    assert tier.read_bytes_per_s.note == "0 B free, 64.0 MiB are needed to measure"
