"""The header of a safetensors file is an untrusted text: damaged, lying, endless."""

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_folders import data_bytes, family, header, write_file
from penjing.errors import BadFile
from penjing.hf import read_folder
from penjing.hf.headers import read, read_header

TENSORS = {
    "a": ["F32", 2, 3],
    "b": ["BF16", 4],
    "c": ["F8_E4M3", 5, 1],
    "empty": ["F32", 0],
    "scalar": ["F32"],
}


def write(path: Path, change: dict[str, Any], n_bytes: int | None = None) -> Path:
    """A good file, except for one entry."""
    return write_file(path, header(TENSORS) | change, data_bytes(TENSORS) if n_bytes is None else n_bytes)


def test_good_header(tmp_path: Path) -> None:
    """Tensors come with their type and shape; the metadata is no tensor."""
    entries = read_header(write(tmp_path / "x.safetensors", {}))
    assert {name: (dtype, tuple(shape)) for name, (dtype, *shape) in TENSORS.items()} == {
        name: (entry.dtype, entry.shape) for name, entry in entries.items()
    }


@pytest.mark.parametrize("n_bytes", [0, 4, 7])
def test_file_shorter_than_its_length_field(n_bytes: int, tmp_path: Path) -> None:
    """A file of a few bytes is refused."""
    (tmp_path / "x").write_bytes(b"\0" * n_bytes)
    with pytest.raises(BadFile, match="cut short"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 1000])
def test_header_longer_than_the_file(length: int, tmp_path: Path) -> None:
    """A length beyond the file or the format's limit allocates nothing."""
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + b"{}")
    tracemalloc.start()
    with pytest.raises(BadFile, match=f"its header has {length} bytes"):
        read_header(tmp_path / "x")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_header_over_the_limit_in_a_large_file(tmp_path: Path) -> None:
    """The format's 100 MB hold even where the file is larger."""
    path = tmp_path / "x"
    path.write_bytes((100_000_001).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.truncate(200_000_000)
    with pytest.raises(BadFile, match="the format allows 100000000"):
        read_header(path)


@pytest.mark.parametrize("missing", [1, 7, 40])
def test_cut_at_the_end(missing: int, tmp_path: Path) -> None:
    """Data that ends too early, by whatever amount, is noticed from the sizes."""
    with pytest.raises(BadFile, match=r"holds .* bytes of tensors, its header tells of 41"):
        read_header(write(tmp_path / "x", {}, data_bytes(TENSORS) - missing))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]}, "needs 24 bytes, its offsets give 20"),
        ({"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 0]}, "offsets give -24"),
        ({"dtype": "F32", "shape": [2, 3], "data_offsets": [4, 28]}, "begins at"),
        ({"dtype": "F99", "shape": [2, 3], "data_offsets": [0, 24]}, "unknown type `F99`"),
        ({"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}, "needs 1.5 bytes"),
        ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 24]}, "needs 4.8.*e\\+24 bytes"),
        ({"dtype": "F32", "shape": [2**41], "data_offsets": [0, 24]}, "not of the safetensors format"),
        ({"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]}, "not of the safetensors format"),
        ({"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}, "not of the safetensors format"),
        ({"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 2**70]}, "not of the safetensors format"),
        ({"dtype": "F32", "shape": [2, 3], "data_offsets": [0]}, "not of the safetensors format"),
        ({"dtype": "F32", "shape": [2.5], "data_offsets": [0, 24]}, "not of the safetensors format"),
        ({"dtype": "F32", "shape": [2, 3]}, "not of the safetensors format"),
        ({"dtype": 7, "shape": [2, 3], "data_offsets": [0, 24]}, "not of the safetensors format"),
        ([], "not of the safetensors format"),
    ],
)
def test_lying_entry(entry: Any, expected: str, tmp_path: Path) -> None:
    """An entry whose size, type or place cannot be is refused with both numbers."""
    with pytest.raises(BadFile, match=expected):
        read_header(write(tmp_path / "x", {"a": entry}))


def test_overlap_and_hole(tmp_path: Path) -> None:
    """Two tensors in one place, and bytes of no tensor, are both refused."""
    b = {"dtype": "BF16", "shape": [4], "data_offsets": [20, 28]}
    with pytest.raises(BadFile, match="`b` begins at 20, the last one ends at 24"):
        read_header(write(tmp_path / "x", {"b": b}))
    with pytest.raises(BadFile, match="holds 42 bytes of tensors, its header tells of 41"):
        read_header(write(tmp_path / "y", {}, 42))


def test_twice_the_same_name(tmp_path: Path) -> None:
    """A name given twice leaves a hole where the first one was."""
    entry = '"a":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'
    text = f"{{{entry % (0, 1)},{entry % (1, 2)}}}".encode()
    with pytest.raises(BadFile, match="begins at 1, the last one ends at 0"):
        read_header(write_file(tmp_path / "x", text, 2))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"nul", b"{", b'{"a"', b"\xff" * 9, b'{"\xff": 1}', b"{" * 99, b'{"a":' + b"[" * 100_000,
        b'{"__metadata__": {"a": 1}}', b'{"__metadata__": []}',
    ],
)  # fmt: skip
def test_header_that_is_no_json(text: bytes, tmp_path: Path) -> None:
    """Whatever the text, the answer is one line."""
    with pytest.raises(BadFile, match="not of the safetensors format"):
        read_header(write_file(tmp_path / "x", text, 0))


@pytest.mark.parametrize("piece", [b'{"a":1},', b"[],", b"0,"])
def test_flood_of_json(piece: bytes, tmp_path: Path) -> None:
    """Ninety megabytes of JSON are refused before a parser makes objects of them."""
    text = b'{"a":{"shape":[' + piece * (90_000_000 // len(piece))
    path = write_file(tmp_path / "x", text, 0)
    start = time.perf_counter()
    with pytest.raises(BadFile, match="brackets and commas"):
        read_header(path)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", ""])
def test_index_that_leaves_the_folder(name: str, tmp_path: Path) -> None:
    """An index cannot make us open files outside its folder, or of another kind."""
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BadFile, match="not a safetensors file of this folder"):
        read(tmp_path)


def test_index_and_shards_disagree(tmp_path: Path) -> None:
    """A tensor that no shard has, or that two have, is named."""
    folder = family("qwen3", tmp_path, shards=2)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    good["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(good))
    with pytest.raises(BadFile, match="1 tensors that no shard has, the first `ghost`"):
        read_folder(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes(
        (folder / "model-00001-of-00002.safetensors").read_bytes()
    )
    with pytest.raises(BadFile, match="repeats the tensor"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["a" * 301, "a\x1b[31m", "a\nb", "\u202e"])
def test_names_that_would_spoil_a_terminal(name: str, tmp_path: Path) -> None:
    """A name with control characters, or without end, is refused and not printed as it is."""
    with pytest.raises(BadFile, match="is no name of a tensor") as caught:
        read_header(write_file(tmp_path / "x", header({name: ["U8", 1]}), 1))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_unreadable_file(tmp_path: Path) -> None:
    """A directory in the place of a file is said to be one."""
    (tmp_path / "x").mkdir()
    with pytest.raises(BadFile, match=r"cannot read .*Is a directory"):
        read_header(tmp_path / "x")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_headers_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes of a good file are changed, the reader returns tensors or refuses in words."""
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    content = bytearray(write(path, {}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        entries = read_header(path)
    except BadFile:
        return
    assert sum(entry.n_bytes for entry in entries.values()) < len(content)
