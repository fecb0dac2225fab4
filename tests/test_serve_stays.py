"""`penjing serve` stays up: killed and hanging engines, clients that leave, reloads, and how it ends."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from commands import Command, penjing, refused, started, wait_for
from servers import HELLO, got, is_open, streaming

PTRACE_ATTACH, WAIT_FOR_ALL = 16, 0x40000000


@pytest.mark.usefixtures("known")
def test_a_killed_engine_comes_back():
    """An answer under way ends with an error in words, who waits is served, and the port never closes."""
    with started("serve", "--port", "0", "--json") as command:
        served = command.document()
        url, answers = served["url"], []

        def ask() -> None:
            with openai.OpenAI(base_url=url, api_key="none", timeout=60, max_retries=0) as asking:
                answers.append(
                    asking.chat.completions.create(model=served["model"], messages=HELLO, max_tokens=3)
                )

        with streaming(url, 3000) as reply:
            waiting = threading.Thread(target=ask)
            waiting.start()
            assert wait_for(lambda: got(url, "/live.json")["waiting"] == 1)
            os.kill(command.engine(), signal.SIGKILL)
            rest = reply.read()
        waiting.join(60)

        assert b'"engine_lost"' in rest and b"[DONE]" not in rest
        assert answers and answers[0].usage.completion_tokens == 3
        assert got(url, "/live.json")["engine_restarts"] == 1
        assert got(url, "/health") == {"status": "ok"}


@pytest.mark.usefixtures("known")
def test_a_hanging_engine_is_started_again(tiny: Path):
    """One that gives no sign of life is ended, and the next request is answered."""
    with started("serve", str(tiny), "--port", "0", "--json", "--stall", "2") as command:
        url = command.document()["url"]
        os.kill(command.engine(), signal.SIGSTOP)
        with openai.OpenAI(base_url=url, api_key="none", timeout=60, max_retries=8) as asking:
            answer = asking.chat.completions.create(model="random-tiny-Q4_0", messages=HELLO, max_tokens=3)

        assert answer.usage.completion_tokens == 3
        assert got(url, "/live.json")["engine_restarts"] == 1


@pytest.mark.usefixtures("known")
def test_an_engine_that_stands_still_is_started_again():
    """A compute thread that never comes back: its queue goes on answering, and yet the engine is ended."""
    with started("serve", "--port", "0", "--json", "--stall", "3") as command:
        served = command.document()
        with streaming(served["url"], 100_000) as reply, frozen(command.engine()):
            rest = reply.read()
        with openai.OpenAI(base_url=served["url"], api_key="none", timeout=60, max_retries=8) as asking:
            answer = asking.chat.completions.create(model=served["model"], messages=HELLO, max_tokens=3)

        assert b'"engine_lost"' in rest and answer.usage.completion_tokens == 3
        assert got(served["url"], "/live.json")["engine_restarts"] == 1


@contextlib.contextmanager
def frozen(process: int) -> Iterator[None]:
    """The thread that computed most in the last moments stands still, and no other."""
    before = cpu_ticks(process)
    time.sleep(0.3)
    after = cpu_ticks(process)
    thread = max(after, key=lambda tid: after[tid] - before.get(tid, 0))
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if ptrace(PTRACE_ATTACH, thread, None, None) != 0:
        assert ctypes.get_errno() == errno.EPERM, os.strerror(ctypes.get_errno())
        pytest.skip("this system lets nobody stop a thread of another process")
    os.waitpid(thread, WAIT_FOR_ALL)
    yield
    os.waitpid(thread, WAIT_FOR_ALL)  # its end: until it is taken note of, the process is not gone


def cpu_ticks(process: int) -> dict[int, int]:
    """Of each thread."""
    found = {}
    for stat in Path(f"/proc/{process}/task").glob("*/stat"):
        fields = stat.read_text().rpartition(")")[2].split()
        found[int(stat.parent.name)] = int(fields[11]) + int(fields[12])
    return found


@pytest.mark.usefixtures("known")
def test_a_reload_waits_for_the_first_start():
    """SIGHUP while the model is loading does not start a second engine beside the first."""
    with started("serve", "--port", "0", "--json") as command:
        assert wait_for(lambda: bool(engines(command)), 60)
        command.process.send_signal(signal.SIGHUP)
        served = command.document()
        with openai.OpenAI(base_url=served["url"], api_key="none", timeout=60, max_retries=8) as asking:
            assert asking.chat.completions.create(model=served["model"], messages=HELLO, max_tokens=3)
        assert len(engines(command)) == 1


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGHUP], ids=["while it starts", "while it reloads"])
def test_it_ends_while_the_engine_is_starting(first: signal.Signals):
    """Nobody waits for a model that is still loading; no engine and no traceback is left."""
    with started("serve", "--port", "0", "--json") as command:
        if first is signal.SIGHUP:
            command.document()
        assert wait_for(lambda: bool(engines(command)), 60)
        before = engines(command)
        command.process.send_signal(first)
        if first is signal.SIGHUP:
            assert wait_for(lambda: bool(engines(command) - before), 20)
            command.process.send_signal(signal.SIGTERM)
        done = command.finish(10)

    assert done.code == 0 and "Traceback" not in done.stderr
    assert wait_for(lambda: not any(map(lives, before)))


def lives(process: int) -> bool:
    """It is there, and no mere entry that nobody has taken note of."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def engines(command: Command) -> set[int]:
    """The processes that were started for engines and live."""
    children = Path(f"/proc/{command.process.pid}/task").glob("*/children")
    found = {int(pid) for file in children for pid in file.read_text().split()}
    return {pid for pid in found if b"llamacpp.serving" in Path(f"/proc/{pid}/cmdline").read_bytes()}


