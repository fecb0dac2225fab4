"""The header reader on sound files: the real model, every value type, parts, and long vocabularies."""

from __future__ import annotations

import io
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gguf_files
from gguf_families import FAMILIES
from gguf_files import raw_header, raw_string
from penjing.errors import BadFile, UsageError
from penjing.formats import BY_NAME, TYPES, type_bytes
from penjing.gguf import ArrayOf, TensorInfo, read_header, read_model
from penjing.gguf.header import Header, parse_header

REAL = gguf_files.real_model()


def _parse(content: bytes) -> Header:
    return parse_header(io.BytesIO(content), len(content), "test.gguf")


# --- the real model --------------------------------------------------------------------------------------


def test_real_model():
    """SmolLM2-135M: 30 layers of 9 heads over 3 KV heads of 64, 272 tensors, 135 million weights."""
    model = read_model(REAL)

    assert (model.architecture, model.known_family, model.name) == (
        "llama",
        True,
        "Smollm2 135M 8k Lc100K Mix1 Ep2",
    )
    assert (model.width, model.vocabulary, model.context_tokens) == (576, 49_152, 8192)
    assert {(x.attention, x.heads, x.key_width, x.value_width) for x in model.layers} == {
        ("full", 9, 192, 192)
    }
    assert (len(model.layers), len(model.tensors), model.n_weights) == (30, 272, 134_515_008)
    assert model.tensor_types == {"q4_1": 210, "f32": 61, "q8_0": 1}
    assert (model.tied, model.chat_template, model.experts) == (True, True, 0)
    assert "other" not in {t.role for t in model.tensors}
    assert (model.source, model.files) == (str(REAL), (str(REAL),))


def test_real_model_is_header_and_tensors():
    """The bytes of all tensors are the file without its header: nothing is missed or counted twice."""
    header = read_header(REAL)

    first = min(t.offset for t in header.tensors)
    assert sum(t.n_bytes for t in header.tensors) == REAL.stat().st_size - first
    assert sum(t.n_bytes for t in header.tensors) == read_model(REAL).n_bytes


def test_real_model_agrees_with_an_independent_reader():
    """Names, shapes, types, offsets and sizes of all tensors are those of the `gguf` package."""
    theirs = gguf.GGUFReader(REAL)

    expected = tuple(
        TensorInfo(
            t.name,
            tuple(int(n) for n in t.shape),
            TYPES[t.tensor_type].name,
            int(t.data_offset),
            int(t.n_bytes),
        )
        for t in theirs.tensors
    )
    header = read_header(REAL)
    assert header.tensors == expected
    for key in ("general.name", "llama.rope.freq_base", "tokenizer.chat_template"):
        assert header.metadata[key] == theirs.fields[key].contents()
    assert header.metadata["tokenizer.ggml.tokens"] == ArrayOf("str", 49_152)
    assert header.metadata["tokenizer.ggml.merges"] == ArrayOf("str", 48_900)


def test_real_model_is_read_quickly():
    """49 thousand tokens and as many merges are walked in less than a tenth of a second."""
    assert _seconds(REAL) < 0.1


def test_a_long_vocabulary_is_read_quickly(tmp_path: Path):
    """150 thousand tokens with scores, types and 300 thousand merges take less than 0.3 seconds."""
    path = tmp_path / "vocabulary.gguf"
    n = 150_000
    tokens = b"".join(raw_string(b"token%d" % i) for i in range(n))
    arrays = [
        (b"tokenizer.ggml.tokens", 8, n, tokens),
        (b"tokenizer.ggml.scores", 6, n, bytes(4 * n)),
        (b"tokenizer.ggml.token_type", 5, n, bytes(4 * n)),
        (b"tokenizer.ggml.merges", 8, 2 * n, tokens * 2),
    ]
    path.write_bytes(raw_header(3, 0, len(arrays), *[_raw_array(*array) for array in arrays]))

    assert read_header(path).metadata == {
        "tokenizer.ggml.tokens": ArrayOf("str", n),
        "tokenizer.ggml.scores": ArrayOf("f32", n),
        "tokenizer.ggml.token_type": ArrayOf("i32", n),
        "tokenizer.ggml.merges": ArrayOf("str", 2 * n),
    }
    assert _seconds(path) < 0.3


