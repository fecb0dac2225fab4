"""`penjing engine`: a stand-in for pip brings the library, so that everything but the compiler's hour is real."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from commands import penjing, refusal, started, wait_for
from penjing.cost import speed
from penjing.engines.llamacpp import LlamaCpp, library, native
from penjing.errors import EngineUnusable
from penjing.plan import Settings
from penjing.rates import Knobs, Rates
from penjing.search import candidates
from worlds import question

# What `python -m pip` does instead: the words of a build, and what it would leave behind.
_PIP = """
import os, pathlib, shutil, sys, time
words = sys.argv[1:]
if words == ["--version"]:
    sys.exit(0)
assert "-DLLAMA_BUILD_BORINGSSL=OFF" in os.environ["CMAKE_ARGS"] and "--no-binary" in words
pathlib.Path(os.environ["TMPDIR"], "sources").mkdir()
for share in (10, 60, 100):
    print(f"  [ {share}%] Building CXX object", flush=True)
target = pathlib.Path(words[words.index("--target") + 1], "xllamacpp")
"""
_GOOD = "target.mkdir(parents=True); shutil.copy({library!r}, target)\n"
_FAILS = "print('x.cpp:1:1: error: no such luck', flush=True); print('later error: vague'); sys.exit(1)\n"
_WAITS = "time.sleep(600)\n"
_BROKEN = "target.mkdir(parents=True); (target / 'xllamacpp.abi3.so').write_bytes(b'no library')\n"


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes `python -m pip` of every child do as told."""

    def acts(ending: str) -> None:
        folder = tmp_path / "stand-in"
        folder.mkdir(exist_ok=True)
        (folder / "pip.py").write_text(_PIP + ending.format(library=str(library.library_path())))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return acts


def left_over() -> list[str]:
    return [path.name for path in native.folder().parent.iterdir() if not path.name.endswith(".log")]


def test_a_build_is_found_listed_and_used(pip, tiny: Path):
    """Compiled, tried, named; the second call builds nothing; a model runs on it, and answers the same."""
    pip(_GOOD)
    done = penjing("engine", "build", "--json")
    again = penjing("engine", "build")
    listed = json.loads(penjing("engine", "list", "--json").stdout)

    assert json.loads(done.stdout)["name"] == "native" and "already built" in again.stderr
    assert [e["name"] for e in listed] == ["wheel", "native"] and all(e["usable"] for e in listed)
    assert left_over() == [native.folder().name]
    assert "100%" in native.folder().with_name(native.folder().name + ".log").read_text()
    assert "native" in LlamaCpp().traits(()).builds
    engine, settings = LlamaCpp(), Settings(1, 1, context_tokens=256)
    texts = []
    for build in ("wheel", "native"):
        with engine.open(tiny, replace(settings, build=build)) as session:
            maps = Path(f"/proc/{session.process_id}/maps").read_text()
            texts.append([float(rows[0, 0]) for rows in session.logits([1, 2, 3])])
            assert (str(native.folder()) in maps) == (build == "native")
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("ending", "problem"),
    [(_FAILS, "the engine could not be built: x.cpp:1:1: error: no such luck"),
     (_BROKEN, "the engine was built but does not run")],
)  # fmt: skip
def test_a_build_that_fails_leaves_only_its_log(pip, ending: str, problem: str):
    pip(ending)
    said, hint = refusal(penjing("engine", "build"))

    assert said.startswith(problem) and hint.startswith("less ") and hint.endswith(".log")
    assert left_over() == [] and native.found() is None


def test_ctrl_c_leaves_nothing(pip):
    """The compiler is ended with us, and its sources go."""
    pip(_WAITS)
    with started("engine", "build") as command:
        assert wait_for(lambda: "100%" in log_text(), 20)
        command.process.send_signal(signal.SIGINT)
        start = time.monotonic()

        assert command.finish(10).code == 130 and time.monotonic() - start < 5
    assert left_over() == []


def log_text() -> str:
    log = native.folder().with_name(native.folder().name + ".log")
    return log.read_text() if log.exists() else ""


def test_missing_tools_are_named(tmp_path: Path):
    """Without cmake and a compiler: which, and how to get them."""
    (tmp_path / "apt-get").symlink_to(sys.executable)
    said, hint = refusal(penjing("engine", "build", env={"PATH": str(tmp_path), "CXX": ""}))

    assert said == "the engine cannot be compiled here: no cmake and no C++ compiler"
    assert hint == "apt-get install cmake g++ python3-dev"


def test_an_impossible_folder_is_one_error(pip):
    pip(_GOOD)
    said, hint = refusal(penjing("engine", "build", env={"PENJING_CACHE": "/dev/null"}))

    assert said.startswith("cannot build in `/dev/null/engines`") and "PENJING_CACHE" in hint


def test_without_a_build_there_is_none():
    assert native.found() is None and native.environment("wheel") == {}
    with pytest.raises(EngineUnusable, match="no native build"):
        native.environment("native")


def test_builds_are_candidates_in_both_layouts():
    """Where there is another build, the default and its unpacked twin are tried on it; otherwise nothing is."""
    asked = question()
    traits = replace(asked.traits, builds=("wheel", "native"))
    plain, more = (
        candidates.singles(asked.default, asked.model, asked.machine.cores, t, asked.workload)[0]
        for t in (asked.traits, traits)
    )
    native_ones = [s for s in more if s.build == "native"]

    assert [s for s in more if s.build == "wheel"] == plain
    assert {s.repack for s in native_ones} == {True, False}


def test_attention_of_the_same_build_is_preferred():
    """What depth costs is taken from the build that is asked for."""
    rates = Rates("test")
    for build, deep in (("wheel", 2.0), ("native", 1.5)):
        knobs = Knobs.of("decode", Settings(1, 1, build=build))  # type: ignore[arg-type]
        rates = rates.add(knobs, 10, 0, (1.0,)).add(knobs, 10, 1000, (deep,))
    wheel, other = (
        speed.decode_seconds(rates, Settings(1, 1, build=build), 1000, 10)  # type: ignore[arg-type]
        for build in ("wheel", "native")
    )

    assert wheel is not None and other is not None
    assert wheel.value == pytest.approx(2.0) and other.value == pytest.approx(1.5)
