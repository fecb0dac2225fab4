"""`penjing validate`: its contract, on the rows that ship."""

from __future__ import annotations

import json

from penjing.cli import main

KEYS = {
    "rows",
    "median_abs_error_percent",
    "p90_abs_error_percent",
    "median_signed_error_percent",
    "inside_interval",
}


def test_the_rows_that_ship_are_judged(capsys):
    """Every row is predicted or counted under a reason, by phase and by group, as one JSON document."""
    assert 0 == main(["validate", "--json"])

    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == report["predicted"] + sum(report["unsupported"].values())
    assert {"prefill", "decode", "mixed", "in_flight"} == set(report["by_phase"])
    assert all(set(found) >= KEYS for found in (*report["by_phase"].values(), *report["by_group"].values()))
    assert report["by_phase"]["decode"]["median_abs_error_percent"] < 30


def test_a_table_for_people(capsys):
    """Without --json: errors by phase, and the worst misses with what binds them."""
    assert 0 == main(["validate"])

    out = capsys.readouterr().out
    assert "in_flight" in out
    assert "the worst misses" in out


def test_a_table_that_is_not_there(capsys):
    """One line and a hint, exit code 2."""
    assert 2 == main(["validate", "no-such-table.csv"])

    assert "error: cannot read `no-such-table.csv`" in capsys.readouterr().err