def _raw_array(key: bytes, kind: int, count: int, items: bytes) -> bytes:
    head = (9).to_bytes(4, "little") + kind.to_bytes(4, "little") + count.to_bytes(8, "little")
    return raw_string(key) + head + items


def _seconds(path: Path) -> float:
    """Best CPU time of three reads: other work on the machine does not count."""
    times = []
    for _ in range(3):
        start = time.process_time()
        read_header(path)
        times.append(time.process_time() - start)
    return min(times)


# --- values ----------------------------------------------------------------------------------------------

_NUMBERS = {
    "uint8": (gguf.GGUFValueType.UINT8, st.integers(0, 2**8 - 1)),
    "int8": (gguf.GGUFValueType.INT8, st.integers(-(2**7), 2**7 - 1)),
    "uint16": (gguf.GGUFValueType.UINT16, st.integers(0, 2**16 - 1)),
    "int16": (gguf.GGUFValueType.INT16, st.integers(-(2**15), 2**15 - 1)),
    "uint32": (gguf.GGUFValueType.UINT32, st.integers(0, 2**32 - 1)),
    "int32": (gguf.GGUFValueType.INT32, st.integers(-(2**31), 2**31 - 1)),
    "uint64": (gguf.GGUFValueType.UINT64, st.integers(0, 2**64 - 1)),
    "int64": (gguf.GGUFValueType.INT64, st.integers(-(2**63), 2**63 - 1)),
    "float32": (gguf.GGUFValueType.FLOAT32, st.floats(width=32, allow_nan=False)),
    "float64": (gguf.GGUFValueType.FLOAT64, st.floats(allow_nan=False)),
    "bool": (gguf.GGUFValueType.BOOL, st.booleans()),
    "string": (gguf.GGUFValueType.STRING, st.text(st.characters(exclude_categories=["Cs"]), max_size=40)),
}


@st.composite
def _values(draw: st.DrawFn) -> tuple[object, gguf.GGUFValueType, gguf.GGUFValueType | None]:
    """A value, its type, and the type of its items if it is an array."""
    kind, values = _NUMBERS[draw(st.sampled_from(sorted(_NUMBERS)))]
    if draw(st.booleans()):
        return draw(values), kind, None
    return draw(st.lists(values, min_size=1, max_size=20)), gguf.GGUFValueType.ARRAY, kind


_KEYS = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(metadata=st.dictionaries(_KEYS.map("test.{}".format), _values(), max_size=12))
def test_metadata_of_all_types_comes_back(tmp_path: Path, metadata: dict):
    """What the `gguf` package writes, of all twelve value types and arrays of them, is what we read."""
    path = tmp_path / "values.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind, items) in metadata.items():
        writer.add_key_value(key, value, kind, items)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    read = read_header(path).metadata

    expected = {key: tuple(v) if isinstance(v, list) else v for key, (v, _, _) in metadata.items()}
    assert read == {"general.architecture": "llama", **expected}
    assert {k: type(v) for k, v in read.items() if k in expected} == {k: type(v) for k, v in expected.items()}


def test_long_values_are_kept_as_their_size():
    """Arrays over 1024 items and strings over 1 MiB leave only their type and count."""
    long_text = raw_string(b"long.text") + (8).to_bytes(4, "little") + raw_string(b"x" * (2**20 + 1))
    arrays = [
        _raw_array(b"short.array", 4, 1024, bytes(4 * 1024)),
        _raw_array(b"long.array", 12, 1025, bytes(8 * 1025)),
        _raw_array(b"long.words", 8, 1025, raw_string(b"word") * 1025),
        _raw_array(b"short.words", 8, 2, raw_string(b"no") + raw_string("né".encode())),
    ]

    read = _parse(raw_header(3, 0, 5, long_text, *arrays)).metadata

    assert read == {
        "long.text": ArrayOf("u8", 2**20 + 1),
        "short.array": (0,) * 1024,
        "long.array": ArrayOf("f64", 1025),
        "long.words": ArrayOf("str", 1025),
        "short.words": ("no", "né"),
    }


