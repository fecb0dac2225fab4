"""`penjing calibrate` and `penjing build`, with `penjing eval` as their judge: the whole chain, on a small model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import gguf_files
import small_models
from commands import Done, penjing, refused
from gguf_families import FAMILIES
from penjing import sensitivities
from penjing.cli import main
from penjing.errors import BadFile
from penjing.gguf import read_header
from worlds import MIB, machine

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # torch beside other tests
BUILD_CONTRACT = {"artifact", "bytes", "bpw", "tensor_types", "predicted_kld", "measured", "finalists"}
MEASURED_CONTRACT = {"kld", "kld_stderr", "kld_p99", "same_top", "tokens"}
SIZE, TOKENS = 450_000, 1024


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """What is called here and not in a process of its own measures on few tokens; costs stay from test to test."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setenv("PENJING_CACHE", str(cache))
    monkeypatch.setattr("penjing.shrink._CHOICE_TOKENS", TOKENS)
    monkeypatch.setattr("penjing.shrink._REPORT_TOKENS", TOKENS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.write(tmp_path_factory.mktemp("shrink") / "source.gguf", layers=1)


@pytest.fixture(scope="module")
def assumed(source: Path) -> Path:
    """A sensitivity file for `source` that took no time to measure."""
    path = source.with_name("assumed.sensitivity")
    sensitivities.save(path, small_models.sensitivity(source))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which the costs of formats stay from test to test."""
    return tmp_path_factory.mktemp("costs")


def calibrated(source: Path, out: Path, *words: str) -> Done:
    return penjing(
        "calibrate", str(source), "--out", str(out), "--tokens", "1024", *words, env=ONE_THREAD
    )  # fmt: skip


# ---- the chain -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The documents of `calibrate`, and of `build` with what it measured, within `SIZE`."""
    sensitivity, out = source.with_name("measured.sensitivity"), source.with_name("chain.gguf")
    first = calibrated(source, sensitivity, "--json")
    second = penjing(
        "build", str(source), "--out", str(out), "--size", str(SIZE), "--sensitivity", str(sensitivity), "--json"
    )  # fmt: skip
    assert (first.code, second.code) == (0, 0), (first, second)
    return json.loads(first.stdout), json.loads(second.stdout)


def test_calibrate_keeps_its_contract(source: Path, chain):
    """The file holds moments for every matrix, belongs to the model, and nothing else is left."""
    done, _ = chain
    found = sensitivities.load_for(Path(done["sensitivity"]), read_header(source))

    assert done["tokens"] == found.tokens == 1024
    assert done["seconds"] > 0 and done["peak_memory_bytes"] > 10 * MIB
    assert found.source == "measured" and set(found.moments) == set(small_models.sensitivity(source).moments)
    assert not list(source.parent.glob("*.part"))


def test_build_keeps_its_contract(source: Path, chain):
    """The file is there, as small as asked, of the types that the document says, and nothing is left beside it."""
    _, done = chain
    out = Path(done["artifact"])
    kinds = Counter(t.tensor_type.name.lower() for t in gguf.GGUFReader(out).tensors)

    assert set(done) >= BUILD_CONTRACT and set(done["measured"]) >= MEASURED_CONTRACT
    assert done["bytes"] == out.stat().st_size <= SIZE
    assert done["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert kinds == {kind.lower(): count for kind, count in done["tensor_types"].items()}
    assert 3.5 < done["bpw"] < 6 and done["source"] == str(source)
    beside = {path.name.removeprefix("chain.gguf") for path in out.parent.glob("chain.gguf*")}
    assert beside == {"", ".types", ".json"}


def test_the_finalist_that_measured_best_is_kept(chain):
    """Three different files were built, and each has its prediction beside what it measured."""
    _, done = chain
    finalists = done["finalists"]
    best = min(finalists, key=lambda f: f["measured"]["kld"])

    assert len(finalists) == 3 and len({f["name"] for f in finalists}) == 3
    assert (best["n_bytes"], best["tensor_types"]) == (done["bytes"], done["tensor_types"])
    assert all(f["predicted_kld"] > 0 and f["n_bytes"] <= SIZE for f in finalists)
    assert finalists[0]["measured"]["text_sha256"] != done["measured"]["text_sha256"]


def test_build_and_eval_agree(source: Path, chain):
    """`eval` measures on the same text what `build` reported."""
    _, done = chain
    tokens = str(done["measured"]["tokens"])
    words = ("eval", done["artifact"], "--against", str(source), "--tokens", tokens)
    seen = json.loads(penjing(*words, "--json").stdout)

    assert {key: seen[key] for key in done["measured"]} == pytest.approx(done["measured"])


def test_the_recipe_is_for_llama_quantize_too(chain):
    """One anchored pattern and a type a line, a line for each tensor whose type was chosen."""
    _, done = chain
    lines = Path(f"{done['artifact']}.types").read_text().splitlines()
    patterns = dict(line.split("=") for line in lines)

    assert [*patterns.values()] == [*done["types"].values()]
    assert all(re.fullmatch(p, name) for p, name in zip(patterns, done["types"], strict=True))


def test_a_calibrated_build_loses_less(source: Path, chain, tmp_path: Path, capfd):
    """Than one of the same size under the prior, which is said to be assumed."""
    _, done = chain
    out = tmp_path / "prior.gguf"
    code = main(["build", str(source), "--out", str(out), "--size", str(SIZE), "--finalists", "1", "--json"])
    printed = capfd.readouterr()
    prior = json.loads(printed.out)

    assert code == 0 and prior["sensitivity"] == "assumed" and done["sensitivity"] == "measured"
    assert "a prior is assumed" in printed.err and "penjing calibrate" in printed.err
    assert prior["finalists"][0]["measured"] is None  # a single one needs no choice
    assert done["measured"]["kld"] < prior["measured"]["kld"]


# ---- limits --------------------------------------------------------------------------------------


def built(source: Path, out: Path, assumed: Path, *words: str) -> list[str]:
    return ["build", str(source), "--out", str(out), "--sensitivity", str(assumed), "--plain", *words]


def test_bits_per_weight_speak_to_people(source: Path, assumed: Path, tmp_path: Path, capfd):
    """A table of those that were built, then what was predicted and what was measured."""
    assert main(built(source, tmp_path / "f.gguf", assumed, "--bpw", "4.6", "--finalists", "2")) == 0
    table, _, rest = capfd.readouterr().out.partition("f.gguf: ")
    bits = float(rest.split(", ")[1].split()[0])

    assert "least divergence" in table and "measured KLD" in table
    assert 4.3 < bits <= 4.6
    assert "predicted KLD" in rest and "nats per token" in rest and str(TOKENS) in rest


def test_a_greatest_divergence_gives_the_smallest_file(source: Path, assumed: Path, tmp_path: Path, capfd):
    """It keeps the limit on the text by which it is chosen; if not on the other one, that is said."""
    assert (
        main(built(source, tmp_path / "f.gguf", assumed, "--max-kld", "0.3", "--finalists", "1", "--json"))
        == 0
    )
    printed = capfd.readouterr()
    done = json.loads(printed.out)

    kept = [f for f in done["finalists"] if f["measured"]["kld"] <= 0.3]

    assert done["bytes"] == min(f["n_bytes"] for f in kept) == (tmp_path / "f.gguf").stat().st_size
    assert done["bytes"] < source.stat().st_size / 2
    assert ("on the text of the report" in printed.err) == (done["measured"]["kld"] > 0.3)


def test_a_speed_becomes_bytes(source: Path, assumed: Path, tmp_path: Path, capfd, monkeypatch):
    """By the read rate of memory alone, and that this is assumed is said."""
    monkeypatch.setattr("penjing.cli.setting.this_machine", lambda path: machine())  # reads 1 GB/s
    assert (
        main(
            built(source, tmp_path / "f.gguf", assumed, "--min-decode", "2500", "--finalists", "1", "--json")
        )
        == 0
    )
    printed = capfd.readouterr()

    assert 350_000 < json.loads(printed.out)["bytes"] <= 400_000
    assert "assumed: every token reads the whole file from memory" in printed.err
    assert "2500 tok/s then allow 391 KiB" in printed.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "the limit is missing: how small?"),
        (("--size", "1GiB", "--bpw", "4"), "2 limits are given, one is expected: --size, --bpw"),
        (
            ("--max-kld", "1", "--min-decode", "4", "--bpw", "4"),
            "3 limits are given, one is expected: --bpw, --max-kld, --min-decode",
        ),
    ],
)
def test_exactly_one_limit(words: tuple[str, ...], problem: str, refuses):
    """None and several are refused before anything is read."""
    found, hint = refuses("build", "no-such-model", "--out", "x.gguf", *words)

    assert found == problem and "`" in hint


