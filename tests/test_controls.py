"""Figures of export rules: computed from datasheets, and classes by numbers alone."""

import csv
from pathlib import Path

import pytest

from penjing import catalogue
from penjing.catalogue.controls import (
    Rules,
    Terms,
    class_of,
    performance_density,
    total_processing_performance,
)
from penjing.errors import BadFile, UnknownName
from penjing.figures import Figure
from penjing.machine import Compute, Cores, Machine, Tier

TABLE = Path(__file__).parent / "data/catalogue/machines.csv"
ROWS = {row["name"]: row for row in csv.DictReader(TABLE.read_text().splitlines())}
CHIPS = [name for name in ROWS if catalogue.machine(name).count == 1]  # a rule counts a chip, not a system

# The table put the FP32 rate of these processors into its FP16 column, and so counts 16 bits instead of 32.
AS_FP16 = {
    "EPYC 7773X 1024GB", "Threadripper PRO 5975WX 256GB", "Xeon E5-2683 v4 128GB", "Xeon E5-2697A v4 128GB",
    "Xeon Gold 6138 192GB", "Core i5-1035G7 16GB",
}  # fmt: skip


def machine(
    tpp: float | None, area: float | None = None, rate: float | None = None, kind: str = ""
) -> Machine:
    """A chip with so many TPP by its int8 rate."""
    compute = () if tpp is None else (Compute("int8", Figure(tpp / 8 * 1e12, "datasheet")),)
    tiers = (Tier("VRAM", None, Figure(rate, "datasheet")),)
    return Machine(
        "chip", Cores(None, None, None), (), None, None, None, tiers, compute=compute, kind=kind,
        die_area_mm2=Figure(area, "datasheet") if area else None,
    )  # fmt: skip


@pytest.mark.parametrize("name", [n for n in CHIPS if ROWS[n]["tpp"]])
def test_tpp_is_that_of_the_table(name: str) -> None:
    """TPP from the rates of an entry is that of the table within rounding, or twice it where FP32 is meant."""
    expected = float(ROWS[name]["tpp"]) * (2 if name in AS_FP16 else 1)
    assert expected == pytest.approx(total_processing_performance(catalogue.machine(name)).value, rel=5e-3)


@pytest.mark.parametrize("name", [n for n in CHIPS if ROWS[n]["performance_density"]])
def test_density_is_that_of_the_table(name: str) -> None:
    """TPP per mm2 is that of the table within its rounding."""
    expected = float(ROWS[name]["performance_density"])
    assert expected == pytest.approx(performance_density(catalogue.machine(name)).value, rel=5e-3)


@pytest.mark.parametrize("name", [n for n in CHIPS if ROWS[n]["rule_3A090_2023"]])
def test_class_of_2023_is_that_of_the_table(name: str) -> None:
    """The class by numbers, or that the die area decides."""
    assert ROWS[name]["rule_3A090_2023"] == class_of(catalogue.machine(name), catalogue.rules()).name


@pytest.mark.parametrize("name", [n for n in CHIPS if ROWS[n]["rule_2026"]])
def test_window_of_2026_is_that_of_the_table(name: str) -> None:
    """Chips of 3A090.a are inside the window of 2026 or outside it."""
    assert (
        ROWS[name]["rule_2026"]
        == class_of(catalogue.machine(name), catalogue.rules("case-by-case-2026")).name
    )


@pytest.mark.parametrize(
    ("tpp", "area", "expected"),
    [
        (4800, None, "3A090.a.1"), (4799, 3000, "below both"), (4799, 2999, "3A090.b"),
        (1600, 1600 / 5.92, "3A090.a.2"), (1600, 500, "3A090.b"), (1600, 501, "below both"),
        (1599, 10, "below both"), (1600, None, "needs die area"), (None, 800, "needs rates"),
    ],
)  # fmt: skip
def test_thresholds_of_2023(tpp: float | None, area: float | None, expected: str) -> None:
    """At each threshold the class changes, and an unknown number is asked for only where it decides."""
    verdict = class_of(machine(tpp, area), catalogue.rules())
    assert (verdict.name, verdict.note) == (expected, "not legal advice")


@pytest.mark.parametrize(
    ("tpp", "rate", "expected"),
    [
        (20_999, 6.4e12, "inside"), (21_000, 6.4e12, "outside"), (20_999, 6.5e12, "outside"),
        (1000, 1e12, "not 3A090.a"), (20_000, None, "needs memory bandwidth"), (30_000, None, "outside"),
    ],
)  # fmt: skip
def test_window_of_2026(tpp: float, rate: float | None, expected: str) -> None:
    """Both numbers must stay below; one that is too high decides alone."""
    assert expected == class_of(machine(tpp, 800, rate), catalogue.rules("case-by-case-2026")).name


def test_the_example_of_the_rule() -> None:
    """600 TOPS at 8 bits are a TPP of 4800, and so are 300 TFLOPS at 16."""
    assert total_processing_performance(machine(4800)).value == pytest.approx(600 * 8)
    wide = Compute("fp16", Figure(300e12, "datasheet"))
    assert Figure(4800, "datasheet", "fp16 x 16 bits") == total_processing_performance(
        Machine("x", Cores(None, None, None), (), None, None, None, (), compute=(wide,))
    )


def test_kinds_narrow_a_rule() -> None:
    """Terms with kinds hold for machines of such a kind alone, as Note 2 asks."""
    narrow = Rules("n", "", "", (), (Terms("x", tpp_from=1, kinds=("datacenter", "server")),), "other")
    assert class_of(machine(10, kind="datacenter GPU"), narrow).name == "x"
    assert class_of(machine(10, kind="consumer GPU"), narrow).name == "other"


RULE = """
name = "mine"
title = "a rule of my own"
in_force = "2030-01-01"
sources = ["me"]
otherwise = "free"
[[classes]]
name = "bound"
tpp_from = {limit}
"""


def test_a_rule_of_a_user(tmp_path: Path) -> None:
    """A copied and edited file is a rule like those that ship."""
    path = tmp_path / "mine.toml"
    path.write_text(RULE.format(limit=100))
    assert class_of(machine(100), catalogue.rules(str(path))).name == "bound"
    assert class_of(machine(99), catalogue.rules(str(path))).name == "free"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ('"many"', r"at `classes\[0\].tpp_from`: Expected"),
        ("-1", "Expected `float` >= 0"),
        ("1\ncolour = 3", "unknown field `colour`"),
    ],
)
def test_wrong_field_of_a_rule(limit: str, expected: str, tmp_path: Path) -> None:
    """A slip in a rule is named with its place."""
    path = tmp_path / "mine.toml"
    path.write_text(RULE.format(limit=limit))
    with pytest.raises(BadFile, match=expected):
        catalogue.rules(str(path))


def test_unknown_rule() -> None:
    """A rule that does not ship is refused with those that do."""
    with pytest.raises(UnknownName, match="no rule `4E091`") as caught:
        catalogue.rules("4E091")
    assert "`3a090-2023`" in caught.value.hint
