"""What people give by mistake, or by malice: each is one line, one hint, code 2, and nothing is left or lost.

`refused` checks all of that for a real command; what refuses before it starts any process is called here, by
the fixture `refuses`. Options are in test_bad_options.py, the cache folder in test_cache_folder.py.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import zipfile
from pathlib import Path

import gguf
import pytest

from commands import lend_rates, penjing, real_model, refused, without_privilege
from gguf_files import raw_header, raw_string
from penjing.engines.base import Message
from penjing.engines.llamacpp import LlamaCpp
from penjing.errors import EngineError, EngineTimeout
from penjing.gguf import read_header
from penjing.plan import Settings

LOADS_FOR_EVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + (
    "{% endfor %}" * 3
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, so that complete error texts hold short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def patched(source: Path, target: Path, *exchanges: tuple[bytes, bytes]) -> Path:
    """`source` with some bytes exchanged for as many others."""
    content = source.read_bytes()
    for old, new in exchanges:
        assert len(old) == len(new) and old in content
        content = content.replace(old, new)
    target.write_bytes(content)
    return target


def with_number(source: Path, target: Path, key: str, value: int) -> Path:
    """`source` with another 32-bit number under `key`."""
    start = raw_string(key.encode()) + (4).to_bytes(4, "little")  # its type: uint32
    old = int(read_header(source).metadata[key])
    return patched(source, target, (start + old.to_bytes(4, "little"), start + value.to_bytes(4, "little")))


def with_template(source: Path, target: Path, template: str) -> Path:
    """`source` with another chat template, filled with blanks to the length of its own."""
    old = str(read_header(source).metadata["tokenizer.chat_template"]).encode()
    return patched(source, target, (old, template.encode().ljust(len(old))))


def of_unknown_family(source: Path, target: Path) -> Path:
    """`source` under an architecture that nobody knows."""
    name = raw_string(b"llama")
    return patched(source, target, (name, name.replace(b"llama", b"weird")), (b"llama.", b"weird."))


def children() -> list[str]:
    """Process ids of what this very process started and has not ended."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


# --- files that are no model ------------------------------------------------------------------------------


def make_bad_files(folder: Path) -> None:
    (folder / "text.gguf").write_text("Once upon a time")
    (folder / "empty.gguf").touch()
    with zipfile.ZipFile(folder / "zip.gguf", "w") as archive:
        archive.writestr("model", "x" * 1000)
    (folder / "bare.gguf").write_bytes(raw_header(3, 0, 0))
    (folder / "folder").mkdir()


AGAIN = "fetch it again: `hf download OWNER/REPOSITORY {} --force-download`"
BAD_FILES = [
    (
        "text.gguf",
        "`text.gguf` is not a GGUF file: it looks like something else (its first bytes are 4f 6e 63 65)",
        AGAIN.format("text.gguf"),
    ),
    ("empty.gguf", "`empty.gguf` is empty (0 bytes)", AGAIN.format("empty.gguf")),
    (
        "zip.gguf",
        "`zip.gguf` is not a GGUF file: it looks like a zip archive (or a PyTorch checkpoint)",
        "unpack it: `unzip zip.gguf`",
    ),
    (
        "bare.gguf",
        "`bare.gguf` does not say its architecture (`general.architecture`)",
        AGAIN.format("bare.gguf"),
    ),
    ("missing.gguf", "there is no file `missing.gguf`", "look into the folder: `ls .`"),
    (
        "folder",
        "`folder` is a folder, but the engine runs GGUF files",
        "`penjing plan folder` reads a folder's shapes; to run it, convert it to GGUF first",
    ),
    (
        "no-such-model",
        "`no-such-model` is neither a file nor a repository",
        "name a GGUF file, or a repository as `owner/name`",
    ),
    ("", "`` is neither a file nor a repository", "name a GGUF file, or a repository as `owner/name`"),
]


