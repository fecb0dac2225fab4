"""`penjing run`: what comes on stdout and stderr, how it is stopped, and what it costs."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Command, penjing, refusal, refused, started

LONG = ("--max-tokens", "4000", "--seed", "1")
TABLE_ROWS = ("decode", "prefill", "first token", "peak memory")

pytestmark = pytest.mark.usefixtures("known")


@pytest.fixture
def story(tiny: Path) -> tuple[str, ...]:
    """The words of a command that answers for seconds."""
    return "run", str(tiny), "Write a very long story about the sea.", *LONG


def has_table(stderr: str) -> bool:
    """Predicted beside measured, all four of them."""
    lines = stderr.splitlines()
    return all(any(line.startswith(row) for line in lines) for row in TABLE_ROWS) and "predicted" in stderr


# --- what it prints ---------------------------------------------------------------------------------------


def test_json_has_the_keys_that_others_rely_on():
    """The text, the plan, and each prediction beside its measured value; nothing else is on stdout."""
    done = penjing("run", "--json", "Name three rivers.", "--max-tokens", "24")
    answer = json.loads(done.stdout)
    names = ["decode_tokens_per_s", "prefill_tokens_per_s", "first_token_seconds", "peak_memory_bytes"]

    assert done.code == 0 and not has_table(done.stderr)
    assert {"text", "plan", "predicted", "measured"} <= answer.keys()
    assert answer["text"].strip() and answer["finish_reason"] in ("end", "length")
    assert {"model", "machine", "workload", "chosen", "frontier", "refused"} <= answer["plan"].keys()
    for name in names:
        estimate = answer["predicted"][name]
        assert 0 < estimate["low"] <= estimate["value"] <= estimate["high"]
        assert estimate["source"] == "measured"
        assert answer["measured"][name] > 0
    assert answer["measured"]["answer_tokens"] <= 24
    assert answer["measured"]["prompt_tokens"] == answer["plan"]["workload"]["prompt_tokens"]


def test_a_pipe_gets_the_text_alone():
    """With a seed the plain answer is that of --json; the table of predicted and measured is on stderr."""
    words = ("run", "Name three rivers.", "--max-tokens", "12", "--seed", "7")

    plain, document = penjing(*words), penjing(*words, "--json")

    assert plain.code == document.code == 0
    assert plain.stdout == json.loads(document.stdout)["text"] + "\n"
    assert has_table(plain.stderr)


def test_the_prompt_can_come_from_a_pipe(tiny: Path):
    """A text on stdin is the same prompt as an argument, with a model named or not."""
    words = ("run", str(tiny), "--max-tokens", "8", "--seed", "1")

    piped = penjing(*words, given="Name three rivers, 盆景.")
    named = penjing("run", str(tiny), "Name three rivers, 盆景.", *words[2:])

    assert piped.code == named.code == 0
    assert piped.stdout == named.stdout != ""


def test_raw_sends_the_bare_text():
    """Without the template the prompt is as long as its words, and is continued, not answered."""
    count = "1, 2, 3, 4, 5, 6, 7,"
    words = ("run", count, "--max-tokens", "4", "--temperature", "0", "--json")

    raw, chat = (json.loads(penjing(*words, *more).stdout) for more in (("--raw",), ()))

    assert raw["measured"]["prompt_tokens"] < chat["measured"]["prompt_tokens"] - 10
    assert raw["text"].startswith(" 8")


def test_instructions_come_before_the_prompt(tiny: Path):
    """--system takes the place of the template's own instructions."""
    words = ("run", str(tiny), "Hi", "--max-tokens", "1", "--json")

    short, long = (
        json.loads(penjing(*words, "--system", text).stdout)["measured"]["prompt_tokens"]
        for text in ("Rhyme.", "Rhyme. " * 20)
    )

    assert short < long


def test_a_prompt_longer_than_guessed_gets_its_room(tiny: Path):
    """One letter a token makes twice the tokens of English; the context grows for them."""
    done = penjing("run", str(tiny), "--json", "--max-tokens", "4", given="a b c d e f g h " * 100)
    answer = json.loads(done.stdout)

    assert done.code == 0, done
    assert answer["measured"]["prompt_tokens"] > 800
    assert answer["measured"]["answer_tokens"] == 4


def test_a_prompt_beyond_the_context_is_refused(tiny: Path):
    """The model's own limit and the one asked for are said with both numbers."""
    problem, hint = refused("run", str(tiny), given="word " * 30_000)
    assert problem == "a context of 37796 tokens exceeds the 8192 of `random-tiny-Q4_0`"
    assert hint == "--context 8192"

    problem, hint = refused("run", str(tiny), "--context", "64", "--max-tokens", "8", given="a b " * 300)
    assert problem.startswith("a context of 64 tokens cannot hold 340 prompt + 1 answer tokens")
    assert hint == "--context 341"


def test_a_reader_that_goes_away_ends_the_run(story):
    """As in `penjing run … | head -c 1`: no error is printed and nothing is left running."""
    with started(*story) as command:
        assert command.read(1)
        command.process.stdout.close()
        command.process.stdout = None
        done = command.finish(20)

    assert done.code == 141
    assert "Error" not in done.stderr and "Traceback" not in done.stderr


# --- how it is stopped ------------------------------------------------------------------------------------


