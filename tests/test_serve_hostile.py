"""A server among strangers: schemathesis, slow and huge requests, other hosts, wrong keys, and a storm of it all."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

import chaos
from commands import Command, penjing, started, wait_for
from penjing.serve.desk import MOST_BODY_BYTES
from penjing.serve.openapi import description

HELLO = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
schema = schemathesis.openapi.from_dict(description())


@pytest.fixture
def command(known: Path, tiny: Path) -> Iterator[tuple[Command, str]]:
    """A server of `tiny` for four users, and its address."""
    words = ("serve", str(tiny), "--port", "0", "--users", "4", "--context", "1024", "--stall", "3", "--json")
    with started(*words) as running:
        yield running, running.document()["page"]
        running.process.send_signal(signal.SIGTERM)
        assert running.finish(40).code == 0


@pytest.fixture(scope="module")
def address(measured: Path, tiny: Path) -> Iterator[str]:
    """One server for all that does it no harm."""
    words = ("serve", str(tiny), "--port", "0", "--users", "2", "--context", "1024", "--json")
    with started(*words, env={"PENJING_CACHE": str(measured)}) as running:
        yield running.document()["page"]
        running.process.send_signal(signal.SIGTERM)
        assert running.finish(40).code == 0


def asked(
    address: str, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of any request, also of one that no client would send."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    try:
        connection.request(method, path, body or None, {k.replace("_", "-"): v for k, v in headers.items()})
        reply = connection.getresponse()
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
    finally:
        connection.close()


def posted(address: str, document: dict[str, Any], **headers: str) -> int:
    body = json.dumps(document).encode()
    return asked(address, "POST", "/v1/chat/completions", body, Content_Type="application/json", **headers)[0]


# --- what is sent -----------------------------------------------------------------------------------------


@pytest.mark.slow
@schema.parametrize()
@settings(
    max_examples=25, deadline=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_no_request_is_a_fault_of_the_server(case: schemathesis.Case, address: str):
    """What the description allows and what it does not: never a 5xx, never an answer that it does not describe."""
    if isinstance(case.body, dict) and "embeddings" not in case.path:
        given = {k: v for k, v in case.body.items() if k in ("max_tokens", "max_completion_tokens")}
        case.body |= {k: 2 for k, v in given.items() if type(v) is int and v > 2}
        case.body.setdefault("max_tokens", 2)
    reply = case.call(base_url=address, timeout=60)

    assert reply.status_code < 500, (reply.status_code, reply.text)
    case.validate_response(reply, checks=[schemathesis.checks.status_code_conformance])


@pytest.mark.parametrize(
    "path", ["/page/..%2f..%2fapp.py", "/page/../app.py", "/page/%2e%2e/app.py", "//etc/passwd", "/page/"]
)
def test_no_path_reaches_the_disk(address: str, path: str):
    """Only the files of a list are pages."""
    status, _, body = asked(address, "GET", path)

    assert status == 404 and b"import" not in body


def test_only_json_is_read(address: str):
    """A form, as a page of the outside could send it without asking, is refused."""
    body = json.dumps(HELLO).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert asked(address, "POST", "/v1/chat/completions", body, Content_Type=kind)[0] == 415


def test_strangers_are_refused(address: str):
    """Another name (DNS rebinding) or a page of another origin gets nothing; our own page does."""
    host = address.removeprefix("http://")
    assert posted(address, HELLO, Host="evil.example") == 403
    assert posted(address, HELLO, Origin="https://evil.example") == 403
    assert posted(address, HELLO, Origin="null") == 403
    assert posted(address, HELLO, Origin=address) == 200
    assert asked(address, "GET", "/state.json", Host=f"localhost:{host.rpartition(':')[2]}")[0] == 200
    assert "access-control-allow-origin" not in asked(address, "OPTIONS", "/v1/models", Origin="https://a")[1]


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/nothing"])
def test_every_answer_has_its_armour(address: str, path: str):
    """No sniffing, no frames, no scripts but ours, and no word of what we run on."""
    _, headers, _ = asked(address, "GET", path)

    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "server" not in headers


def test_a_huge_body_is_refused_early(address: str):
    """100 MB are refused before they are read, whether their length is told or not."""
    status, _, _ = asked(
        address, "POST", "/v1/chat/completions", Content_Type="application/json", Content_Length="100000000"
    )
    assert status == 413
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
        sent, piece = 0, b"10000\r\n" + b"a" * 65536 + b"\r\n"
        line.settimeout(5)
        try:
            while sent < 100_000_000:
                line.sendall(piece)
                sent += 65536
                if sent > 2 * MOST_BODY_BYTES:
                    break
        except OSError:
            pass
        assert b"413" in line.recv(4096)


def test_a_head_that_never_ends_is_cut_off(address: str):
    """A client that sends headers without end is dropped by size."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        with pytest.raises(OSError):
            for _ in range(1000):
                line.sendall(b"X-Long: " + b"a" * 8000 + b"\r\n")
                time.sleep(0.001)


