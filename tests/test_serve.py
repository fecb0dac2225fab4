"""`penjing serve`, asked by the real `openai` client, with keys and without."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import small_models
from commands import lend_rates, penjing, refused, started
from penjing.gguf import read_model
from servers import HELLO, got


@pytest.fixture(scope="module")
def served(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The document of a server of the model that ships, for two users at a time."""
    cache = tmp_path_factory.mktemp("served") / "cache"
    shutil.copytree(measured, cache)
    words = ("serve", "--port", "0", "--users", "2", "--context", "1024", "--json")
    with started(*words, env={"PENJING_CACHE": str(cache)}) as command:
        yield command.document()
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
        served = command.document()
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
        served = command.document()
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
        url = command.document()["url"]
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


# --- keys -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("known")
def test_with_keys_nothing_is_open_but_health(tiny: Path, tmp_path: Path):
    """Without the key a 401 on everything that tells something; with it an answer, under its name in the log."""
    where = ("--keys", str(tmp_path / "keys.json"))
    secret = penjing("keys", "add", "alice", *where).stdout.strip()
    with started("serve", str(tiny), "--port", "0", *where, "--json") as command:
        url = command.document()["url"]
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
