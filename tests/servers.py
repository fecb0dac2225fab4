"""A server that `penjing serve` started, asked without a client's help."""

from __future__ import annotations

import contextlib
import json
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

HELLO = [{"role": "user", "content": "Hi"}]


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