@pytest.mark.usefixtures("known")
def test_who_leaves_early_has_used_his_budget(tmp_path: Path):
    """A client that goes away before anything came is charged with the prompt that was read for it."""
    where = ("--keys", str(tmp_path / "keys.json"))
    secret = penjing("keys", "add", "alice", "--tokens-per-hour", "200", *where).stdout.strip()
    with started("serve", "--port", "0", *where, "--context", "2048", "--json") as command:
        url = command.document()["url"]
        body = json.dumps({"prompt": "word " * 400, "max_tokens": 1000, "logit_bias": {"2": -100}}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}
        ask = urllib.request.Request(f"{url}/completions", body, headers)
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(ask, timeout=0.5)

        def spent() -> bool:
            with openai.OpenAI(base_url=url, api_key=secret, timeout=60, max_retries=0) as asking:
                try:
                    asking.completions.create(model=asking.models.list().data[0].id, prompt="A", max_tokens=1)
                except openai.RateLimitError as error:
                    return error.code == "budget_spent"
            return False

        assert wait_for(spent)


@pytest.mark.usefixtures("known")
def test_who_goes_away_is_not_answered():
    """A client that leaves frees its place at once."""
    with started("serve", "--port", "0", "--context", "4096", "--json") as command:
        url = command.document()["url"]
        with streaming(url, 100_000):
            assert got(url, "/live.json")["in_flight"] == 1
        assert wait_for(lambda: got(url, "/live.json")["in_flight"] == 0)


@pytest.mark.usefixtures("known")
def test_another_plan_is_taken_up(tiny: Path, tmp_path: Path):
    """SIGHUP reads the plan again, without closing the port; one that is no plan changes nothing."""
    file = tmp_path / "plan.json"
    made = penjing("plan", str(tiny), "--json")
    file.write_text(made.stdout)
    with started("serve", str(tiny), "--plan", str(file), "--port", "0", "--json") as command:
        url = command.document()["url"]
        plan = json.loads(made.stdout)
        plan["chosen"]["settings"] |= {"sequences": 3, "context_tokens": 768}
        for text in ("{}", json.dumps(plan)):
            assert got(url, "/live.json")["slots"] == 1
            file.write_text(text)
            command.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
        assert wait_for(lambda: got(url, "/live.json")["slots"] == 3)
        assert got(url, "/state.json")["server"]["context_tokens"] == 256
        with openai.OpenAI(base_url=url, api_key="none", timeout=60) as asking:
            assert asking.chat.completions.create(model="random-tiny-Q4_0", messages=HELLO, max_tokens=3)
        command.process.send_signal(signal.SIGTERM)
        assert "reload_failed" in command.finish(20).stderr


# --- its end ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_answers_end(tiny: Path, number: signal.Signals):
    """An answer under way is finished, then the server ends with code 0 and frees the port."""
    with started("serve", str(tiny), "--port", "0", "--context", "4096", "--json") as command:
        url = command.document()["url"]
        with streaming(url, 400) as reply:
            command.process.send_signal(number)
            rest = reply.read()
        done = command.finish(20)

    assert b"data: [DONE]" in rest
    assert done.code == 0 and "Traceback" not in done.stderr and "error:" not in done.stderr
    assert wait_for(lambda: not is_open(url))


@pytest.mark.usefixtures("known")
def test_a_second_signal_ends_it_at_once():
    """Who is in a hurry asks twice."""
    with started("serve", "--port", "0", "--context", "4096", "--json") as command:
        url = command.document()["url"]
        with streaming(url, 100_000):
            command.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert command.process.poll() is None
            command.process.send_signal(signal.SIGINT)
            done = command.finish(20)

    assert done.code == 0 and "Traceback" not in done.stderr


@pytest.mark.usefixtures("known")
def test_a_killed_command_leaves_no_server(tiny: Path):
    """SIGKILL to penjing itself ends the engine with it."""
    with started("serve", str(tiny), "--port", "0", "--json") as command:
        url = command.document()["url"]
        command.process.kill()
        command.finish(10)

    assert wait_for(lambda: not is_open(url))


@pytest.mark.usefixtures("known")
def test_a_port_in_use_is_one_line(tiny: Path):
    """The address and the way out; nothing is printed on stdout."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        assert refused("serve", str(tiny), "--port", str(port), "--json") == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use",
            "`--port 0` takes a free one",
        )
