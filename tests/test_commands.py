"""`plan`, `probe`, `bench`, `machines` and `models`: what they print for programs, and for people."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from commands import penjing
from penjing import __version__, catalogue, store
from penjing.cli import main
from penjing.plan import Plan

ESTIMATES = {"decode_tokens_per_s", "prefill_tokens_per_s", "first_token_seconds", "memory_bytes", "kld"}
SOURCES = {"measured", "datasheet", "fitted", "assumed"}


def document(*words: str) -> Any:
    """The one JSON document that a command prints."""
    done = penjing(*words, "--json")
    assert done.code == 0, done
    return json.loads(done.stdout)


def check_plan(plan: dict[str, Any]) -> None:
    """All keys that others rely on, and estimates that are in order and have a source."""
    assert {"model", "machine", "workload", "chosen", "frontier", "refused"} <= plan.keys()
    chosen = plan["chosen"]
    assert {"engine", "settings", "tensor_types", "bytes", "estimate"} <= chosen.keys()
    assert sum(chosen["tensor_types"].values()) > 0 and chosen["bytes"] > 0
    assert ESTIMATES <= chosen["estimate"].keys()
    for name in ESTIMATES:
        estimate = chosen["estimate"][name]
        assert {"value", "low", "high", "source"} <= estimate.keys() and estimate["source"] in SOURCES
        if estimate["value"] is not None:
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert all(refusal["what"] and refusal["why"] for refusal in plan["refused"])


# --- plan -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
def test_a_plan_for_this_machine_is_measured():
    """Speeds are known by measurement, the frontier holds more than one way, refusals say why."""
    plan = document("plan")

    check_plan(plan)
    assert plan["chosen"]["estimate"]["decode_tokens_per_s"]["source"] == "measured"
    assert plan["chosen"]["settings"]["context_tokens"] >= 512 + 128
    assert any(refusal["what"] == "cache type q8_0" for refusal in plan["refused"])


@pytest.mark.usefixtures("known")
def test_a_plan_for_people_says_the_same(tiny: Path):
    """The chosen way, its figures with their source, its memory, and what was refused."""
    done = penjing("plan", str(tiny))

    assert done.code == 0
    for wanted in ("random-tiny-Q4_0 on ", "chosen: ", "decode ", "measured", "memory: ", "cache type q8_0"):
        assert wanted in done.stdout, wanted


@pytest.mark.usefixtures("known")
def test_limits_bind_the_plan():
    """A context is given as asked, a memory limit is kept, and what cannot be kept is refused by name."""
    plan = document("plan", "--context", "2000", "--users", "2")
    assert plan["chosen"]["settings"]["context_tokens"] >= 4000
    assert plan["chosen"]["settings"]["sequences"] == 2

    limit = int(1.05 * document("plan")["chosen"]["estimate"]["memory_bytes"]["value"])
    assert document("plan", "--memory", str(limit))["chosen"]["estimate"]["memory_bytes"]["value"] <= limit


def capacity(machine: Any) -> int:
    return machine.count * next((t.capacity_bytes for t in machine.tiers if t.capacity_bytes), 2**60)


MODEL_NAMES = catalogue.model_names()


@pytest.mark.parametrize("number", range(len(catalogue.machine_names())))
def test_models_on_every_machine_are_planned_or_refused(number: int, capsys: pytest.CaptureFixture[str]):
    """What fits has a complete plan inside the memory; what does not is one line whose hint, if it is
    `--allow-disk`, then gives a plan. Every machine has some models, and every model some machines."""
    machine = catalogue.machine(catalogue.machine_names()[number])
    for model in (catalogue.model(MODEL_NAMES[(7 * number + i * 41) % len(MODEL_NAMES)]) for i in range(3)):
        words = ["plan", model.name, "--on", machine.name, "--json"]
        code, (out, err) = main(words), capsys.readouterr()
        if code == 0:
            plan = json.loads(out)
            check_plan(plan)
            assert plan["chosen"]["estimate"]["memory_bytes"]["value"] <= capacity(machine)
            continue
        problem, _, hint = err.splitlines()
        assert code == 2 and out == ""
        assert re.fullmatch(rf"error: `{re.escape(model.name)}` needs .* with a context of 768 .*", problem)
        if "`--allow-disk`" in hint:
            assert main([*words, "--allow-disk"]) == 0, capsys.readouterr()
            capsys.readouterr()


# --- probe ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
def test_a_probe_has_the_keys_that_others_rely_on():
    """Cores, instructions, memory, tiers with their rates and sources, and the engine found."""
    machine = document("probe")

    assert {"cores", "isa", "memory_total_bytes", "memory_limit_bytes", "tiers", "engines"} <= machine.keys()
    assert machine["cores"]["logical"] >= machine["cores"]["physical"] >= 1
    assert {"DRAM", "L1"} < {tier["name"] for tier in machine["tiers"]}
    for tier in machine["tiers"]:
        assert {"name", "capacity_bytes", "read_bytes_per_s"} <= tier.keys()
        assert {"value", "source"} <= tier["read_bytes_per_s"].keys()
    assert [engine["usable"] for engine in machine["engines"]] == [True]


@pytest.mark.usefixtures("known")
def test_a_probe_is_a_machine_to_plan_for(tmp_path: Path):
    """What `probe --json` prints is a description that `plan --on` reads."""
    file = tmp_path / "machine.json"
    file.write_text(penjing("probe", "--json").stdout)

    check_plan(document("plan", "Qwen3-0.6B", "--on", str(file)))


@pytest.mark.usefixtures("known")
def test_a_probe_for_people_names_every_tier():
    """A line on the processor, and a row for each tier."""
    done = penjing("probe")

    assert done.code == 0
    for wanted in ("cores ", "ISA ", "memory ", "engine ", "L1 ", "DRAM ", "(measured)"):
        assert wanted in done.stdout, wanted


# --- bench ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
def test_a_bench_lays_predicted_beside_measured(tiny: Path):
    """Every round of the plan and of the default is there, and the error is that of the two figures shown."""
    report = document("bench", str(tiny), "--prompt", "40", "--answer", "8", "--rounds", "2")

    assert {"measured", "predicted", "error_percent", "runs"} <= report.keys()
    names = [run["name"] for run in report["runs"]]
    assert names in (["plan", "default", "default", "plan"], ["plan"] * 2)
    predicted, measured = (
        report["predicted"]["decode_tokens_per_s"],
        report["measured"]["decode_tokens_per_s"],
    )
    assert measured["count"] == 2
    error = 100 * (predicted["value"] - measured["value"]) / measured["value"]
    assert report["error_percent"]["decode_tokens_per_s"] == pytest.approx(error)


@pytest.mark.usefixtures("known")
def test_a_bench_runs_the_plan_of_a_file(tiny: Path, tmp_path: Path):
    """A plan as `plan --json` printed it, edited by hand, is what is timed."""
    file = tmp_path / "plan.json"
    words = ("plan", str(tiny), "--prompt", "40", "--answer", "8", "--json")
    file.write_text(re.sub(r'"micro_batch": \d+', '"micro_batch": 48', penjing(*words).stdout))
    assert store.read_json(file, Plan).workload.prompt_tokens == 40

    report = document("bench", str(tiny), "--plan", str(file), "--rounds", "1")

    assert report["measured"]["settings"]["micro_batch"] == 48
    assert {run["prefill"]["tokens"] for run in report["runs"]} == {40}


# --- lists ------------------------------------------------------------------------------------------------


def test_the_lists_hold_the_whole_catalogue(capsys: pytest.CaptureFixture[str]):
    """Every machine and every model, as JSON and as a table."""
    for command, found in (("machines", catalogue.machines()), ("models", catalogue.models())):
        names = [entry.name for entry in found]
        assert main([command, "--json"]) == 0
        assert names == [entry["name"] for entry in json.loads(capsys.readouterr().out)]
        assert main([command]) == 0
        table = capsys.readouterr().out
        assert all(name in table for name in names)


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]):
    """Every command explains itself with examples that name it, and has --json."""
    for command in ("run", "plan", "probe", "bench", "serve", "machines", "models"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        shown = capsys.readouterr().out

        assert ended.value.code == 0
        assert f"\n  penjing {command}" in shown.partition("examples:")[2] and "--json" in shown


def test_without_a_command_it_introduces_itself(capsys: pytest.CaptureFixture[str]):
    """No words at all print the help; --version prints the version."""
    assert main([]) == 0
    assert "examples:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"penjing {__version__}\n"
