"""Options, words and prompts that make no sense: each is answered with what would."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from commands import refused
from penjing import store
from penjing.cli import options, serving
from penjing.errors import BadFile, UserError
from penjing.plan import Plan

COMMANDS = ("run", "plan", "bench", "serve")
FILES = ("calibrate", "build", "eval", "keys")  # make or compare files, and have none of the limits of a plan
NUMERIC = {
    "run": ("--max-tokens", "--temperature"),
    "plan": ("--prompt", "--answer", "--users", "--price-per-hour", "--price-per-kwh"),
    "bench": ("--prompt", "--answer", "--users", "--rounds"),
    "serve": ("--prompt", "--answer", "--users", "--queue", "--patience", "--drain", "--stall"),
    "keys": ("--tokens-per-hour",),
    "calibrate": ("--tokens",),
    "build": ("--size", "--bpw", "--max-kld", "--min-decode", "--finalists"),
    "eval": ("--tokens",),
}
NEEDED = {"keys": ("list",)}
LIMITS = ("--context", "--memory", "--max-kld", "--min-decode", "--per-token", "--first-token")
OPTIONS = [(command, option) for command in COMMANDS for option in (*NUMERIC[command], *LIMITS)]
OPTIONS += [(command, option) for command in FILES for option in NUMERIC[command]]


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=map(" ".join, OPTIONS))
def test_limits_that_make_no_sense(command: str, option: str, refuses):
    """Zero, less than that, no number, infinity: every option says what it got and what it must be."""
    for value in ("0", "-1", "-0.5", "nan", "inf", "x", "", "1e999", str(2**70)):
        if (option, value) in (("--temperature", "0"), ("--memory", str(2**70)), ("--size", str(2**70))):
            continue
        problem, hint = refuses(command, *NEEDED.get(command, ()), f"{option}={value}")

        assert f"`{value}`" in problem and (option in problem or "size" in problem)
        assert hint


def test_every_numeric_option_is_tried():
    """The list above holds every option that takes a value and is no text."""
    texts = {"--system", "--on", "--plan", "--seed", "--port", "--draft", "--draft-model", "--prompts"}
    texts |= {"--picture", "--format", "--class", "--rules"}
    texts |= {
        "--out",
        "--text",
        "--sensitivity",
        "--against",
        "--versus",
        "--host",
        "--keys",
        "--spec",
        "--runs",
    }
    for command in (*COMMANDS, *FILES):
        parser = argparse.ArgumentParser()
        getattr(serving if command in ("serve", "keys") else options, command)(parser)
        found = {a.option_strings[0] for a in parser._actions if a.option_strings and a.nargs is None}
        assert found - texts == {*NUMERIC[command], *(LIMITS if command in COMMANDS else ())}


@pytest.mark.parametrize("value", ["-1", "x", "", "1.5", str(2**70)])
def test_seeds_that_cannot_be(value: str, refuses):
    """A seed of a calibration is a whole number of at least 0."""
    assert refuses("calibrate", "--out", "s", f"--seed={value}") == (
        f"--seed is `{value}`, but it must be a whole number of at least 0",
        "--seed 7",
    )


@pytest.mark.parametrize("command", ["calibrate", "build"])
def test_a_file_that_is_made_needs_a_name(command: str, refuses):
    """`--out` is never guessed."""
    problem, hint = refuses(command, "model.gguf")

    assert problem == "the following arguments are required: --out"
    assert hint == f"penjing {command} --help"


@pytest.mark.parametrize("value", ["-1", "65536", "x", "", "1.5"])
def test_ports_that_cannot_be(value: str, refuses):
    """A port is a number from 0 to 65535."""
    assert refuses("serve", f"--port={value}") == (
        f"--port is `{value}`, but it must be a number from 0 to 65535",
        "--port 8080",
    )


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        (("plan", "--contxt", "10"), "`--contxt` is not understood here", "did you mean `--context`?"),
        (("run", "--memori=1GiB"), "`--memori=1GiB` is not understood here", "did you mean `--memory`?"),
        (("run", "--maxtokens", "5"), "`--maxtokens` is not understood here", "did you mean `--max-tokens`?"),
        (("bench", "--allow_disk"), "`--allow_disk` is not understood here", "did you mean `--allow-disk`?"),
        (("serve", "--zzz"), "`--zzz` is not understood here", "penjing serve --help"),
        (("probe", "extra"), "`extra` is not understood here", "penjing probe --help"),
        (("plan", "--context"), "argument --context: expected one argument", "penjing plan --help"),
        (("run", "a", "b", "c"), "3 words given, a model and a prompt expected", 'quote the prompt: "..."'),
        (
            ("run", "\udcff"),
            "'\\udcff' is not UTF-8 text",
            "rename the file, or convert the text with `iconv`",
        ),
    ],
)
def test_words_that_are_not_understood(words: tuple[str, ...], problem: str, hint: str, refuses):
    """A misspelt option is answered with the right one."""
    assert refuses(*words) == (problem, hint)


def test_an_unknown_command_is_refused(refuses):
    """With the one that is near."""
    problem, hint = refuses("pln")

    assert problem == "there is no command `pln`" and "`penjing plan`" in hint


def test_prompts_that_are_none(known: Path, tiny: Path):
    """Nothing, blanks, or bytes that are no text, from a pipe or as a bare prompt."""
    ask = 'penjing run "Name three rivers."'

    assert refused("run", str(tiny)) == ("the prompt is empty", ask)
    assert refused("run", str(tiny), given=" \n\t\n") == ("the prompt is empty", ask)
    assert refused("run", str(tiny), "", "--raw") == ("the prompt is empty", ask)
    assert refused("run", str(tiny), given=b"caf\xe9", limit_seconds=20) == (
        "the prompt is not UTF-8 text: byte 3 is 0xe9",
        "iconv -f latin1 -t utf-8 letter.txt | penjing run",
    )


def test_limits_that_contradict_each_other(known: Path, tiny: Path, refuses):
    """A context that cannot hold the workload, or that the model does not have, or memory for neither."""
    assert refuses("plan", str(tiny), "--context", "100") == (
        "a context of 100 tokens cannot hold 512 prompt + 128 answer tokens",
        "--context 640",
    )
    assert refuses("plan", str(tiny), "--context", "9000") == (
        "a context of 9000 tokens exceeds the 8192 of `random-tiny-Q4_0`",
        "--context 8192",
    )
    problem, hint = refuses("run", str(tiny), "Hi", "--memory", "1MB")
    assert re.fullmatch(
        r"`random-tiny-Q4_0` needs [\d.]+ MiB with a context of \d+ tokens, the limit is 977 KiB", problem
    )
    assert re.search(r"`(--allow-disk )?--memory \d+`", hint)


# --- errors themselves ------------------------------------------------------------------------------------


def every_error() -> list[type[UserError]]:
    found = [UserError]
    for kind in found:
        found += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_an_error_is_one_line_with_a_hint(kind: type[UserError]):
    """Line breaks in what others said are no line breaks in ours, and a hint is never missing."""
    if kind.__init__ is not UserError.__init__:
        pytest.skip("it words itself")
    error = kind("two\nlines of\t what happened")

    assert str(error) == "two lines of what happened"
    assert error.hint and "\n" not in error.hint
    assert kind("x", hint="do\nthis").hint == "do this"


def test_a_file_named_by_the_user_is_refused_with_its_place(tmp_path: Path):
    """`read_json` says what is wrong and where, and always what to do."""
    file = tmp_path / "plan.json"
    file.write_text('{"model": 7}')

    with pytest.raises(BadFile) as caught:
        store.read_json(file, Plan)

    assert str(caught.value) == f"`{file}` is not a Plan: Expected `str`, got `int` - at `$.model`"
    assert caught.value.hint == "`penjing plan --help` shows how to make one"
