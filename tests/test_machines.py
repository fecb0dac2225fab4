"""Machines that ship: every figure with its source, against a table of other hands."""

import csv
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from penjing import catalogue
from penjing.catalogue import names
from penjing.cli import main
from penjing.errors import BadFile, UnknownName
from penjing.figures import Figure
from penjing.machine import Machine

TABLE = Path(__file__).parent / "data/catalogue/machines.csv"
ROWS = {row["name"]: row for row in csv.DictReader(TABLE.read_text().splitlines())}
MACHINES = {machine.name: machine for machine in catalogue.machines()}
VARIANTS = ("H20-3e 141GB", "RTX 4090 48GB", "Raspberry Pi 5 16GB")  # of an entry that the table has
# nobody publishes how fast their memory is
UNKNOWN_RATE = {"MLU590", "Kunlun P800", "BR104", "Instinct MI308X"}


def test_every_row_has_an_entry() -> None:
    """The catalogue is the table, and the variants of three of its rows."""
    assert MACHINES.keys() == {*ROWS, *VARIANTS}


def figures(machine: Machine) -> list[Figure]:
    found = [tier.read_bytes_per_s for tier in machine.tiers] + [c.operations_per_s for c in machine.compute]
    found += [link.bytes_per_s for link in machine.links]
    return found + [f for f in (machine.power_watts, machine.price_usd, machine.die_area_mm2) if f]


@pytest.mark.parametrize("name", MACHINES)
def test_every_number_of_a_machine_has_a_source(name: str) -> None:
    """Each figure says where it was read, and none claims to have been measured here."""
    machine = MACHINES[name]
    assert all(figure.note and figure.source in ("datasheet", "assumed") for figure in figures(machine))
    assert machine.sources and machine.captured and machine.kind


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_remembered_or_press_is_marked(name: str) -> None:
    """No figure from memory, from the press or computed by us goes as one of a datasheet."""
    soft = ("from memory", "press", "unconfirmed", "roadmap", "not found")
    told = [f for f in figures(MACHINES[name]) if any(word in f.note for word in soft)]
    assert {"assumed"} >= {figure.source for figure in told}


@pytest.mark.parametrize("name", MACHINES)
def test_sizes_of_a_machine_are_plausible(name: str) -> None:
    """Memory reads between 10 GB/s and 10 TB/s, and a processor computes more than it reads."""
    machine = MACHINES[name]
    main = machine.tiers[0]
    rate = main.read_bytes_per_s.value
    assert (name in UNKNOWN_RATE) == (rate is None)
    assert main.capacity_bytes == machine.memory_total_bytes == machine.usable_memory_bytes
    assert all((c.operations_per_s.value or 0) > (rate or 0) for c in machine.compute)
    assert 1e10 < (rate or 1e11) < 1e13


@pytest.mark.parametrize("name", ROWS)
def test_figures_are_those_of_the_table(name: str) -> None:
    """Rate, size, watts and area of an entry are those of the row; a system's are per device."""
    machine, row = MACHINES[name], ROWS[name]
    count = machine.count
    assert per_device(row["memory_bandwidth_GBps"], count) == close(machine.tiers[0].read_bytes_per_s, 1e-9)
    assert per_device(row["power_watts"], count) == close(machine.power_watts)
    assert per_device(row["die_area_mm2"], 1) == close(machine.die_area_mm2)
    if row["memory_GB"]:  # sold as powers of ten or of two
        size = (machine.memory_total_bytes or 0) * count / float(row["memory_GB"])
        assert 0.93e9 < size < 1.08e9


def per_device(text: str, count: int) -> float | None:
    return float(text) / count if text else None


def close(figure: Figure | None, scale: float = 1.0) -> object:
    return None if figure is None or figure.value is None else pytest.approx(figure.value * scale, rel=1e-5)


def test_links_of_a_card() -> None:
    """NVLink joins a server's parts; cards without it reach each other through the computer."""
    peer, host = MACHINES["H100 SXM 80GB"].link("peer"), MACHINES["H100 SXM 80GB"].link("host")
    assert (
        peer
        and host
        and (peer.kind, peer.bytes_per_s.value, host.kind) == ("NVLink 4", 450e9, "PCIe 5.0 x16")
    )
    assert MACHINES["RTX 4090"].link("peer") == MACHINES["RTX 4090"].link("host")
    assert MACHINES["M4 Max 128GB"].link("peer") is None


