"""What clients may ask: every kind of nonsense is refused in front, by the name of its field."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.serve.openapi import description
from penjing.serve.problems import Problem
from penjing.serve.requests import Chat, Completion, Embedding, Limits, Order, read

LIMITS = Limits("small", vocabulary=100, slots=4, embeds=True)
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"prompt": "Once"}


def asked(document: object, kind: Any = Chat) -> Order:
    return read(json.dumps(document).encode(), kind, LIMITS)


def problem(body: bytes | dict[str, Any], kind: Any = Chat) -> Problem:
    with pytest.raises(Problem) as caught:
        read(body if isinstance(body, bytes) else json.dumps(body).encode(), kind, LIMITS)
    return caught.value


# --- what is passed on ------------------------------------------------------------------------------------


def test_a_chat_is_passed_on_as_it_is():
    """Known fields reach the engine unchanged; those of a company's own service do not, nor does null."""
    order = asked({**HELLO, "model": "small", "temperature": 0, "stop": ["a"], "user": "x", "top_p": None})

    assert order.document == {**HELLO, "model": "small", "temperature": 0, "stop": ["a"]}
    assert (order.stream, order.answers, order.most_tokens) == (False, 1, None)


def test_a_developer_is_a_system():
    """Templates know no developers."""
    order = asked({"messages": [{"role": "developer", "content": "Be brief"}, *HELLO["messages"]]})

    assert [m["role"] for m in order.document["messages"]] == ["system", "user"]


def test_seeds_of_any_size_are_seeds():
    """A client may send 64 bits; the engine has 31, and the same seed stays the same."""
    orders = [asked({**HELLO, "seed": seed}).document["seed"] for seed in (7, -1, 2**62, 2**62)]

    assert orders[0] == 7 and orders[2] == orders[3]
    assert all(0 <= seed < 2**31 for seed in orders)


def test_tools_and_schemas_pass():
    """A function, a choice of it, and a schema for the answer, as OpenAI's clients write them."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    called = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    order = asked({
        "messages": [*HELLO["messages"], {"role": "assistant", "content": None, "tool_calls": [called]},
                     {"role": "tool", "tool_call_id": "1", "content": "sunny"}],
        "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    })  # fmt: skip

    assert order.document["tools"] == [tool]


def test_a_tool_by_name_is_the_only_one():
    """The engine would take a choice by name for none: the others are left out, and a call is required."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("weather", "news")]
    choice = {"type": "function", "function": {"name": "news"}}
    order = asked({**HELLO, "tools": tools, "tool_choice": choice})

    assert order.document["tools"] == tools[1:] and order.document["tool_choice"] == "required"
    assert problem({**HELLO, "tools": tools[:1], "tool_choice": choice}).param == "tool_choice"
    assert "there is none" in problem({**HELLO, "tool_choice": "required"}).message


def test_vectors_where_the_model_gives_them():
    """A model whose file names no pooling is not asked for vectors."""
    none = msgspec.structs.replace(LIMITS, embeds=False)
    with pytest.raises(Problem, match="names no pooling"):
        read(b'{"input": "a"}', Embedding, none)


@pytest.mark.parametrize(
    ("prompt", "answers"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2], [3]], 3), (["a"] * 9, 4)]
)
def test_prompts_are_counted(prompt: object, answers: int):
    """Each text of a list takes a slot, as far as there are slots."""
    assert asked({"prompt": prompt}, Completion).answers == answers
    assert asked({"input": prompt}, Embedding).answers == answers


# --- what is refused --------------------------------------------------------------------------------------

