"""`penjing build` and `penjing calibrate` killed at any moment: started again, they end in the same bytes."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest

import small_models
from commands import penjing, started, wait_for
from penjing import sensitivities
from penjing.gguf import read_header

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # torch beside other tests


def lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_build_that_is_killed_goes_on(tmp_path: Path):
    """Ten kills at random moments, most while it rounds; in the end the same file, byte for byte."""
    source = small_models.write(tmp_path / "source.gguf")
    sensitivities.save(tmp_path / "s", small_models.sensitivity(source))
    limit = ("--bpw", "4.5", "--sensitivity", str(tmp_path / "s"), "--finalists", "2", "--json")
    draw, whole, out = random.Random(3), tmp_path / "whole.gguf", tmp_path / "killed.gguf"
    first = penjing("build", str(source), "--out", str(whole), *limit)
    for _ in range(10):
        with started("build", str(source), "--out", str(out), *limit) as command:
            wait_for_progress(tmp_path, draw)
            command.kill()
        if out.exists():  # a fast machine was done before the kill: then the file is whole, and we start over
            assert out.read_bytes() == whole.read_bytes()
            out.unlink()
    last = penjing("build", str(source), "--out", str(out), *limit)

    assert (first.code, last.code) == (0, 0), (first, last)
    assert out.read_bytes() == whole.read_bytes()
    one, other = json.loads(first.stdout), json.loads(last.stdout)
    assert one["measured"] == other["measured"] and one["finalists"] == other["finalists"]
    left = {path.name.removeprefix("killed.gguf") for path in tmp_path.glob("killed*")}
    assert left == {"", ".types", ".json"}


def wait_for_progress(folder: Path, draw: random.Random) -> None:
    """Some more pieces are in the files than now; or where all are, a moment while they are measured."""

    def pieces() -> int:
        return sum(map(lines, folder.glob("killed.gguf.*.journal")))

    wanted = pieces() + draw.randint(1, 6)
    if wanted < 2 * len(read_header(folder / "source.gguf").tensors):
        assert wait_for(lambda: pieces() >= wanted, limit_seconds=60)
        time.sleep(draw.uniform(0, 0.05))
    else:
        time.sleep(draw.uniform(0.5, 2))


@pytest.mark.slow
def test_a_calibration_that_is_killed_goes_on(tmp_path: Path):
    """Two kills between its steps; in the end the same moments, bit for bit."""
    source = small_models.write(tmp_path / "source.gguf", layers=4)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    words = ("--tokens", "1024", "--json")
    assert penjing("calibrate", str(source), "--out", str(whole), *words, env=ONE_THREAD).code == 0
    for step in ("hidden-2.npz", "back-3.npz"):
        with started("calibrate", str(source), "--out", str(out), *words, env=ONE_THREAD) as command:
            found = tmp_path / "killed.part" / step
            assert wait_for(found.exists, limit_seconds=60)
            command.kill()
        assert not out.exists()
    assert penjing("calibrate", str(source), "--out", str(out), *words, env=ONE_THREAD).code == 0

    with np.load(whole) as one, np.load(out) as other:
        assert one.files == other.files
        assert all(np.array_equal(one[name], other[name]) for name in one.files)
    assert not (tmp_path / "killed.part").exists()
