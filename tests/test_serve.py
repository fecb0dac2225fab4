"""`penjing serve`, asked by the real `openai` client, watched, reloaded, and how it ends."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import small_models
from commands import Command, lend_rates, penjing, refused, started, wait_for
from penjing.gguf import read_model

PTRACE_ATTACH, WAIT_FOR_ALL = 16, 0x40000000
HELLO = [{"role": "user", "content": "Hi"}]


def document(command: Command) -> dict[str, Any]:
    """What `serve --json` prints as soon as it answers."""
    return json.loads(command.read_until(b"\n}\n"))


def is_open(url: str) -> bool:
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def got(url: str, path: str) -> Any:
    """A document of the server."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}{path}", timeout=20) as reply:
        return json.load(reply)


@contextlib.contextmanager
def streaming(url: str, max_tokens: int) -> Iterator[Any]:
    """A stream of which the first piece has come; the model may not end it by itself (`<|im_end|>`)."""
    asked = {"messages": HELLO, "stream": True, "max_tokens": max_tokens, "logit_bias": {"2": -100}}
    body = json.dumps(asked).encode()
    ask = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(ask, timeout=60) as reply:
        assert reply.readline().startswith(b"data: ")
        yield reply


@pytest.fixture(scope="module")
def served(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The document of a server of the model that ships, for two users at a time."""
    cache = tmp_path_factory.mktemp("served") / "cache"
    shutil.copytree(measured, cache)
    words = ("serve", "--port", "0", "--users", "2", "--context", "1024", "--json")
    with started(*words, env={"PENJING_CACHE": str(cache)}) as command:
        yield document(command)
        command.process.send_signal(signal.SIGINT)
        assert command.finish(20).code == 0


@pytest.fixture(scope="module")
def client(served: dict[str, Any]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served["url"], api_key="none", timeout=60, max_retries=0) as made:
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


def test_a_stream_can_count(served: dict[str, Any], client: openai.OpenAI):
    """`include_usage` brings the tokens in a last piece."""
    *_, last = client.chat.completions.create(
        model=served["model"],
        messages=HELLO,
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )

    assert last.choices == [] and last.usage.completion_tokens == 4


def test_a_text_is_continued(served: dict[str, Any], client: openai.OpenAI):
    """Completions take one text or several, and answer each."""
    one = client.completions.create(model=served["model"], prompt="One, two,", max_tokens=4, temperature=0)
    two = client.completions.create(model=served["model"], prompt=["A", "B"], max_tokens=4)

    assert one.choices[0].text and len(two.choices) == 2


def test_a_schema_is_kept(served: dict[str, Any], client: openai.OpenAI):
    """An answer under a JSON schema is JSON of that form."""
    schema = {
        "type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"],
        "additionalProperties": False,
    }  # fmt: skip
    answer = client.chat.completions.create(
        model=served["model"], messages=HELLO, max_tokens=40, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )  # fmt: skip

    assert set(json.loads(answer.choices[0].message.content)) == {"n"}


CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
WEATHER = {
    "messages": [{"role": "user", "content": "Weather in Oslo?"}], "max_tokens": 120, "temperature": 0,
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": CITY}}], "tool_choice": "required",
}  # fmt: skip


def test_tools_that_no_template_shows_are_refused(served: dict[str, Any], client: openai.OpenAI):
    """The engine would answer as if there were none."""
    with pytest.raises(openai.BadRequestError, match="knows no tools"):
        client.chat.completions.create(model=served["model"], **WEATHER)


@pytest.mark.usefixtures("known")
def test_tools_reach_the_template(tiny: Path, tmp_path: Path):
    """Where the template shows tools, the model sees them: the prompt grows by what they are."""
    model = tmp_path / "tools.gguf"
    template = (Path(__file__).parent / "data" / "tools.jinja").read_text()
    change = ["-m", "gguf.scripts.gguf_new_metadata", str(tiny), str(model), "--chat-template", template]
    subprocess.run([sys.executable, *change], check=True, capture_output=True)
    lend_rates(Path(os.environ["PENJING_CACHE"]), tiny, model)
    with started("serve", str(model), "--port", "0", "--json") as command:
        served = document(command)
        with openai.OpenAI(base_url=served["url"], api_key="none", timeout=60) as asking:
            with_tools = asking.chat.completions.create(model=served["model"], **WEATHER)
            without = asking.chat.completions.create(
                model=served["model"], messages=WEATHER["messages"], max_tokens=4
            )

    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 50
    assert with_tools.choices[0].finish_reason in ("length", "tool_calls")  # without a call it cannot end


def test_vectors_of_texts(known: Path, tiny: Path, tmp_path: Path):
    """A model whose file says how a text becomes a vector gives them: as long as it is wide, equal for equal texts."""
    model = small_models.write(tmp_path / "vectors.gguf", pooling=1)
    plan = json.loads(penjing("plan", str(tiny), "--users", "2", "--json").stdout)
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"model": read_model(model).name}))
    words = ("serve", str(model), "--plan", str(tmp_path / "plan.json"), "--port", "0", "--json")
    with started(*words) as command:
        served = document(command)
        with openai.OpenAI(base_url=served["url"], api_key="none", timeout=60) as asking:
            found = asking.embeddings.create(model=served["model"], input=["A river", "A gate", "A river"])
            one = asking.embeddings.create(model=served["model"], input="A gate", encoding_format="float")
            text = asking.completions.create(model=served["model"], prompt="A", max_tokens=2)

    first, second, third = (np.array(row.embedding) for row in found.data)
    assert len(first) == small_models.WIDTH and found.usage.prompt_tokens > 10
    assert first @ third > 0.999 > first @ second
    assert np.array(one.data[0].embedding) @ second > 0.999
    assert text.usage.completion_tokens == 2


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
    assert client.models.retrieve(served["model"]).id == served["model"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")


def test_a_prompt_beyond_the_context_is_an_error_of_the_api(served: dict[str, Any], client: openai.OpenAI):
    """The client raises its usual error, and the server goes on."""
    messages = [{"role": "user", "content": "word " * 3000}]

    with pytest.raises(openai.BadRequestError, match="context") as caught:
        client.chat.completions.create(model=served["model"], messages=messages, max_tokens=8)
    assert caught.value.code == "context_length_exceeded"
    assert client.models.list().data


def test_embeddings_are_refused_in_words(served: dict[str, Any], client: openai.OpenAI):
    """A model that gives none says so, as a fault of the request."""
    with pytest.raises(openai.BadRequestError, match="names no pooling"):
        client.embeddings.create(model=served["model"], input="river")


def test_the_metrics_count(served: dict[str, Any], client: openai.OpenAI):
    """Tokens and first tokens are counted, beside what the plan predicts."""
    client.chat.completions.create(model=served["model"], messages=HELLO, max_tokens=4)
    with urllib.request.urlopen(f"{served['page']}/metrics", timeout=20) as reply:
        text = reply.read().decode()
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    predicted = served["plan"]["chosen"]["estimate"]["decode_tokens_per_s"]["value"]

    assert float(figures["penjing_answer_tokens_total"]) >= 4
    assert float(figures["penjing_first_token_seconds_count"]) >= 1
    assert float(figures["penjing_slots"]) == 2 and float(figures["penjing_engine_up"]) == 1
    shown = figures['penjing_predicted{bound="value",figure="decode_tokens_per_s"}']
    assert float(shown) == pytest.approx(predicted)


def test_the_log_holds_no_prompts(measured: Path, tiny: Path, known: Path):
    """One line of JSON for each request, with its figures, and nothing of what was said."""
    with started("serve", str(tiny), "--port", "0", "--json") as command:
        url = document(command)["url"]
        with openai.OpenAI(base_url=url, api_key="none", timeout=60) as asking:
            asking.chat.completions.create(
                model="", messages=[{"role": "user", "content": "my secret"}], max_tokens=3,
                extra_body={"model": None},
            )  # fmt: skip
            with pytest.raises(openai.BadRequestError):
                asking.completions.create(model="", prompt="", extra_body={"model": None, "my secret": 1})
        command.process.send_signal(signal.SIGTERM)
        done = command.finish(20)

    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    request, wrong = [line for line in lines if line["event"] == "request"]
    assert (wrong["status"], wrong["why"]) == (400, "unknown_parameter")
    assert (request["status"], request["answer_tokens"], request["path"]) == (200, 3, "/v1/chat/completions")
    assert "secret" not in done.stderr


# --- never down -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
def test_a_killed_engine_comes_back():
    """An answer under way ends with an error in words, who waits is served, and the port never closes."""
    with started("serve", "--port", "0", "--json") as command:
        served = document(command)
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
        url = document(command)["url"]
        os.kill(command.engine(), signal.SIGSTOP)
        with openai.OpenAI(base_url=url, api_key="none", timeout=60, max_retries=8) as asking:
            answer = asking.chat.completions.create(model="random-tiny-Q4_0", messages=HELLO, max_tokens=3)

        assert answer.usage.completion_tokens == 3
        assert got(url, "/live.json")["engine_restarts"] == 1


@pytest.mark.usefixtures("known")
def test_an_engine_that_stands_still_is_started_again():
    """A compute thread that never comes back: its queue goes on answering, and yet the engine is ended."""
    with started("serve", "--port", "0", "--json", "--stall", "3") as command:
        served = document(command)
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
        served = document(command)
        with openai.OpenAI(base_url=served["url"], api_key="none", timeout=60, max_retries=8) as asking:
            assert asking.chat.completions.create(model=served["model"], messages=HELLO, max_tokens=3)
        assert len(engines(command)) == 1


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGHUP], ids=["while it starts", "while it reloads"])
def test_it_ends_while_the_engine_is_starting(first: signal.Signals):
    """Nobody waits for a model that is still loading; no engine and no traceback is left."""
    with started("serve", "--port", "0", "--json") as command:
        if first is signal.SIGHUP:
            document(command)
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
        url = document(command)["url"]
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
        url = document(command)["url"]
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
        url = document(command)["url"]
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


# --- keys -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
def test_with_keys_nothing_is_open_but_health(tiny: Path, tmp_path: Path):
    """Without the key a 401 on everything that tells something; with it an answer, under its name in the log."""
    where = ("--keys", str(tmp_path / "keys.json"))
    secret = penjing("keys", "add", "alice", *where).stdout.strip()
    with started("serve", str(tiny), "--port", "0", *where, "--json") as command:
        url = document(command)["url"]
        for path in ("/v1/models", "/metrics", "/state.json", "/live.json", "/openapi.json"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                got(url, path)
            assert caught.value.code == 401
            caught.value.close()
        assert got(url, "/health") == {"status": "ok"}
        page_of_others = urllib.request.Request(f"{url}/models", headers={"Origin": "http://evil.example"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(page_of_others, timeout=20)
        assert caught.value.code == 403
        caught.value.close()
        for key, right in (("wrong", False), (secret, True)):
            with openai.OpenAI(base_url=url, api_key=key, timeout=60, max_retries=0) as asking:
                if right:
                    asking.chat.completions.create(model="random-tiny-Q4_0", messages=HELLO, max_tokens=2)
                else:
                    with pytest.raises(openai.AuthenticationError):
                        asking.models.list()
        command.process.send_signal(signal.SIGTERM)
        done = command.finish(20)

    assert '"key": "alice"' in done.stderr and secret not in done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["event"] == "turned_away"] == [401] * 5 + [403, 401]


def test_others_need_keys(tiny: Path, tmp_path: Path):
    """Nobody serves the world by accident."""
    problem, hint = refused(
        "serve",
        str(tiny),
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        env={"PENJING_KEYS": str(tmp_path / "none.json")},
    )

    assert "no key is asked of them" in problem and hint.startswith("penjing keys add NAME")


# --- its end ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_answers_end(tiny: Path, number: signal.Signals):
    """An answer under way is finished, then the server ends with code 0 and frees the port."""
    with started("serve", str(tiny), "--port", "0", "--context", "4096", "--json") as command:
        url = document(command)["url"]
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
        url = document(command)["url"]
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
