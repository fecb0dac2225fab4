"""`penjing serve` beside the engine's bare server under the same settings, and then under everything at once.

    python bench/serve_load.py [--users 1,4,16,64] [--requests 10000]      about 20 minutes on two cores

SmolLM2, planned for 16 users of 128 prompt and 64 answer tokens. Both servers are up all the time and are asked in
turn, round after round, by the same clients: so many users, each of whom asks again as soon as he is answered.
Throughput, first token and time per token of both; what the front takes of memory; the first token at 16 users beside
what the plan states. Then `--requests` requests by 64 clients, with 5 % that leave, 5 % that talk nonsense, the engine
killed twice and once stopped (SIGSTOP). The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from msgspec import Struct

import chaos
from penjing.engines.llamacpp import LlamaCpp
from penjing.fetch import resolve
from penjing.plan import Plan
from penjing.probe import load_average
from penjing.serve.spec import SOCKET
from penjing.store import read_json

PROMPT, ANSWER, PLANNED, ROUNDS = 128, 64, 16, 3
AIMS = {"throughput": 0.97, "first_added_seconds": 0.002, "front_bytes": 50e6, "memory_growth": 0.05}
_WORDS = ("river", "stone", "pine", "moss", "rain", "cloud", "path", "gate", "lamp", "bridge")
_SHORT_REQUESTS = 100
_KILLS, _HANG = (0.25, 0.5), 0.75  # of the requests


class Heard(Struct, frozen=True):
    """What the users of one run saw; seconds."""

    tokens_per_s: float
    first: tuple[float, ...]
    per_token: tuple[float, ...]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", default="1,4,16,64")
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a killed bench ends its servers
    users = [int(n) for n in args.users.split(",")]
    report: dict[str, Any] = {"bench": "serve_load", "load_average": load_average()}
    with tempfile.TemporaryDirectory(prefix="penjing-bench-") as folder:
        file = _planned(Path(folder))
        plan = read_json(file, Plan)
        with _front(file) as (url, front), _bare(plan) as bare:
            report |= _raced(url, bare, users, plan)
            report |= asyncio.run(_added(url, front))
            report |= {"front_bytes": _resident(front), "aim_front_bytes": AIMS["front_bytes"]}
            print(
                f"front: {report['front_bytes'] / 1e6:.0f} MB (aim {AIMS['front_bytes'] / 1e6:.0f})",
                flush=True,
            )
        if args.requests:
            with _front(file, "--stall", "20") as (url, front):
                report["storm"] = asyncio.run(_storm(url, front, args.requests))
    print(json.dumps(report))
    return 0


def _planned(folder: Path) -> Path:
    file = folder / "plan.json"
    words = ["--users", str(PLANNED), "--prompt", str(PROMPT), "--answer", str(ANSWER), "--context", "512"]
    with file.open("wb") as out:
        subprocess.run([sys.executable, "-m", "penjing", "plan", *words, "--json"], stdout=out, check=True)
    return file


@contextlib.contextmanager
def _front(plan: Path, *more: str) -> Iterator[tuple[str, int]]:
    """The URL of the API and the process id of `penjing serve`."""
    words = [
        "serve",
        "--plan",
        str(plan),
        "--port",
        "0",
        "--queue",
        "256",
        "--patience",
        "600",
        "--json",
        *more,
    ]
    with tempfile.TemporaryFile() as talk:
        process = subprocess.Popen(
            [sys.executable, "-m", "penjing", *words], stdout=subprocess.PIPE, stderr=talk
        )
        assert process.stdout is not None
        text = b""
        while not text.endswith(b"\n}\n"):
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                talk.seek(0)
                raise RuntimeError(talk.read().decode())
            text += piece
        try:
            yield json.loads(text)["url"], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def _bare(plan: Plan) -> Iterator[str]:
    path = resolve(None)
    serving = LlamaCpp().serve(path, plan.chosen.settings, host="127.0.0.1", port=0, alias=plan.model)
    with serving:
        yield f"{serving.url}/v1"


# ---- beside the bare server ------------------------------------------------------------------------


def _raced(url: str, bare: str, users: Sequence[int], plan: Plan) -> dict[str, Any]:
    runs: dict[tuple[int, str], list[Heard]] = {}
    for number in range(ROUNDS):
        for count in users:
            order = [("front", url), ("bare", bare)]
            for name, where in order if number % 2 == 0 else reversed(order):
                heard = asyncio.run(_asked(where, count, seed=1000 * number + count))
                runs.setdefault((count, name), []).append(heard)
    rows = [_row(count, runs[count, "front"], runs[count, "bare"]) for count in users]
    bound = plan.chosen.estimate.first_token_seconds
    stated = {"value": bound.value, "low": bound.low, "high": bound.high}
    seen = next((row["first_p95_seconds"] for row in rows if row["users"] == PLANNED), None)
    if seen is not None:
        print(f"first token at {PLANNED} users: p95 {seen:.2f} s, the plan states at most {bound.high:.2f} s")
    return {"rows": rows, "stated_first_token": stated, "p95_at_planned": seen}


async def _added(url: str, front: int) -> dict[str, Any]:
    """What the front adds to the first token: the same engine, asked through it and straight, in turn."""
    engine = aiohttp.UnixConnector(str(_folder(front) / SOCKET), force_close=True)
    seconds: dict[str, list[float]] = {"front": [], "straight": []}
    async with aiohttp.ClientSession() as session, aiohttp.ClientSession(connector=engine) as straight:
        for number in range(_SHORT_REQUESTS):
            order = [("front", session, url), ("straight", straight, "http://engine/v1")]
            for name, asking, where in order if number % 2 == 0 else reversed(order):
                seconds[name].append((await _request(asking, where, "Hi", 2))[0])
    added = median(seconds["front"]) - median(seconds["straight"])
    print(
        f"front: {1000 * added:+.2f} ms to the first token (aim {1000 * AIMS['first_added_seconds']:.0f})",
        flush=True,
    )
    return {"first_added_seconds": added, "first_short_seconds": seconds}


def _folder(front: int) -> Path:
    """Where a server keeps its spec and the engine's socket."""
    words = Path(f"/proc/{front}/cmdline").read_bytes().split(b"\0")
    return Path(os.fsdecode(words[words.index(b"--spec") + 1])).parent