@pytest.mark.parametrize(("name", "problem", "hint"), BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_what_is_no_model(here: Path, name: str, problem: str, hint: str, refuses):
    """Another kind of file, nothing, a folder, an unknown name: every command says the same of it."""
    make_bad_files(here)

    assert refused("run", name, "Hi") == (problem, hint)
    for command in ("bench", "serve"):
        assert refuses(command, name) == (problem, hint)
    if name.endswith(".gguf") or not name:
        assert refuses("plan", name, "--json") == (problem, hint)


def test_a_shape_of_the_catalogue_cannot_run(refuses):
    """A name that `plan` knows has no weights: the hint says what it is good for."""
    problem, hint = refuses("run", "Qwen3-8B", "Hi")

    assert problem == "`Qwen3-8B` is neither a file nor a repository"
    assert hint.endswith("the catalogue has `Qwen3-8B`, as shapes for `penjing plan` alone")


def test_an_unknown_machine_is_refused(tiny: Path, refuses):
    """With the names that are near."""
    problem, hint = refuses("plan", "Qwen3-8B", "--on", "RTX 4091")

    assert problem == "the catalogue has no machine `RTX 4091`"
    assert "did you mean `RTX 4090`" in hint and "`penjing machines`" in hint


def test_an_unknown_model_is_refused(refuses):
    """With the names that are near."""
    problem, hint = refuses("plan", "Qwen3-9B", "--json")

    assert problem == "the catalogue has no model `Qwen3-9B`"
    assert "did you mean " in hint and "`Qwen3-8B`" in hint and "`penjing models`" in hint


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("nul JSON", "`p.json` is not a Plan: JSON is malformed: invalid character (byte 4)"),
        ("{}", "`p.json` is not a Plan: Object missing required field `model`"),
        ("[1, 2]", "`p.json` is not a Plan: Expected `object`, got `array`"),
        (None, "cannot read `p.json`: No such file or directory"),
    ],
)
def test_a_plan_file_that_is_no_plan(here: Path, content: str | None, problem: str, tiny: Path, refuses):
    """What is wrong with it and where, before anything is measured."""
    if content is not None:
        Path("p.json").write_text(content)

    assert refuses("bench", str(tiny), "--plan", "p.json")[0] == problem


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.9])
def test_a_truncated_model(here: Path, share: float):
    """The real model cut in its header, its vocabulary or its weights is refused with both sizes."""
    with real_model().open("rb") as whole:
        Path("cut.gguf").write_bytes(whole.read(int(share * real_model().stat().st_size)))

    problem, hint = refused("run", "cut.gguf", "Hi", "--json")

    assert re.match(r"`cut.gguf` ends too early: it has \d+ bytes, but .* byte \d+", problem)
    assert hint == AGAIN.format("cut.gguf")


def test_a_model_that_may_not_be_read(here: Path, tiny: Path):
    """A file, a folder and a plan without permission are one line each."""
    shutil.copy(tiny, "mine.gguf")
    Path("plan.json").write_text("{}")
    Path("secret").mkdir()
    shutil.copy(tiny, "secret/mine.gguf")
    for name in ("mine.gguf", "plan.json", "secret"):
        Path(name).chmod(0)
    look = "look at it with `ls -l`: is it there, may you read it, is it complete?"

    seen = [
        refused(*words, prefix=without_privilege())
        for words in (
            ("run", "mine.gguf", "Hi"),
            ("plan", "mine.gguf", "--json"),
            ("run", "secret/mine.gguf", "Hi"),
            ("bench", str(tiny), "--plan", "plan.json"),
        )
    ]
    Path("secret").chmod(0o700)

    assert seen == [
        ("`mine.gguf` may not be read: permission denied", "chmod u+r mine.gguf"),
        ("`mine.gguf` may not be read: permission denied", "chmod u+r mine.gguf"),
        ("cannot read `secret/mine.gguf`: Permission denied", look),
        ("cannot read `plan.json`: Permission denied", look),
    ]


# --- models that are damaged or hostile -------------------------------------------------------------------

NUMBERS = [
    ("llama.block_count", 999, "has `llama.block_count` = 999, it must be from 1 to 512"),
    ("llama.block_count", 2**31, "has `llama.block_count` = 2147483648, it must be from 1 to 512"),
    ("llama.block_count", 0, "has `llama.block_count` = 0, it must be from 1 to 512"),
    ("llama.context_length", 0, "has `llama.context_length` = 0, it must be from 1 to 1073741824"),
]


@pytest.mark.parametrize(("key", "value", "problem"), NUMBERS)
def test_a_number_that_cannot_be(here: Path, tiny: Path, key: str, value: int, problem: str):
    """The key, what it says and what it may say; the engine never sees the file."""
    with_number(tiny, Path("bad.gguf"), key, value)

    found, hint = refused("run", "bad.gguf", "Hi")

    assert found == f"`bad.gguf` {problem}"
    assert hint == "pip install gguf && gguf-dump --no-tensors bad.gguf"