@pytest.mark.slow
def test_a_slow_client_is_let_go_and_holds_nobody_up(address: str):
    """Heads that trickle in (slow loris) are cut off in seconds, and others are answered meanwhile."""
    host, _, port = address.removeprefix("http://").partition(":")
    lines = [socket.create_connection((host, int(port)), timeout=30) for _ in range(50)]
    began = time.monotonic()
    for line in lines:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
    assert posted(address, HELLO) == 200
    for line in lines:
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(100) == b""
        line.close()
    assert time.monotonic() - began < 25


def test_a_second_request_before_the_first_answer_ends_both(address: str):
    """Pipelining hides from a server that its client has gone: the connection is closed, and the place is free."""
    host, _, port = address.removeprefix("http://").partition(":")
    body = json.dumps({**HELLO, "max_tokens": 900, "logit_bias": {"2": -100}}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    request = (head + "Content-Type: application/json\r\n\r\n").encode() + body
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(2 * request)
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(100) == b""
    assert wait_for(lambda: json.loads(asked(address, "GET", "/live.json")[2])["in_flight"] == 0)


def test_a_key_takes_as_long_wherever_it_is_wrong(known: Path, tiny: Path, tmp_path: Path):
    """Ratios of medians, taken in turn: what a key is wrong in cannot be told by the clock."""
    where = ("--keys", str(tmp_path / "keys.json"))
    secret = penjing("keys", "add", "alice", *where).stdout.strip()
    with started("serve", str(tiny), "--port", "0", *where, "--json") as running:
        host = running.document()["page"].removeprefix("http://")
        line = http.client.HTTPConnection(host, timeout=20)
        seconds: dict[str, list[float]] = {}
        for _ in range(300):
            for name, key in (
                ("first wrong", "x" + secret[1:]),
                ("last wrong", secret[:-1] + "~"),
            ):
                began = time.perf_counter()
                line.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
                reply = line.getresponse()
                reply.read()
                seconds.setdefault(name, []).append(time.perf_counter() - began)
                assert reply.status == 401
        line.close()

    medians = {name: statistics.median(times) for name, times in seconds.items()}
    assert medians["first wrong"] == pytest.approx(medians["last wrong"], rel=0.5)


# --- everything at once -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_storm_is_weathered(known: Path, tmp_path: Path):
    """300 requests of 24 clients, some that leave, some of nonsense, two kills and a hang: none wrong, none lost."""
    words = ("serve", "--port", "0", "--users", "2", "--context", "1024", "--stall", "3", "--json")
    with started(*words) as running:
        address = running.document()["page"]
        url = f"{address}/v1"

        async def kill(number: int) -> None:
            while not [line for line in running.family().values() if "llamacpp.serving" in line]:
                await asyncio.sleep(0.05)  # it is being started again
            os.kill(running.engine(), number)

        async def weather() -> tuple[chaos.Outcome, list[str]]:
            spell = await chaos.spelling(url, 12)
            events = {
                75: lambda: kill(signal.SIGKILL), 150: lambda: kill(signal.SIGKILL), 225: lambda: kill(signal.SIGSTOP)
            }  # fmt: skip
            return await chaos.storm(url, spell, 300, 24, events)

        outcome, faults = asyncio.run(weather())
        assert faults == []
        assert outcome.right > 200 and outcome.left > 2 and outcome.nonsense > 2
        with urllib.request.urlopen(f"{address}/live.json", timeout=20) as reply:
            live = json.load(reply)
        assert live["engine_restarts"] == 3
        assert wait_for(lambda: json.load(urllib.request.urlopen(f"{address}/live.json"))["in_flight"] == 0)
        running.process.send_signal(signal.SIGTERM)
        assert running.finish(40).code == 0