async def _asked(url: str, users: int, seed: int) -> Heard:
    """`users` who each ask two to eight times, one request after the other."""
    each = max(2, 8 // users)
    draw = random.Random(seed)
    firsts: list[float] = []
    steps: list[float] = []
    # a connection for each request: the bare server closes those that wait, at the moment that they are used again
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def user(prompts: Sequence[str]) -> None:
            for prompt in prompts:
                first, rest = await _request(session, url, prompt)
                firsts.append(first)
                steps.append(rest / (ANSWER - 1))

        texts = [[_text(draw) for _ in range(each)] for _ in range(users)]
        started = time.perf_counter()
        await asyncio.gather(*(user(prompts) for prompts in texts))
        seconds = time.perf_counter() - started
    return Heard(users * each * ANSWER / seconds, tuple(firsts), tuple(steps))


def _text(draw: random.Random) -> str:
    """About `PROMPT` tokens that no prompt before began with; the chat template adds some thirty."""
    return " ".join(draw.choices(_WORDS, k=PROMPT - 40))


async def _request(
    session: aiohttp.ClientSession, url: str, prompt: str, tokens: int = ANSWER
) -> tuple[float, float]:
    """Seconds until the first piece, and from it to the end; a forced token keeps every answer at its length."""
    document = {
        "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": True,
        "temperature": 0, "cache_prompt": False, "logit_bias": {"6330": 100},
    }  # fmt: skip
    started, first = time.perf_counter(), None
    async with session.post(f"{url}/chat/completions", json=document) as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            if first is None and b'"content":"' in line:
                first = time.perf_counter()
    assert first is not None
    return first - started, time.perf_counter() - first


def _row(users: int, front: Sequence[Heard], bare: Sequence[Heard]) -> dict[str, Any]:
    """Medians over the rounds; ratios are of the runs of one round."""
    ratio = median(a.tokens_per_s / b.tokens_per_s for a, b in zip(front, bare, strict=True))
    firsts = [sorted(f for heard in one for f in heard.first) for one in (front, bare)]
    row = {
        "users": users,
        "tokens_per_s": median(h.tokens_per_s for h in front),
        "bare_tokens_per_s": median(h.tokens_per_s for h in bare),
        "throughput_ratio": ratio,
        "ratios": [a.tokens_per_s / b.tokens_per_s for a, b in zip(front, bare, strict=True)],
        "first_seconds": median(firsts[0]),
        "bare_first_seconds": median(firsts[1]),
        "first_p95_seconds": firsts[0][int(0.95 * (len(firsts[0]) - 1))],
        "per_token_seconds": median(t for h in front for t in h.per_token),
    }
    print(
        f"{users:3d} users: {row['tokens_per_s']:6.1f} tok/s, bare {row['bare_tokens_per_s']:6.1f}, ratio {ratio:.3f} "
        f"(aim {AIMS['throughput']}), first token {row['first_seconds']:.3f} s, p95 {row['first_p95_seconds']:.3f}",
        flush=True,
    )
    return row


# ---- everything at once ----------------------------------------------------------------------------


async def _storm(url: str, front: int, requests: int) -> dict[str, Any]:
    spell = await chaos.spelling(url, 40)
    looks: list[int] = []

    async def kill() -> None:
        os.kill(_engine(front), signal.SIGKILL)

    async def hang() -> None:
        os.kill(_engine(front), signal.SIGSTOP)

    async def look() -> None:
        looks.append(_resident(front))

    events = {int(share * requests): kill for share in _KILLS} | {int(_HANG * requests): hang}
    events |= {int(share * requests): look for share in (0.2, 0.4, 0.6, 0.8)}
    started = time.monotonic()
    outcome, faults = await chaos.storm(url, spell, requests, 64, events)
    looks.append(_resident(front))
    async with aiohttp.ClientSession() as session, session.get(f"{url[:-3]}/live.json") as reply:
        live = await reply.json()
    growth = looks[-1] / looks[0] - 1
    found = {
        "seconds": time.monotonic() - started, "outcome": {f: getattr(outcome, f) for f in outcome.__struct_fields__},
        "faults": faults[:20], "restarts": live["engine_restarts"], "front_bytes": looks, "growth": growth,
    }  # fmt: skip
    print(
        f"{requests} requests: {found['outcome']}, {live['engine_restarts']} restarts, memory {growth:+.1%}"
    )
    for fault in faults[:20]:
        print(fault)
    return found


def _engine(front: int) -> int:
    """The child of the front that holds the model."""
    children = Path(f"/proc/{front}/task").glob("*/children")
    (found,) = {int(pid) for file in children for pid in file.read_text().split()}
    return found


def _resident(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    sys.exit(main())