@pytest.mark.parametrize("kind", ["machine", "model"])
def test_every_alias_leads_somewhere(kind: names.Kind) -> None:
    """A label has an entry that exists, or says why it has none; and none hides the name of an entry."""
    known = names.entries(kind)
    for label, alias in names.aliases(kind).items():
        assert alias.entry in known or (not alias.entry and alias.note), label
        assert not alias.host or alias.host in known, label
    plain = [names.plain(name) for name in known]
    assert len(set(plain)) == len(plain)
    hidden = {names.plain(label): alias.entry for label, alias in names.aliases(kind).items()}
    assert all(hidden.get(names.plain(name), name) == name for name in known)


@pytest.mark.parametrize("kind", ["machine", "model"])
def test_names_are_read_from_the_first_lines(kind: names.Kind) -> None:
    """The short way to the name of an entry gives what its file says."""
    for name, path in names.entries(kind).items():
        assert name == tomllib.loads(path.read_text())["name"]


def test_labels_tell_what_stands_around() -> None:
    """A label can mean two of an entry, or one with a computer behind it."""
    assert catalogue.device("Intel Arc Pro B60 Dual 48G Turbo").units == 2
    device = catalogue.device("2x Intel Xeon Gold 6454S (16x DDR5-4800) + NVIDIA RTX 4090 24GB")
    assert device.machine.name == "RTX 4090" and device.host and device.sockets == 2
    assert device.host.name == "Xeon Gold 6454S 512GB"
    assert catalogue.device("rtx 4090").host is None


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"), ("Tesla T4", "T4"), ("AMD MI300X", "Instinct MI300X"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM 80GB"), ("RTX 3090 24GB", "RTX 3090"), ("H200 141GB", "H200 SXM"),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4090 D"), ("Apple M4 Pro", "M4 Pro 64GB"),
    ],
)  # fmt: skip
def test_labels_of_other_tables(label: str, name: str) -> None:
    """Vendors, an order of words and a memory that is the usual one do not matter."""
    assert name == catalogue.machine(label).name


@pytest.mark.parametrize("label", ["RTX 3080 12GB", "RTX 4090 Laptop", "H100 NVL", "A10", "RTX 4080 SUPER"])
def test_a_label_of_something_else_is_refused(label: str) -> None:
    """A card with another memory, or another ending, is not the one that the catalogue has."""
    with pytest.raises(UnknownName):
        catalogue.machine(label)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "Llama-3.1-8B"), ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen2.5-7B"),
        ("Qwen3-30B-A3B-Instruct-2507-FP8", "Qwen3-30B-A3B"), ("unsloth/Qwen3-8B-GGUF", "Qwen3-8B"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "Mixtral-8x7B"), ("DeepSeek-V3-0324", "DeepSeek-V3"),
        ("llama3.1:8b", "Llama-3.1-8B"), ("gemma-3-27b-it-Q4_K_M", "Gemma-3-27B"),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "Llama-3.1-70B"), ("GLM-4.6-FP8", "GLM-4.6"),
    ],
)  # fmt: skip
def test_labels_of_models(label: str, name: str) -> None:
    """Owner, tuning, format and date of a model do not change its shape."""
    assert name == catalogue.shape(label).name


@pytest.mark.parametrize(
    "label", ["google/gemma-2-9b-it", "DeepSeek-R1-Distill-Qwen-3B", "Qwen3-9B-AWQ", "Instruct"]
)
def test_a_label_of_another_model_is_refused(label: str) -> None:
    """Another size or generation is not taken for the nearest."""
    with pytest.raises(UnknownName):
        catalogue.model(label)


def test_a_label_without_an_entry_says_why() -> None:
    """Known devices that are not described are refused with the reason."""
    with pytest.raises(UnknownName, match="no machine for `Radxa Dragon Q8B`: Qualcomm SoC board"):
        catalogue.device("Radxa Dragon Q8B")
    with pytest.raises(UnknownName, match=r"no model for `Nemotron Super 49B`: .* layers differ in width"):
        catalogue.model("Nemotron Super 49B")


def test_a_label_can_change_a_model() -> None:
    """DeepSeek-V3 with 6 experts of each token, as a table has it, reads less than with 8."""
    changed, usual = (
        catalogue.model("DeepSeek-V3 (6 routed experts per token)"),
        catalogue.model("DeepSeek-V3"),
    )
    assert (changed.experts_used, usual.experts_used) == (6, 8)
    assert changed.n_weights == usual.n_weights and changed.active_weights < usual.active_weights


