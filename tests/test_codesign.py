"""`penjing plan --max-kld` of a model whose types are open, and the file built as planned: with the real engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

import small_models
from commands import Done, penjing, refusal
from penjing import codesign, planner, sensitivities
from penjing.cli.setting import this_machine
from penjing.engines.llamacpp import LlamaCpp
from penjing.gguf import read_header, read_model
from penjing.search.task import Task
from penjing.workload import Workload

SHORT = ("--prompt", "64", "--answer", "16")
BUSY_SECONDS = 400


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with its sensitivity, and a cache in which its rates stay from test to test."""
    folder = tmp_path_factory.mktemp("codesign")
    source = small_models.write(folder / "source.gguf", layers=2)
    sensitivities.save(folder / "known.sensitivity", small_models.sensitivity(source))
    return folder


@pytest.fixture(scope="module")
def planned(place: Path) -> dict:
    done = run(place, "plan", place / "source.gguf", "--max-kld", "0.5", *SHORT, "--json", *known(place))
    assert done.code == 0, done.stderr
    (place / "plan.json").write_text(done.stdout)
    return json.loads(done.stdout)


def run(place: Path, *words: object) -> Done:
    return penjing(*map(str, words), env={"PENJING_CACHE": str(place / "cache")}, limit_seconds=BUSY_SECONDS)


def refused(done: Done, *words: str) -> None:
    """It refused in one line and a hint, which say all of `words`."""
    assert all(word in " ".join(refusal(done)) for word in words), done.stderr


def known(place: Path) -> tuple[str, str]:
    return "--sensitivity", str(place / "known.sensitivity")


def test_types_and_settings_are_planned_together(place, planned):
    """The contract of every plan, a type for every matrix, a baseline that anybody can have, and reasons."""
    chosen = planned["chosen"]
    assert {"model", "machine", "workload", "chosen", "frontier", "refused"} <= planned.keys()
    assert sum(chosen["tensor_types"].values()) == len(read_model(place / "source.gguf").tensors)
    assert set(chosen["types"]) >= {"blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight"}
    assert 0 <= chosen["estimate"]["kld"]["value"] <= 0.5
    assert (
        chosen["estimate"]["total_seconds"]["value"]
        <= planned["default"]["estimate"]["total_seconds"]["value"]
    )
    assert "the engine's default" in planned["default"]["why"]
    assert planned["frontier"] and all(r["why"] for r in planned["refused"])
    assert any("the prompt takes" in note for note in planned["notes"])


def test_a_memory_that_changed_meanwhile_is_told(place, planned):
    """Rates that were taken while it gave much less and then much more are called unfit."""
    (kept,) = (place / "cache").glob("**/passes/*.json")
    rates = json.loads(kept.read_bytes())
    assert len(rates["memory_bytes_per_s"]) > 1
    kept.write_text(json.dumps(rates | {"memory_bytes_per_s": [33e9, 58e9]}))
    done = run(place, "plan", place / "source.gguf", "--max-kld", "0.5", *SHORT, "--json", *known(place))
    kept.write_text(json.dumps(rates))
    (told,) = (note for note in json.loads(done.stdout)["notes"] if note.startswith("memory gave"))
    assert "30.7 GiB/s to 54.0 GiB/s" in told and "--fresh" in told


def test_what_a_quantized_cache_costs(place, planned, monkeypatch):
    """It is measured on the source where memory is short, and known from then on; elsewhere it is not asked."""
    monkeypatch.setenv("PENJING_CACHE", str(place / "cache"))
    source = place / "source.gguf"
    model, engine = read_model(source), LlamaCpp()
    opened = codesign.Source(read_header(source), model, ())
    workload = Workload(64, 16, max_kld=0.5, context_tokens=2048)
    question = planner.question_for(model, this_machine(source), workload, engine)
    task = Task(replace(question, budget_bytes=3 * 10**7), (), None)
    cost = codesign._cache_kld(opened, task, engine, fresh=True)

    assert 0 < cost < 0.05
    assert codesign._cache_kld(opened, task, Known(engine.version), fresh=False) == cost
    assert codesign._cache_kld(opened, replace(task, question=replace(
        task.question, workload=replace(workload, max_kld=None))), engine, fresh=False) is None  # fmt: skip


class Known(NamedTuple):
    """An engine that cannot be asked."""

    version: str


def test_a_second_plan_measures_nothing_anew(place, planned):
    """Rates stay in the cache: another workload is planned from them."""
    rates = sorted((place / "cache" / "passes").iterdir())
    before = [file.read_bytes() for file in rates]
    done = run(
        place,
        "plan",
        place / "source.gguf",
        "--max-kld",
        "0.2",
        "--prompt",
        "16",
        "--answer",
        "64",
        *known(place),
    )
    assert done.code == 0, done.stderr
    assert "timing slices" not in done.stderr
    assert "chosen: " in done.stdout and "KL divergence" in done.stdout
    assert before == [file.read_bytes() for file in rates]


