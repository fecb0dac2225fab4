"""Runs on a device correct what is predicted for other models on it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from commands import penjing, refused
from penjing.elsewhere import runs
from penjing.elsewhere.hardware import hardware
from penjing.table import judge, rows

ROW = {
    "id": "mine-1", "source": "me", "date_or_version": "2026", "device": "NVIDIA RTX 4090", "device_count": "1",
    "engine": "llama.cpp", "engine_version": "b6000", "model": "Llama 3.1 8B", "weight_format": "Q4_K_M",
    "kv_format": "f16", "phase": "decode", "prompt_tokens": "", "output_tokens_or_depth": "0",
    "batch_or_concurrency": "1", "parallelism": "", "metric": "tokens_per_s_total", "value": "100", "notes": "grade=A",
}  # fmt: skip
PLAN = ("plan", "Qwen3-8B", "--on", "RTX 4090", "--format", "Q4_K_M", "--json")


def table(path: Path, *values: float) -> Path:
    """As many runs of decode, each so many times as fast as predicted."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows.COLUMNS)
        writer.writeheader()
        writer.writerow(ROW)
    (verdict,) = judge.verdicts(judge.resolved(rows.read(path)).cases)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows.COLUMNS)
        writer.writeheader()
        for number, times in enumerate(values):
            writer.writerow({**ROW, "id": f"mine-{number}", "value": str(times * verdict.predicted)})
    return path


def factor(path: Path, *values: float) -> float:
    (engines,) = runs.corrections(table(path, *values)).values()
    (phases,) = engines.values()
    assert set(phases) == {"decode"}
    return phases["decode"]


def test_runs_as_predicted_change_nothing(tmp_path: Path):
    assert factor(tmp_path / "t.csv", 1.0, 1.0) == pytest.approx(1)


def test_slower_runs_slow_predictions_and_more_of_them_more_so(tmp_path: Path):
    """One run at half the speed is believed by half (in logarithms), many are believed."""
    factors = [factor(tmp_path / "t.csv", *[0.5] * n) for n in (1, 2, 20)]

    assert factors[0] == pytest.approx(0.5**0.5)
    assert 1 > factors[0] > factors[1] > factors[2] > 0.5


def test_only_that_device_and_phase_are_corrected(tmp_path: Path):
    """Another device stays as it is; on this one decode moves, and prefill does not."""
    known = runs.corrections(table(tmp_path / "t.csv", 0.5, 0.5))

    assert runs.with_runs(hardware("H20"), known) == hardware("H20")
    assert runs.with_runs(hardware("2x RTX 4090"), known).runs
    plain, corrected = (
        json.loads(penjing(*PLAN, *more).stdout)["chosen"]["estimate"]
        for more in ((), ("--runs", str(tmp_path / "t.csv")))
    )
    expected = 0.25 ** (1 / 3)
    decode = [e["decode_tokens_per_s"]["value"] for e in (plain, corrected)]
    assert decode[1] / decode[0] == pytest.approx(expected, rel=1e-3)
    assert plain["prefill_tokens_per_s"] == corrected["prefill_tokens_per_s"]


def test_a_table_without_a_usable_run_is_one_line(tmp_path: Path):
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows.COLUMNS)
        writer.writeheader()
        writer.writerow({**ROW, "device": "Abacus 3000"})

    assert refused(*PLAN, "--runs", str(path)) == (
        f"`{path}` has no run that can be used: unknown device", f"penjing validate {path}"
    )  # fmt: skip
    assert "no such file" in refused(*PLAN, "--runs", str(tmp_path / "none.csv"))[0].lower()