def test_a_limit_below_the_smallest_file(source: Path, assumed: Path, tmp_path: Path, refuses):
    """The refusal says how small it can be and proposes a little more, before anything is measured."""
    out = tmp_path / "f.gguf"
    problem, hint = refuses(*built(source, out, assumed, "--size", "50kB"))
    found = re.fullmatch(r"the smallest possible file takes (\d+) KiB, the limit is 48.8 KiB", problem)
    n_bytes = re.search(r"`--size (\d+)`", hint)

    assert found and n_bytes and 1 < int(n_bytes[1]) / (1024 * int(found[1])) < 1.05
    assert re.fullmatch(
        r"the smallest formats take [\d.]+ bits per weight, the limit is 0.5",
        refuses(*built(source, out, assumed, "--bpw", "0.5"))[0],
    )


def test_a_quantized_source_is_pointed_at(source: Path, tmp_path: Path, capfd):
    """What is lost now comes on top of what was lost then."""
    rounded = small_models.write(tmp_path / "rounded.gguf", "Q4_0", layers=1)
    words = ["build", str(rounded), "--out", str(tmp_path / "f.gguf"), "--bpw", "4.2", "--finalists", "1"]

    assert main(words) == 0
    assert "quantized already" in capfd.readouterr().err


# ---- what cannot be built ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["build", "calibrate"])
def test_places_where_nothing_can_be_written(command: str, source: Path, tmp_path: Path, refuses):
    """A folder that is missing, a folder instead of a file, the source itself."""
    mine = Path(shutil.copy(source, tmp_path / "mine.gguf"))
    limit = ("--bpw", "4.5") if command == "build" else ()

    def given(out: str | Path) -> tuple[str, str]:
        return refuses(command, str(mine), "--out", str(out), *limit)

    missing = tmp_path / "missing"
    assert given(missing / "f") == (f"the folder `{missing}` does not exist", f"mkdir -p {missing}")
    assert given(tmp_path)[0] == f"`{tmp_path}` is a folder, but `--out` names a file"
    assert given("") == ("`` is a folder, but `--out` names a file", "--out new-file")
    assert given(mine) == (
        f"`{mine}` is the source itself and would be lost",
        f"--out {tmp_path / 'mine-new.gguf'}",
    )
    (tmp_path / "link.gguf").symlink_to(mine)
    assert "is the source itself" in given(tmp_path / "link.gguf")[0]
    assert mine.read_bytes() == source.read_bytes()


