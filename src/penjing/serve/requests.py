"""What clients may ask, field by field; the engine itself would take nonsense and answer it.

Fields are those of OpenAI's API and the sampling fields of llama.cpp. A field that is not known is refused by name;
the few that only matter to a company's own service (`user`, `metadata`, …) are accepted and dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from penjing.serve.problems import Problem

MOST_DEPTH, MOST_TEXTS = 32, 64
_DROPPED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity",
     "prompt_cache_retention"}
)  # fmt: skip
_BYTES_PER_TOKEN = 4
_SEEDS = 2**31

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Stop = str | Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(max_length=16)]
Tokens = Annotated[list[TokenId], Meta(min_length=1)]
# a list of one kind, see `_prompts`
Prompt = str | Annotated[list[str | TokenId | Tokens], Meta(min_length=1)]


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class Part(Struct):
    """A piece of a message; only text can be read."""

    type: str
    text: str | None = None


class FunctionCall(Struct):
    name: str
    arguments: str


class ToolCall(Struct):
    function: FunctionCall
    type: Literal["function"] = "function"
    id: str | None = None
    index: int | None = None


class Message(Struct):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_.-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct):
    name: str


class NamedTool(Struct):
    function: NamedFunction
    type: Literal["function"] = "function"


class JsonSchema(Struct):
    schema: dict[str, Any]
    name: str = "answer"
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Asked(Struct, forbid_unknown_fields=True, kw_only=True):
    """What chats and completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    n: Annotated[int, Meta(ge=1, le=64)] | None = None
    grammar: Annotated[str, Meta(max_length=65536)] | None = None
    cache_prompt: bool | None = None


