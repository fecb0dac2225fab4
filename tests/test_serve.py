"""`penjing serve`, asked by the real `openai` client, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from commands import Command, refusal, refused, started, wait_for

HELLO = [{"role": "user", "content": "Hi"}]


def document(command: Command) -> dict[str, Any]:
    """What `serve --json` prints as soon as it answers."""
    return json.loads(command.read_until(b"\n}\n"))


def is_open(url: str) -> bool:
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.fixture(scope="module")
def served(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The document of a server of the model that ships, for two users at a time."""
    cache = tmp_path_factory.mktemp("served") / "cache"
    shutil.copytree(measured, cache)
    words = ("serve", "--port", "0", "--users", "2", "--context", "1024", "--json")
    with started(*words, env={"PENJING_CACHE": str(cache)}) as command:
        yield document(command)
        command.process.send_signal(signal.SIGINT)
        assert command.finish(10).code == 0


@pytest.fixture(scope="module")
def client(served: dict[str, Any]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served["url"], api_key="none", timeout=60) as made:
        yield made


# --- the API ----------------------------------------------------------------------------------------------


def test_the_document_says_where_and_how(served: dict[str, Any]):
    """The address on this computer alone, the name of the model, and the plan it runs under."""
    assert served["url"].startswith("http://127.0.0.1:") and served["url"].endswith("/v1")
    assert served["plan"]["model"] == served["model"]
    assert served["plan"]["chosen"]["settings"]["sequences"] == 2
    assert served["plan"]["chosen"]["settings"]["context_tokens"] >= 2 * 1024


def test_a_chat_is_answered(served: dict[str, Any], client: openai.OpenAI):
    """The official client gets one whole answer, with the model's name and the tokens used."""
    answer = client.chat.completions.create(
        model=served["model"], messages=HELLO, temperature=0, max_tokens=24
    )

    assert answer.choices[0].message.content.strip()
    assert answer.choices[0].message.role == "assistant"
    assert answer.model == served["model"]
    assert answer.usage.prompt_tokens > 10 and 1 <= answer.usage.completion_tokens <= 24


def test_a_streamed_chat_is_the_same_answer(served: dict[str, Any], client: openai.OpenAI):
    """Piece by piece comes what comes at once, and the last piece says why it ended."""
    ask = {"model": served["model"], "messages": HELLO, "temperature": 0, "max_tokens": 24}

    whole = client.chat.completions.create(**ask).choices[0]
    pieces = [chunk.choices[0] for chunk in client.chat.completions.create(**ask, stream=True)]

    assert len(pieces) > 3
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].finish_reason == whole.finish_reason


def test_several_users_are_answered_at_once(served: dict[str, Any], client: openai.OpenAI):
    """Three questions at the same time to a server of two places all get their answer."""
    answers: list[str] = []

    def ask(number: int) -> None:
        messages = [{"role": "user", "content": f"Name {number} rivers."}]
        answer = client.chat.completions.create(model=served["model"], messages=messages, max_tokens=8)
        answers.append(answer.choices[0].message.content)

    threads = [threading.Thread(target=ask, args=(number,)) for number in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(answers) == 3 and all(answers)


def test_the_server_lists_its_model(served: dict[str, Any], client: openai.OpenAI):
    """The models of the API are the one that is served."""
    assert [model.id for model in client.models.list()] == [served["model"]]


def test_a_prompt_beyond_the_context_is_an_error_of_the_api(served: dict[str, Any], client: openai.OpenAI):
    """The client raises its usual error, and the server goes on."""
    messages = [{"role": "user", "content": "word " * 3000}]

    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model=served["model"], messages=messages, max_tokens=8)
    assert client.models.list().data


# --- its end ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_in_order(tiny: Path, number: signal.Signals):
    """Ctrl-C and SIGTERM end it at once with code 0, in the middle of an answer too, and free the port."""
    with started("serve", str(tiny), "--port", "0", "--json") as command:
        url = document(command)["url"]
        body = json.dumps({"messages": HELLO, "stream": True, "max_tokens": 3000}).encode()
        ask = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(ask, timeout=20) as reply:
            assert reply.readline().startswith(b"data: ")
            command.process.send_signal(number)
            start = time.monotonic()
            done = command.finish(10)

    assert time.monotonic() - start < 5
    assert done.code == 0 and "Traceback" not in done.stderr and "error" not in done.stderr
    assert wait_for(lambda: not is_open(url))


@pytest.mark.usefixtures("known")
def test_a_killed_server_is_one_line(tiny: Path):
    """If the engine's process dies, `serve` says how and ends with code 2."""
    with started("serve", str(tiny), "--port", "0") as command:
        shown = command.read_until(b"Ctrl-C stops it\n").decode()
        os.kill(command.engine(), signal.SIGKILL)
        done = command.finish(10)

    assert "random-tiny-Q4_0 at http://127.0.0.1:" in shown and "try: curl http://" in shown
    assert refusal(done) == (
        "the server ended by SIGKILL",
        "SIGKILL often means that memory ran out: try a smaller `--context` or `--memory`",
    )


@pytest.mark.usefixtures("known")
def test_a_killed_command_leaves_no_server(tiny: Path):
    """SIGKILL to penjing itself ends the server with it."""
    with started("serve", str(tiny), "--port", "0", "--json") as command:
        url = document(command)["url"]
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
