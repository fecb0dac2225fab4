"""Files made to exhaust: each is answered in a second and in less than 200 MB.

Run as a program it is the child whose memory is limited: `python test_gguf_hostile.py FILE` prints one JSON
document with what the reader said, the CPU seconds and the peak of memory that it took.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_files import raw_header, raw_string, raw_tensor
from penjing.errors import UserError
from penjing.gguf import read_model

LIMIT_BYTES = 200_000_000
HUGE_BYTES = 100_000_000_000  # a sparse file: it takes no room on the disk
MILLION = 1_000_000

U8, U64, TEXT, ARRAY = (kind.to_bytes(4, "little") for kind in (0, 10, 8, 9))


def _array(key: bytes, kind: bytes, count: int) -> bytes:
    return raw_string(key) + ARRAY + kind + count.to_bytes(8, "little")


def _many_texts() -> bytes:
    """30 texts of 1 MiB each, which one by one are allowed."""
    texts = [raw_string(b"text%d" % i) + TEXT + raw_string(b"x" * 2**20) for i in range(30)]
    return raw_header(3, 0, 30, *texts)


def _many_arrays() -> bytes:
    """9,999 arrays of 1,024 numbers each, which one by one are allowed."""
    arrays = [_array(b"array%d" % i, U8, 1024) + bytes(1024) for i in range(9_999)]
    return raw_header(3, 0, len(arrays), *arrays)


def _many_tensors() -> bytes:
    """As many tensors as are allowed, each where it should be."""
    tensors = [raw_tensor(b"blk.0.t%d" % i, (8,), offset=32 * i) for i in range(2**15)]
    keys = [
        raw_string(b"general.architecture") + TEXT + raw_string(b"strange"),
        *[
            raw_string(b"strange." + key) + (4).to_bytes(4, "little") + (64).to_bytes(4, "little")
            for key in (b"block_count", b"context_length", b"embedding_length", b"vocab_size")
        ],
    ]
    return raw_header(3, len(tensors), len(keys), *keys, *tensors)


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (raw_header(3, 100 * MILLION, 0), "claims 100000000 tensors, the most allowed is 32768"),
        (raw_header(3, 0, 100 * MILLION), "claims 100000000 keys, the most allowed is 10000"),
        (raw_header(3, 2**15, 0), "has a tensor without a readable name, `` (tensor 1 of 32768)"),
        (raw_header(3, 0, 10_000), "has a key without a readable name, `` (key 1 of 10000)"),
        (
            raw_header(3, 0, 1, _array(b"a", TEXT, 100 * MILLION)),
            "has 100000000 strings in its metadata, the most allowed is 2097152",
        ),
        (
            raw_header(3, 0, 2, _array(b"a", TEXT, 2**21)),
            "has a key without a readable name, `` (key 2 of 2)",
        ),
        (
            raw_header(3, 0, 1, _array(b"a", U64, 10_000 * MILLION)),
            "has a header of at least 80000000049 bytes, the most allowed is 134217728",
        ),
        (
            raw_header(3, 0, 2, _array(b"a", U64, 16 * MILLION)),
            "has a key without a readable name, `` (key 2 of 2)",
        ),
        (
            raw_header(3, 0, 1, raw_string(b"a"), TEXT, (50_000 * MILLION).to_bytes(8, "little")),
            "has a header of at least 50000000045 bytes, the most allowed is 134217728",
        ),
        (
            raw_header(3, 0, 1, _array(b"a", ARRAY, 1), ARRAY * 1000),
            "nests arrays in `a`, which llama.cpp does not read",
        ),
        (_many_texts(), "has metadata of more than 16777216 bytes beside its token lists"),
        (_many_arrays(), "has metadata of more than 16777216 bytes beside its token lists"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value[:40],
)
def test_a_hundred_gigabytes_of_claims(tmp_path: Path, content: bytes, answer: str):
    """A header in a sparse file of 100 GB, where every claim could be true, is answered all the same."""
    path = tmp_path / "m.gguf"
    with path.open("wb") as stream:
        stream.write(content)
        stream.truncate(HUGE_BYTES)

    seen = _in_child(path)

    assert seen["answer"] == f"`{path}` {answer}"
    assert seen["seconds"] < 1
    assert seen["peak_bytes"] < LIMIT_BYTES


def test_the_most_tensors_that_are_allowed(tmp_path: Path):
    """A table of 32,768 tensors is read in a second too."""
    path = tmp_path / "m.gguf"
    with path.open("wb") as stream:
        stream.write(_many_tensors())
        stream.truncate(HUGE_BYTES)

    seen = _in_child(path)

    assert seen["answer"] == "64 layers, 32768 tensors"
    assert seen["seconds"] < 1
    assert seen["peak_bytes"] < LIMIT_BYTES


def _in_child(path: Path) -> dict[str, object]:
    done = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def limited(run: Callable[[], str]) -> tuple[str, float, int]:
    """What `run` returns, its CPU seconds and the growth of this process's peak memory, under the limit."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + LIMIT_BYTES, resource.RLIM_INFINITY))
    start = time.process_time()
    answer = run()
    seconds = time.process_time() - start
    return answer, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    def read() -> str:
        try:
            model = read_model(Path(sys.argv[1]))
        except UserError as error:
            return str(error)
        return f"{len(model.layers)} layers, {len(model.tensors)} tensors"

    answer, seconds, peak_bytes = limited(read)
    print(json.dumps({"answer": answer, "seconds": seconds, "peak_bytes": peak_bytes}))


if __name__ == "__main__":
    main()