MINE = """
name = "mine"
power_watts = {{ value = {power}, source = "assumed" }}
[[tiers]]
name = "VRAM"
read_bytes_per_s = {{ source = "assumed", note = "nobody knows" }}
[[compute]]
format = "fp16"
operations_per_s = {{ value = {operations}, source = "datasheet" }}
[[links]]
to = "{to}"
kind = "PCIe"
bytes_per_s = {{ value = {link}, source = "datasheet" }}
"""
GOOD = {"power": "300", "operations": "312e12", "to": "host", "link": "32e9"}


def write(path: Path, **changes: str) -> str:
    path.write_text(MINE.format(**(GOOD | changes)))
    return str(path)


def test_a_machine_of_a_user_with_links(tmp_path: Path) -> None:
    """Capacity and rate that nobody knows are left out; watts and links are read."""
    machine = catalogue.machine(write(tmp_path / "mine.toml"))
    assert (machine.tiers[0].capacity_bytes, machine.tiers[0].read_bytes_per_s.value) == (None, None)
    assert machine.power_watts == Figure(300, "assumed") and machine.links[0].bytes_per_s.value == 32e9


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        (
            "operations",
            "312",
            r"at `compute\[0\].operations_per_s.value`: 312 is not plausible, .* 312 TFLOPS are",
        ),
        ("power", "700_000_000", r"at `power_watts.value`: 7e.08 is not plausible, .*\(in watts\)"),
        ("link", "32", r"at `links\[0\].bytes_per_s.value`: 32 is not plausible, .* 32 GB/s are 32e9"),
        ("link", "-1", "expected more than 0, got -1"),
        ("to", "moon", "Invalid enum value 'moon'"),
        ("power", '"much"', r"at `power_watts.value`: Expected .*\(in watts\)"),
    ],
)
def test_absurd_figures_are_refused(field: str, value: str, expected: str, tmp_path: Path) -> None:
    """A slip of unit is named with its field, what is expected, and the unit."""
    with pytest.raises(BadFile, match=expected):
        catalogue.machine(write(tmp_path / "mine.toml", **{field: value}))


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["machines", *words, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_the_list_tells_the_class(capsys: pytest.CaptureFixture[str]) -> None:
    """Every machine of the list has its figures under a rule, with the words that go with them."""
    found = listed(capsys)
    assert {"not legal advice"} == {machine["export_control"]["note"] for machine in found}
    assert [machine["name"] for machine in found] == list(MACHINES)
    main(["machines"])
    assert "not legal advice" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "classes"), [("3a090.A", {"3A090.a.1", "3A090.a.2"}), ("3A090.b", {"3A090.b"})]
)
def test_a_class_narrows_the_list(asked: str, classes: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--class` keeps the machines of that class, and of those under it."""
    found = listed(capsys, "--class", asked)
    assert classes == {machine["export_control"]["name"] for machine in found}
    assert len(found) < len(MACHINES)


def test_another_rule_gives_other_classes(capsys: pytest.CaptureFixture[str]) -> None:
    """`--rules` takes a rule by its name, and names its classes where none fits."""
    found = listed(capsys, "--rules", "case-by-case-2026", "--class", "outside")
    assert "B200 SXM 180GB" in {machine["name"] for machine in found}
    assert main(["machines", "--class", "secret"]) == 2
    assert "`3A090.a.1`, `3A090.a.2`, `3A090.b`, `below both`" in capsys.readouterr().err


def test_the_list_of_models_tells_what_a_token_costs(capsys: pytest.CaptureFixture[str]) -> None:
    """Weights, active weights, and the cache that grows: 61 latents of 576 elements for DeepSeek-V3."""
    assert main(["models", "--json"]) == 0
    found = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert found["DeepSeek-V3"]["cache_elements_per_token"] == 61 * 576
    assert found["gpt-oss-20b"]["attention"] == {"window": 12, "full": 12}
    assert found["MiniMax-M1"]["state_bytes"] == 70 * 4 * 64 * 128 * 128


def test_the_page_counts_what_ships() -> None:
    """The documentation says how many machines and models there are."""
    page = (Path(__file__).parents[1] / "docs/catalogue.md").read_text("utf-8")
    assert f"{len(MACHINES)} machines" in page and f"{len(catalogue.model_names())} models" in page