def test_a_sensitivity_of_another_model(source: Path, assumed: Path, tmp_path: Path, refuses):
    """Refused with both hashes."""
    other = small_models.write(tmp_path / "other.gguf", seed=1)
    problem, hint = refuses(*built(other, tmp_path / "f.gguf", assumed, "--bpw", "4.5"))

    assert re.fullmatch(rf"`{assumed}` is that of another model \(\w{{12}}, this one is \w{{12}}\)", problem)
    assert hint == f"penjing calibrate MODEL --out {assumed}"


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A few bits in the last part, where the table of contents is, or the file cut somewhere."""
    if draw.random() < 0.2:
        return content[: draw.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        changed[-draw.randint(1, 2500)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def test_a_damaged_sensitivity_is_refused(source: Path, assumed: Path, tmp_path: Path, refuses):
    """Whatever its bytes are: never a traceback."""
    bad, draw = tmp_path / "bad.sensitivity", random.Random(1)
    content = assumed.read_bytes()
    np.save(tmp_path / "array.npy", np.ones(3))
    known = [b"", b"text", content[:-100], (tmp_path / "array.npy").read_bytes()]
    for piece in known:
        bad.write_bytes(piece)
        problem, _ = refuses(*built(source, tmp_path / "f.gguf", bad, "--bpw", "4.5"))
        assert problem == f"`{bad}` is not a sensitivity file, or a damaged one"
    for _ in range(200):
        bad.write_bytes(damaged(content, draw))
        with contextlib.suppress(BadFile):  # or loaded: not every bit says something
            sensitivities.load(bad)
    assert refuses(*built(source, tmp_path / "f.gguf", tmp_path / "none", "--bpw", "4.5"))[0].startswith(
        f"cannot read `{tmp_path / 'none'}`"
    )


def test_weights_that_are_no_numbers(source: Path, assumed: Path, tmp_path: Path, refuses):
    """Both commands name the tensor; no file takes the place of the result."""
    nan = Path(shutil.copy(source, tmp_path / "nan.gguf"))
    small_models.spoil(nan, "blk.0.ffn_up.weight")
    problem = f"`{nan}` has NaN or infinity in the tensor `blk.0.ffn_up.weight`"
    sensitivities.save(tmp_path / "s", small_models.sensitivity(nan))

    assert (
        refused("calibrate", str(nan), "--out", str(tmp_path / "n"), "--tokens", "1024", env=ONE_THREAD)[0]
        == problem
    )
    assert refuses(*built(nan, tmp_path / "f.gguf", tmp_path / "s", "--bpw", "4.5"))[0] == problem
    assert not (tmp_path / "n").exists() and not (tmp_path / "f.gguf").exists()


def test_a_family_that_the_calibrator_does_not_know(tmp_path: Path, refuses):
    """Those that it knows are named, and the prior is offered."""
    odd = gguf_files.write(tmp_path / "odd.gguf", FAMILIES["gemma3"])
    problem, hint = refuses("calibrate", str(odd), "--out", str(tmp_path / "s"))

    assert problem.startswith("the calibrator does not know the family `gemma3`; it knows deepseek2, ")
    assert "llama" in problem and "qwen3moe" in problem
    assert hint == "`penjing build` without `--sensitivity` uses the prior that ships"


def test_calibrating_without_torch(source: Path, tmp_path: Path, monkeypatch, refuses):
    """What is missing is named, with the words that install it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert refuses("calibrate", str(source), "--out", str(tmp_path / "s")) == (
        "calibrating needs torch, transformers, safetensors",
        "pip install 'penjing[calibrate]' (the CPU build of torch is enough)",
    )


def test_no_room_on_the_disk(source: Path, assumed: Path, tmp_path: Path, monkeypatch, refuses):
    """What the build needs and what there is, before anything is written."""
    room = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    problem, hint = refuses(*built(source, tmp_path / "f.gguf", assumed, "--size", str(SIZE)))

    assert re.fullmatch(
        rf"the build needs \S+ [KM]iB, but the disk of `{tmp_path}` has 9.77 KiB left", problem
    )
    assert "--size" in hint
    assert not list(tmp_path.iterdir())


def test_room_for_one_finalist_is_not_room_for_three(
    source: Path, assumed: Path, tmp_path: Path, monkeypatch, refuses
):
    """All of them stand beside each other: that is known before the first is built."""
    room = shutil.disk_usage(tmp_path)._replace(free=SIZE + SIZE // 2)
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    words = built(source, tmp_path / "f.gguf", assumed, "--size", str(SIZE), "--finalists", "3")

    assert "the build needs" in refuses(*words)[0]
    assert not list(tmp_path.iterdir())