@pytest.mark.usefixtures("known")
def test_weights_that_are_no_numbers(here: Path, tiny: Path):
    """NaN in the scales of one tensor is found before the first plan, and the tensor is named."""
    path = Path(shutil.copy(tiny, "nan.gguf"))
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset) + 18 * 100)  # a block of Q4_0 has 18 bytes, its fp16 scale first
        file.write(b"\x00\x7e")

    problem, hint = refused("run", "nan.gguf", "Hi")

    assert problem == (
        "the engine cannot load `nan.gguf`: error loading model: tensor 'blk.1.ffn_up.weight' has invalid data"
    )
    assert hint == ("the file may be damaged or of a family that this engine does not know; fetch it again")


@pytest.mark.usefixtures("known")
def test_a_family_that_nobody_knows(here: Path, tiny: Path):
    """Our reader takes its shapes from the tensors, and a plan elsewhere is made; the engine refuses it by name."""
    of_unknown_family(tiny, Path("odd.gguf"))

    assert penjing("plan", "odd.gguf", "--on", "Raspberry Pi 5 8GB").code == 0
    problem, hint = refused("run", "odd.gguf", "Hi", "--json")

    assert problem == (
        "the engine cannot load `odd.gguf`: error loading model: unknown model architecture: 'weird'"
    )
    assert "of a family that this engine does not know" in hint


TEMPLATES = [
    ("{% for a in %}", "Expected an expression, got 'end of statement block'"),
    ("{{ raise_exception('only\\nFrench') }}", "only French"),
    ("{{ 'x' * 10000000000000 }}", "MemoryError"),
    ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
    ("{% for a in range(1000000) %}{% endfor %}", "Range too big. The sandbox blocks ranges larger than"),
    ("{{ 1 / 0 }}", "division by zero"),
]


@pytest.mark.parametrize(("template", "problem"), TEMPLATES)
def test_a_chat_template_that_fails(here: Path, tiny: Path, template: str, problem: str):
    """Broken, refusing, greedy or prying: it is named, and the bare text is offered instead."""
    with_template(tiny, Path("bad.gguf"), template)
    with LlamaCpp().open(Path("bad.gguf"), Settings(1, 1, context_tokens=256)) as session:
        with pytest.raises(EngineError) as caught:
            session.render([Message("user", "Hi")])
        assert session.tokenize("it goes on")

    assert str(caught.value).startswith(f"the model's chat template fails: {problem}")
    assert caught.value.hint == "send the bare text with `--raw`"


def test_a_chat_template_that_loops_for_ever(known: Path, here: Path, tiny: Path, monkeypatch, refuses):
    """`run` stops it at its time limit, which is ten seconds for users and less for this test; --raw runs."""
    lend_rates(known, tiny, with_template(tiny, Path("loop.gguf"), LOADS_FOR_EVER))
    monkeypatch.setattr("penjing.cli.run.LlamaCpp", functools.partial(LlamaCpp, template_seconds=0.6))

    problem, hint = refuses("run", "loop.gguf", "Hi")

    assert problem == "the engine did not finish the chat template within 1 s and was stopped"
    assert hint
    assert not children()
    assert penjing("run", "loop.gguf", "Hi", "--raw", "--max-tokens", "2").code == 0


@pytest.mark.parametrize(
    ("change", "kind", "problem"),
    [
        (
            lambda source, target: with_template(source, target, LOADS_FOR_EVER),
            EngineTimeout,
            "the server did not finish starting to serve `bad.gguf` within 2 s and was stopped",
        ),
        (
            lambda source, target: with_template(source, target, "{% for a in %}"),
            EngineError,
            "the engine cannot serve `bad.gguf`: common_chat_templates_init: error:",
        ),
        (
            of_unknown_family,
            EngineError,
            "the engine cannot serve `bad.gguf`: llama_model_load: error loading model: unknown model architecture",
        ),
    ],
    ids=["looping template", "broken template", "unknown family"],
)
def test_a_server_that_cannot_start(here: Path, tiny: Path, change, kind: type[EngineError], problem: str):
    """The server gets a time to start in, or says itself what is wrong; either way it is gone then."""
    path = change(tiny, Path("bad.gguf"))
    settings = Settings(1, 1, context_tokens=256)

    with pytest.raises(kind) as caught:
        LlamaCpp().serve(path, settings, host="127.0.0.1", port=0, alias="bad", start_seconds=2)

    assert str(caught.value).startswith(problem) and caught.value.hint
    assert not children()