class Chat(Asked, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Completion(Asked, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/completions"""

    prompt: Prompt
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None


class Embedding(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/embeddings"""

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None


class Limits(Struct, frozen=True):
    """What a request is held against: the model that is served, its tokens, and how many answers fit at once.

    `embeds`: it gives vectors of texts. `tools`: its chat template knows them; the engine would leave them out without
    a word.
    """

    model: str
    vocabulary: int
    slots: int
    embeds: bool = False
    tools: bool = True


class Order(Struct, frozen=True):
    """A request that may be passed on.

    Units:
        texts: answers or vectors that are asked for. answers: how many of them are written at once.
        most_tokens: limit of each, None without one. prompt_tokens: about as many, by the bytes of the body.
    """

    document: dict[str, Any]
    stream: bool = False
    texts: int = 1
    answers: int = 1
    most_tokens: int | None = None
    prompt_tokens: int = 0


def read(body: bytes, kind: type[Chat] | type[Completion] | type[Embedding], limits: Limits) -> Order:
    """The order in `body`.

    Raises:
        Problem: 400 with the field at fault, or 404 for another model than the one served.
    """
    try:
        document = msgspec.json.decode(body)
        if not isinstance(document, dict):
            raise Problem(400, "the body is JSON, but not an object")
        document = {k: v for k, v in document.items() if v is not None and k not in _DROPPED}
        if _depth(document) > MOST_DEPTH:
            raise Problem(400, f"the body is nested more than {MOST_DEPTH} deep")
        asked = msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if asked.model is not None and asked.model != limits.model:
        raise Problem(
            404, f"the model `{asked.model}` is not served here, `{limits.model}` is", code="model_not_found",
            param="model",
        )  # fmt: skip
    if isinstance(asked, Embedding):
        if not limits.embeds:
            why = f"`{limits.model}` gives no embeddings: its file names no pooling"
            raise Problem(400, why, code="not_supported")
        texts = _prompts(asked.input, "input", limits)
        order = Order(document, texts=texts, answers=min(texts, limits.slots))
    else:
        _check_tokens(asked, limits)
        order = _chat(document, asked, limits) if isinstance(asked, Chat) else _text(document, asked, limits)
    return replace(order, prompt_tokens=len(body) // _BYTES_PER_TOKEN)


def _chat(document: dict[str, Any], asked: Chat, limits: Limits) -> Order:
    for number, message in enumerate(asked.messages):
        _check_message(message, f"messages[{number}]")
    document = document | _tools(document, asked, limits)
    messages = [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in document["messages"]
    ]
    most = asked.max_completion_tokens or asked.max_tokens
    return _order({**document, "messages": messages}, asked, 1, most, limits)


def _tools(document: dict[str, Any], asked: Chat, limits: Limits) -> dict[str, Any]:
    """What the choice of a tool changes: one that is named has to be called, so all others are left out.

    The engine takes a choice by name for none at all.

    Raises:
        Problem: there is none to choose, or the model would not see them.
    """
    tools, choice = document.get("tools", []), asked.tool_choice
    if tools and choice != "none" and not limits.tools:
        raise Problem(400, f"the chat template of `{limits.model}` knows no tools", param="tools")
    if isinstance(choice, NamedTool):
        name = choice.function.name
        named = [tool for tool in tools if tool["function"]["name"] == name]
        if not named:
            raise Problem(400, f"`{name}` is not among the tools", param="tool_choice")
        return {"tools": named, "tool_choice": "required"}
    if choice == "required" and not tools:
        raise Problem(400, "a tool is required, but there is none", param="tool_choice")
    return {}


def _check_message(message: Message, where: str) -> None:
    if isinstance(message.content, list):
        for part in message.content:
            if part.type != "text" or part.text is None:
                raise Problem(
                    400, f"`{part.type}` in {where}: this model reads text only", param=f"{where}.content"
                )
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise Problem(400, f"{where} has no content", param=f"{where}.content")
    if message.role == "tool" and message.tool_call_id is None:
        raise Problem(
            400, f"{where} answers no call: `tool_call_id` is missing", param=f"{where}.tool_call_id"
        )


def _text(document: dict[str, Any], asked: Completion, limits: Limits) -> Order:
    if asked.echo:
        raise Problem(400, "the prompt is not echoed here", param="echo")
    rest = {k: v for k, v in document.items() if k not in ("echo", "best_of")}
    return _order(rest, asked, _prompts(asked.prompt, "prompt", limits), asked.max_tokens, limits)


def _order(
    document: dict[str, Any], asked: Asked, prompts: int, most_tokens: int | None, limits: Limits
) -> Order:
    n = asked.n or 1
    if n > limits.slots:
        raise Problem(400, f"n is {n}, but {limits.slots} answers are written at once here", param="n")
    if asked.seed is not None:
        document = {**document, "seed": asked.seed % _SEEDS}
    texts = n * prompts
    return Order(document, bool(asked.stream), texts, min(texts, limits.slots), most_tokens)


def _prompts(prompt: str | list[Any], field: str, limits: Limits) -> int:
    """How many texts there are: one, or a list of texts or of lists of tokens; a list of tokens is one.

    Raises:
        Problem: kinds are mixed, there are too many, or a token is none of the model's.
    """
    texts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    inner = prompt if isinstance(prompt, list) else [prompt]
    if (odd := next((i for i, one in enumerate(inner) if type(one) is not type(inner[0])), None)) is not None:
        raise Problem(400, f"{field}[{odd}] is of another kind than {field}[0]", param=f"{field}[{odd}]")
    if len(texts) > MOST_TEXTS:
        raise Problem(400, f"{len(texts)} texts, at most {MOST_TEXTS} are taken at once", param=field)
    highest = max((max(tokens) for tokens in texts if isinstance(tokens, list)), default=0)
    if highest >= limits.vocabulary:
        raise Problem(400, f"token {highest} does not exist: the model has {limits.vocabulary}", param=field)
    return len(texts)


def _check_tokens(asked: Asked, limits: Limits) -> None:
    for token in asked.logit_bias or {}:
        if not re.fullmatch("[0-9]{1,10}", token) or int(token) >= limits.vocabulary:
            raise Problem(
                400, f"`{token}` is no token: the model has 0 to {limits.vocabulary - 1}", param="logit_bias"
            )


def _invalid(error: msgspec.ValidationError) -> Problem:
    """msgspec says `Expected `int` >= 1 - at `$.max_tokens``; an unknown field it names in the text."""
    text = str(error)
    what, _, where = text.partition(" - at `$")
    param = where.rstrip("`").lstrip(".") or None
    if unknown := re.search(r"unknown field `(.*)`", what, re.S):
        return Problem(
            400, f"the field `{unknown[1]}` is not known here", code="unknown_parameter", param=unknown[1]
        )
    if missing := re.search(r"missing required field `(.*)`", what):
        param = f"{param}.{missing[1]}" if param else missing[1]
        return Problem(400, f"`{param}` is missing", code="missing_required_parameter", param=param)
    return Problem(400, f"`{param}`: {what[:1].lower()}{what[1:]}", code="invalid_value", param=param)


def _depth(value: object) -> int:
    """Levels of lists and objects, counted up to one more than is allowed."""
    level, deep = [value], 0
    while deep <= MOST_DEPTH:
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
        if not level:
            break
        deep += 1
    return deep