def test_ctrl_c_stops_an_answer_cleanly(story):
    """The answer ends at a token, its table is shown, the exit code is that of an interrupted program."""
    with started(*story) as command:
        first = command.read(1000)
        command.process.send_signal(signal.SIGINT)
        start = time.monotonic()
        done = command.finish(20)

    assert time.monotonic() - start < 3
    assert done.code == 130
    assert first and (first.decode() + done.stdout).endswith("\n")
    assert has_table(done.stderr) and "Traceback" not in done.stderr


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.5, 4.0])
def test_ctrl_c_stops_what_comes_before_an_answer(tmp_path: Path, seconds: float, story):
    """While it starts, probes, measures or loads: the same code, no traceback, no half-written cache file."""
    cache = tmp_path / "empty"
    with started(*story, env={"PENJING_CACHE": str(cache)}) as command:
        time.sleep(seconds)
        command.process.send_signal(signal.SIGINT)
        start = time.monotonic()
        done = command.finish(20)

    assert time.monotonic() - start < 3
    assert done.code == 130 and "Traceback" not in done.stderr
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".json"] == []


def test_a_killed_engine_leaves_its_text_and_one_error(story):
    """What was answered stays on stdout, on a line of its own; then one line, a hint, and exit code 2."""
    with started(*story) as command:
        first = command.read(1000)
        os.kill(command.engine(), signal.SIGKILL)
        done = command.finish(20)

    assert first and (first.decode() + done.stdout).endswith("\n")
    assert refusal(done) == (
        "the engine ended by SIGKILL",
        "SIGKILL often means that memory ran out: try a smaller `--context` or `--memory`",
    )


def test_a_killed_command_leaves_no_engine(story):
    """SIGKILL and SIGTERM to penjing itself end the engine with it."""
    for number in (signal.SIGKILL, signal.SIGTERM):
        with started(*story) as command:
            assert command.read(1)
            command.process.send_signal(number)

            assert command.finish(10).code == -number


def test_a_full_disk_under_the_output_is_one_line(tiny: Path):
    """An answer that cannot be written, and a document that cannot, are refused alike."""
    for words in (("run", str(tiny), "Hi", "--max-tokens", "4"), ("models", "--json")):
        with open("/dev/full", "wb") as full:
            problem, hint = refusal(penjing(*words, stdout=full))

        assert (problem, hint) == ("the disk is full: the output cannot be written", "df -h")


# --- conversation -----------------------------------------------------------------------------------------


class Terminal:
    """A terminal with `penjing` in it."""

    def __init__(self, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        try:
            self.command = Command(*words, stdin=theirs, stdout=theirs, stderr=theirs)
        finally:
            os.close(theirs)

    def see(self, wanted: str, limit_seconds: float = 30.0) -> str:
        """What appears up to and with `wanted`."""
        shown, deadline = b"", time.monotonic() + limit_seconds
        while wanted.encode() not in shown:
            ready = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"`{wanted}` did not appear, but {shown!r}"
            shown += os.read(self._ours, 1 << 16)
        return shown.decode("utf-8", "replace")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def close(self) -> None:
        self.command.kill()
        os.close(self._ours)


@pytest.fixture
def terminal(tiny: Path) -> Iterator[Terminal]:
    opened = Terminal("run", str(tiny), *LONG)
    yield opened
    opened.close()


def test_a_conversation_goes_on_until_the_end_of_input(tiny: Path):
    """Each line is answered and remembered, an empty line asks again, Ctrl-D ends it."""
    terminal = Terminal("run", str(tiny), "--max-tokens", "8", "--seed", "1")
    shown = terminal.see("> ")
    for line in ("Hi\n", "\n", "And?\n"):
        terminal.type(line)
        shown += terminal.see("> ")
    terminal.type("\x04")
    done = terminal.command.finish(20)
    terminal.close()

    prompts = [int(found) for found in re.findall(r"(\d+) prompt \+ 8 answer tokens", shown)]
    assert done.code == 0
    assert len(prompts) == 2 and prompts[1] > prompts[0] + 8


def test_ctrl_c_in_a_conversation_ends_the_answer_alone(terminal: Terminal):
    """The next question can be asked; Ctrl-C at the prompt ends the program."""
    terminal.see("> ")
    terminal.type("Write a very long story about the sea.\n")
    terminal.see("sea.\r\n")
    terminal.see(" ")
    terminal.command.process.send_signal(signal.SIGINT)
    shown = terminal.see("\r\n> ", limit_seconds=5)  # the text may have a "> " of its own
    terminal.command.process.send_signal(signal.SIGINT)

    assert terminal.command.finish(20).code == 130
    assert has_table(shown) and "Traceback" not in shown


# --- what it costs ----------------------------------------------------------------------------------------

WEIGHED = """
import sys
from pathlib import Path
from penjing.cli import main

code = main(sys.argv[1:])
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""


def test_the_parent_stays_small():
    """All that penjing itself ever takes, tables included, is under 120 MB; the model is in the engine."""
    words = [sys.executable, "-c", WEIGHED, "run", "Hi", "--max-tokens", "4"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)

    assert int(done.stdout.split()[-2]) * 1024 < 120_000_000


def test_help_is_instant():
    """`penjing --help` takes at most 0.2 s of CPU time."""
    assert min(cpu_seconds("--help") for _ in range(5)) <= 0.2


def cpu_seconds(*words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "penjing", *words], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_first_token_comes_at_once():
    """Where the machine and the model are known it takes at most two seconds from the shell's prompt."""

    def seconds() -> float:
        start = time.monotonic()
        with started("run", "Hi", "--max-tokens", "8") as command:
            assert command.read(1)
            return time.monotonic() - start

    assert min(seconds() for _ in range(3)) <= 2.0