def test_text_that_is_not_unicode_is_shown_as_such():
    """Broken UTF-8 in a value is no reason to refuse a file."""
    content = raw_header(3, 0, 1, raw_string(b"a"), (8).to_bytes(4, "little"), raw_string(b"\xff!"))

    assert _parse(content).metadata == {"a": "�!"}


def test_version_2_is_read(tmp_path: Path):
    """Version 2 has the same layout as 3."""
    content = bytearray(gguf_files.as_bytes(FAMILIES["llama"], tmp_path))
    newer = _parse(bytes(content))
    content[4:8] = (2).to_bytes(4, "little")

    older = _parse(bytes(content))

    assert (older.version, newer.version) == (2, 3)
    assert (older.metadata, older.tensors) == (newer.metadata, newer.tensors)


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_alignment(tmp_path: Path, alignment: int):
    """Tensors lie at multiples of the file's own alignment, where the independent reader finds them."""
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for name, size in (("a", 3), ("b", 40), ("c", 1)):
        writer.add_tensor(name, np.full(size, 7, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    tensors = read_header(path).tensors

    assert all(t.offset % alignment == 0 for t in tensors)
    assert [t.offset for t in tensors] == [int(t.data_offset) for t in gguf.GGUFReader(path).tensors]


def test_tensors_of_many_types_agree_with_an_independent_reader(tmp_path: Path):
    """Sizes of every quantized type of the `gguf` package are what it says itself."""
    path = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    # q8_1 is never stored in files; the package still has its size of before 2024, 40 bytes for 36.
    shared = [
        i for i in TYPES if i in {int(t) for t in gguf.GGMLQuantizationType} and i != BY_NAME["q8_1"].id
    ]
    for i in shared:
        block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(i)]
        raw = np.zeros((2, 256 // block * n_bytes), np.uint8)
        writer.add_tensor(f"t{i}", raw, raw_dtype=gguf.GGMLQuantizationType(i))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ours = {t.name: (t.type, t.shape, t.n_bytes) for t in read_header(path).tensors}

    theirs = gguf.GGUFReader(path).tensors
    assert len(shared) >= 32
    assert ours == {t.name: (TYPES[t.tensor_type].name, (256, 2), int(t.n_bytes)) for t in theirs}


# --- types -----------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(BY_NAME)), st.integers(1, 50), st.integers(0, 50))
def test_type_bytes_are_additive(name: str, blocks: int, rows: int):
    """Rows cost the same each, and a row is its blocks."""
    kind = BY_NAME[name]
    row = blocks * kind.block_weights

    assert type_bytes(name, row * rows, row) == rows * blocks * kind.block_bytes


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("q9_X", 256, 256), "`q9_X` is no tensor type"),
        (("q4_K", 576 * 4, 576), "a row of 576 weights is not whole blocks of q4_K, which hold 256"),
        (("f32", 10, 0), "a row of 0 weights is not whole blocks of f32, which hold 1"),
        (("f32", 10, 3), "10 weights are not whole rows of 3"),
    ],
)
def test_type_bytes_refuses(arguments: tuple[str, int, int], problem: str):
    """An unknown type and rows that are not whole blocks are said in words."""
    with pytest.raises(UsageError) as caught:
        type_bytes(*arguments)

    assert str(caught.value) == problem