BODIES = {
    "empty": b"", "half": b'{"messages": [', "no utf-8": b'{"messages": "\xff"}', "a list": b"[]", "a word": b"null",
    "deep": b"[" * 100_000, "deep in a field": b'{"messages":' + b"[" * 1000 + b"]" * 1000 + b"}",
    "nan": b'{"temperature": NaN}',
}  # fmt: skip
CHATS: dict[str, tuple[dict[str, Any], str | None]] = {
    "no messages": ({}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "messages are text": ({"messages": "Hi"}, "messages"),
    "no role": ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
    "strange role": ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "content is a number": ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
    ),
    "answers no call": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    "negative tokens": ({**HELLO, "max_tokens": -5}, "max_tokens"),
    "no tokens": ({**HELLO, "max_tokens": 0}, "max_tokens"),
    "tokens are text": ({**HELLO, "max_tokens": "ten"}, "max_tokens"),
    "half a token": ({**HELLO, "max_tokens": 1.5}, "max_tokens"),
    "hot": ({**HELLO, "temperature": 9}, "temperature"),
    "cold": ({**HELLO, "temperature": -1}, "temperature"),
    "top_p": ({**HELLO, "top_p": 2}, "top_p"),
    "top_k": ({**HELLO, "top_k": -3}, "top_k"),
    "min_p": ({**HELLO, "min_p": -0.5}, "min_p"),
    "penalty": ({**HELLO, "presence_penalty": 5}, "presence_penalty"),
    "n too many": ({**HELLO, "n": 5}, "n"),
    "n none": ({**HELLO, "n": 0}, "n"),
    "logprobs": ({**HELLO, "top_logprobs": 10_000_000}, "top_logprobs"),
    "bias of no token": ({**HELLO, "logit_bias": {"100": 1}}, "logit_bias"),
    "bias of a word": ({**HELLO, "logit_bias": {"cat": 1}}, "logit_bias"),
    "bias too large": ({**HELLO, "logit_bias": {"1": 1000}}, "logit_bias"),
    "stop": ({**HELLO, "stop": 3}, "stop"),
    "stops too many": ({**HELLO, "stop": ["a"] * 17}, "stop"),
    "stream is text": ({**HELLO, "stream": "yes"}, "stream"),
    "a slot": ({**HELLO, "id_slot": 99}, "id_slot"),
    "an adapter": ({**HELLO, "lora": [{"id": 9, "scale": 1}]}, "lora"),
    "a file": ({**HELLO, "grammar_file": "/etc/passwd"}, "grammar_file"),
    "a typing error": ({**HELLO, "temprature": 1}, "temprature"),
    "seed": ({**HELLO, "seed": 2**70}, "seed"),
    "tool without name": (
        {**HELLO, "tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
    ),
    "format": ({**HELLO, "response_format": {"type": "xml"}}, "response_format.type"),
    "schema": (
        {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
        "response_format.json_schema.schema",
    ),
}
TEXTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "no prompt": ({}, "prompt"),
    "no texts": ({"prompt": []}, "prompt"),
    "token out of range": ({"prompt": [1, 100]}, "prompt"),
    "negative token": ({"prompt": [-1]}, "prompt"),
    "mixed": ({"prompt": ["a", 1]}, "prompt[1]"),
    "echo": ({**TEXT, "echo": True}, "echo"),
    "logprobs": ({**TEXT, "logprobs": 10_000_000}, "logprobs"),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_is_no_request_is_a_400(name: str):
    """Broken bodies of all kinds get a sentence, never a traceback."""
    found = problem(BODIES[name])

    assert found.status == 400 and "body" in found.message


@pytest.mark.parametrize("name", CHATS)
def test_a_wrong_chat_names_its_field(name: str):
    """The field at fault stands in `param`, in OpenAI's shape."""
    document, param = CHATS[name]
    found = problem(document)

    assert found.status == 400 and (found.param or "").startswith(param or "")
    assert found.document["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", TEXTS)
def test_a_wrong_completion_names_its_field(name: str):
    document, param = TEXTS[name]
    found = problem(document, Completion)

    assert found.status == 400 and (found.param or "").startswith(param or "")


def test_another_model_is_not_fetched():
    """A request for a model that is not served is a 404 that names the one that is."""
    found = problem({**HELLO, "model": "gpt-9"})

    assert (found.status, found.code, found.param) == (404, "model_not_found", "model")
    assert "`small`" in found.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.dictionaries(st.sampled_from(sorted(Chat.__struct_fields__)), JSON, max_size=6)


@given(JSON | FIELDS | FIELDS.map(lambda fields: {**fields, **HELLO}))
def test_anything_is_an_order_or_a_problem(document: object):
    """No JSON at all gets past as anything else."""
    for kind in (Chat, Completion, Embedding):
        try:
            order = read(msgspec.json.encode(document), kind, LIMITS)
        except Problem as found:
            assert found.status in (400, 404) and found.message
        else:
            assert 1 <= order.answers <= LIMITS.slots


@given(st.binary(max_size=200))
def test_any_bytes_are_an_order_or_a_problem(body: bytes):
    with pytest.raises(Problem):
        read(body, Chat, LIMITS)


def test_the_description_is_of_what_is_read():
    """Every field of a request stands in the OpenAPI document, and nothing else."""
    schemas = description()["components"]["schemas"]

    for kind in (Chat, Completion, Embedding):
        assert set(schemas[kind.__name__]["properties"]) == set(kind.__struct_fields__)