def test_guesses_are_planned_with_the_types(place, planned):
    """What is not known is said; once `penjing draft` has seen the source, types and guesses are weighed together."""
    assert "penjing draft" in told(planned, "guessing ahead")
    prompts = place / "prompts.txt"
    prompts.write_text("a b a b a b a b a b a b\n---\nab ab ab ab ab ab ab ab")
    drafted = run(place, "draft", place / "source.gguf", "--prompts", prompts, "--answer", "32", "--json")
    assert drafted.code == 0, drafted.stderr
    words = "plan", place / "source.gguf", "--max-kld", "0.5", "--prompt", "16", "--answer", "200", "--json"
    plan = json.loads(run(place, *words, *known(place)).stdout)
    off = json.loads(run(place, *words, *known(place), "--draft", "off").stdout)
    reasons = [r["what"] for r in plan["refused"]] + [str(plan["chosen"]["settings"]["drafting"])]
    assert any("n-grams" in what or "ngram" in what or "guessing ahead" in what for what in reasons)
    assert "is not known" not in told(plan, "guessing ahead")
    assert off["chosen"]["settings"]["drafting"]["kind"] == "none" and not told(off, "guessing ahead")


def told(plan: dict, what: str) -> str:
    """Why `what` was refused; empty if it was not."""
    return " ".join(r["why"] for r in plan["refused"] if r["what"] == what)


def test_the_file_is_built_as_planned(place, planned):
    """Every tensor has the type of the plan, and the file was measured."""
    out = place / "fast.gguf"
    done = run(
        place,
        "build",
        place / "source.gguf",
        "--plan",
        place / "plan.json",
        "--out",
        out,
        "--json",
        *known(place),
    )
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    types = {t.name: t.type for t in read_model(out).tensors}
    assert {name: types[name] for name in planned["chosen"]["types"]} == planned["chosen"]["types"]
    assert report["measured"]["kld"] >= 0
    of_types = planned["chosen"]["estimate"]["kld"]["value"] - cache_kld(place, planned["chosen"]["settings"])
    assert report["predicted_kld"] == pytest.approx(of_types, rel=1e-4)


def cache_kld(place: Path, settings: dict) -> float:
    """The part of a plan's divergence that is no type's: which cache is faster is for the day's rates to say."""
    if settings["cache_type"] == "f16":
        return 0.0
    (known,) = (place / "cache" / "costs").glob("cache-*.json")
    return json.loads(known.read_bytes())


def test_what_each_freedom_is_worth(place, planned):
    """Five steps, from the engine's default to types and settings together, and a verdict."""
    done = run(
        place, "bench", place / "source.gguf", "--ablate", "--max-kld", "0.5", *SHORT, "--json", *known(place)
    )
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert [s["name"].split(",")[0] for s in report["steps"]] == [
        "engine's default", "best flags", "best stock types", "one after the other", "together",
    ]  # fmt: skip
    assert all(s["chosen"]["estimate"]["total_seconds"]["source"] == "measured" for s in report["steps"])
    verdict = "of the time of one after the other"
    assert report["verdict"].endswith(verdict)
    shown = run(place, "bench", place / "source.gguf", "--ablate", "--max-kld", "0.5", *SHORT, *known(place))
    assert shown.stdout.rstrip().endswith(verdict)


def test_what_cannot_be_planned_or_built(place, planned):
    """Impossible limits name the nearest; plans for other models, without types or with strange ones are refused."""
    source = place / "source.gguf"
    done = run(place, "plan", source, "--max-kld", "0.5", "--min-decode", "1e9", *SHORT, *known(place))
    refused(done, "keep all limits", "--max-kld")
    refused(run(place, "plan", source, "--max-kld", "1e-12", "--memory", "80MB", *SHORT, *known(place)))
    refused(run(place, "plan", source, *known(place)), "--max-kld")
    refused(run(place, "bench", source, "--ablate"), "--max-kld")
    small = place / "quantized.gguf"
    small_models.write(small, "Q4_0")
    refused(run(place, "bench", small, "--ablate", "--max-kld", "0.1"), "quantized already")
    for name, change in (
        ("other", {"model": "another"}),
        ("plain", {"types": {}}),
        ("strange", {"types": "tq1_0"}),
    ):
        text = json.loads((place / "plan.json").read_text())
        if change.get("types") == "tq1_0":
            text["chosen"]["types"] = dict.fromkeys(text["chosen"]["types"], "tq1_0")
        elif "types" in change:
            text["chosen"]["types"] = {}
        else:
            text |= change
        (place / f"{name}.json").write_text(json.dumps(text))
        done = run(
            place,
            "build",
            source,
            "--plan",
            place / f"{name}.json",
            "--out",
            place / "no.gguf",
            *known(place),
        )
        refused(done)
        assert not (place / "no.gguf").exists()