# --- parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_part", [0, 1, 2])
def test_parts_are_read_as_one(tmp_path: Path, given_part: int):
    """Whichever part is named, the model is that of all parts, with the first file first."""
    whole = read_model(gguf_files.write(tmp_path / "whole.gguf", FAMILIES["llama"]))
    paths = gguf_files.write_parts(tmp_path, FAMILIES["llama"], 3)

    model = read_model(paths[given_part])

    assert (model.name, model.source, model.files) == ("tiny", str(paths[0]), tuple(map(str, paths)))
    assert {t.name: t for t in model.tensors} == {t.name: t for t in whole.tensors}
    assert model.layers == whole.layers
    files = [t.file for t in read_header(paths[given_part]).tensors]
    assert set(files) == {0, 1, 2}


def test_tensors_of_parts_lie_in_their_own_file(tmp_path: Path):
    """Offsets count from the start of the part that holds the tensor."""
    paths = gguf_files.write_parts(tmp_path, FAMILIES["llama"], 2)

    tensors = read_header(paths[0]).tensors

    for i, path in enumerate(paths):
        theirs = {t.name: int(t.data_offset) for t in gguf.GGUFReader(path).tensors}
        assert {t.name: t.offset for t in tensors if t.file == i} == theirs


def test_a_missing_part_is_named(tmp_path: Path):
    """The error names the part that is not there."""
    paths = gguf_files.write_parts(tmp_path, FAMILIES["llama"], 3)
    paths[1].unlink()

    with pytest.raises(BadFile) as caught:
        read_header(paths[0])

    assert str(caught.value) == f"part 2 of 3 is missing: `{paths[1]}`"
    assert caught.value.hint == (
        "fetch it into the same folder: `hf download OWNER/REPOSITORY tiny-00002-of-00003.gguf`"
    )


def test_a_renamed_part_is_refused(tmp_path: Path):
    """The name of a part has to say which it is: the others are found by it."""
    paths = gguf_files.write_parts(tmp_path, FAMILIES["llama"], 2)
    renamed = paths[0].rename(tmp_path / "model.gguf")

    with pytest.raises(BadFile) as caught:
        read_header(renamed)

    assert str(caught.value) == f"`{renamed}` is one of 2 parts, but its name does not say which"
    assert caught.value.hint == "rename the parts to `MODEL-00001-of-00002.gguf` and so on"


def test_exchanged_parts_are_refused(tmp_path: Path):
    """A part that says it is another one is not taken for what its name says."""
    paths = gguf_files.write_parts(tmp_path, FAMILIES["llama"], 3)
    paths[2].write_bytes(paths[1].read_bytes())

    with pytest.raises(BadFile) as caught:
        read_header(paths[0])

    assert str(caught.value) == f"`{paths[2]}` is not part 3 of 3, as its name says"


def test_parts_of_two_models_are_refused(tmp_path: Path):
    """Parts that repeat a tensor, or that do not add up, are not of one model."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    one = gguf_files.write_parts(tmp_path / "a", FAMILIES["llama"], 2)
    other = gguf_files.write_parts(tmp_path / "b", FAMILIES["qwen3moe"], 2)
    third = gguf_files.write_parts(
        tmp_path / "c",
        FAMILIES["llama"]._replace(tensors={"x": (1,), "output_norm.weight": (64,), "z": (1,)}),
        2,
    )

    one[1].write_bytes(third[1].read_bytes())
    with pytest.raises(BadFile) as short:
        read_header(one[0])
    one[1].write_bytes(other[0].read_bytes().replace(b"split.no\x02\0\0\0\0\0", b"split.no\x02\0\0\0\x01\0"))
    with pytest.raises(BadFile) as twice:
        read_header(one[0])

    assert str(short.value) == f"`{one[0]}` speaks of 21 tensors, but its 2 parts hold 12"
    assert str(twice.value) == f"`{one[1]}` repeats the tensor `token_embd.weight` of another part"


def test_an_impossible_number_of_parts_is_refused(tmp_path: Path):
    """65,535 parts are not looked for."""
    path = gguf_files.write(tmp_path / "a.gguf", FAMILIES["llama"], extra={"split.count": 65_535})

    with pytest.raises(BadFile) as caught:
        read_header(path)

    assert str(caught.value) == f"`{path}` is one of 65535 parts, the most allowed is 1000"
