"""Fifty thousand damaged headers: each is read or refused in words, quickly and in bounded memory.

Run as a program it is the child that reads them, under a limit of memory:
`python test_gguf_mutations.py COUNT SEED FILE...` prints one JSON document.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec

import gguf_files
from gguf_families import FAMILIES
from penjing.errors import UserError
from penjing.gguf.header import parse_header
from penjing.gguf.reader import model_of
from test_gguf_hostile import LIMIT_BYTES, limited

COUNT = 50_000
WEIGHTS = bytes(2**16)  # what is there of the weights; the rest is only claimed, for no header reaches so far
POWERS = [2**power for power in (0, 4, 5, 7, 8, 15, 16, 31, 32, 62, 63, 64)]
BOUNDARIES = [sign * power + step for power in POWERS for step in (-1, 0, 1) for sign in (1, -1)]


def test_fifty_thousand_damaged_headers(tmp_path: Path):
    """No damage makes the reader raise anything but a user's error, take a second, or fill the memory."""
    tokens = {"tokenizer.ggml.tokens": [f"t{i}" for i in range(48)], "general.name": "mutated"}
    paths = [
        gguf_files.write(tmp_path / f"{name}.gguf", FAMILIES[name], extra=tokens)
        for name in ("llama", "gpt-oss", "deepseek2", "qwen35", "kimi-linear")
    ]

    done = subprocess.run(
        [sys.executable, __file__, str(COUNT), "1", *paths], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["read"] + seen["refused"] == COUNT
    assert seen["read"] > COUNT / 100, "the damage is so heavy that nothing is tried"
    assert seen["refused"] > COUNT / 2, "the damage is so light that nothing is tried"
    assert seen["kinds"] > 60, "all damage is caught in the same few places"
    assert seen["slowest_seconds"] < 1
    assert seen["peak_bytes"] < LIMIT_BYTES


class Sound(NamedTuple):
    """A sound file: its header, and the number of bytes of its weights."""

    header: bytes
    weights_bytes: int


def mutate(rng: random.Random, sound: list[Sound]) -> tuple[bytes, int]:
    """The start of one of the `sound` files, damaged in one to three ways, and the size of the whole."""
    chosen = rng.choice(sound)
    damaged = bytearray(chosen.header)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(DAMAGES)(rng, damaged, sound)
    return bytes(damaged) + WEIGHTS, len(damaged) + chosen.weights_bytes


def _flip(rng: random.Random, header: bytearray, _sound: list[Sound]) -> None:
    for _ in range(rng.randint(1, 4)):
        header[rng.randrange(len(header))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, header: bytearray, _sound: list[Sound]) -> None:
    """A number of 1 to 8 bytes becomes one at the edge of what its type can hold."""
    size = rng.choice((1, 4, 4, 8, 8))
    at = rng.randrange(len(header))
    header[at : at + size] = (rng.choice(BOUNDARIES) % 256**size).to_bytes(size, "little")


def _count(rng: random.Random, header: bytearray, _sound: list[Sound]) -> None:
    """Version, tensor count or key count, off by a little or a lot."""
    at, size = rng.choice(((4, 4), (8, 8), (16, 8)))
    value = int.from_bytes(header[at : at + size], "little") + rng.choice((-1, 1, rng.choice(BOUNDARIES)))
    header[at : at + size] = (value % 256**size).to_bytes(size, "little")


def _insert(rng: random.Random, header: bytearray, _sound: list[Sound]) -> None:
    at = rng.randrange(len(header))
    header[at:at] = rng.randbytes(rng.randint(1, 16))


def _delete(rng: random.Random, header: bytearray, _sound: list[Sound]) -> None:
    at = rng.randrange(min(32, len(header) - 1), len(header))
    del header[at : at + rng.randint(1, 32)]


def _splice(rng: random.Random, header: bytearray, sound: list[Sound]) -> None:
    """A stretch of another header in the place of one of this."""
    other = rng.choice(sound).header
    start, at, size = rng.randrange(len(other)), rng.randrange(len(header)), rng.randint(1, 200)
    header[at : at + size] = other[start : start + size]


def _cut(rng: random.Random, header: bytearray, _sound: list[Sound]) -> None:
    del header[rng.randrange(min(4, len(header) - 1), len(header)) + 1 :]


def _digit(rng: random.Random, header: bytearray, _sound: list[Sound]) -> None:
    """A byte becomes a small number: counts, types and dimensions that look sound but are not."""
    header[rng.randrange(len(header))] = rng.randrange(48)


DAMAGES = (_flip, _overwrite, _overwrite, _count, _insert, _delete, _splice, _cut, _digit)


def try_all(count: int, seed: int, sound: list[Sound]) -> dict[str, float]:
    rng = random.Random(seed)
    slowest, read = 0.0, 0
    refusals: Counter[str] = Counter()
    for _ in range(count):
        content, size = mutate(rng, sound)
        start = time.process_time()
        try:
            model = model_of(parse_header(io.BytesIO(content), size, "m.gguf"), "m")
            msgspec.json.encode(model)
            read += 1
        except UserError as error:
            refusals["".join(c for c in str(error).split("`")[2][:24] if not c.isdigit())] += 1
        slowest = max(slowest, time.process_time() - start)
    return {
        "read": read,
        "refused": refusals.total(),
        "kinds": len(refusals),
        "slowest_seconds": slowest,
    }


def main() -> None:
    count, seed, *paths = sys.argv[1:]
    sound = []
    for path in paths:
        content = Path(path).read_bytes()
        start = parse_header(io.BytesIO(content), len(content), path).tensors[0].offset
        sound.append(Sound(content[:start], len(content) - start))
    answer, _, peak_bytes = limited(lambda: json.dumps(try_all(int(count), int(seed), sound)))
    print(json.dumps({**json.loads(answer), "peak_bytes": peak_bytes}))


if __name__ == "__main__":
    main()
