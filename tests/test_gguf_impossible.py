"""Headers that no writer makes, and headers of models that cannot be: each refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

import gguf_files
from gguf_families import FAMILIES, changed
from gguf_files import Tiny, raw_header, raw_string, raw_tensor
from penjing.errors import BadFile
from penjing.gguf import read_header, read_model


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, so that complete error texts hold short names."""
    monkeypatch.chdir(tmp_path)


def _refusal(path: Path, read: Callable[[Path], object] = read_header) -> tuple[str, str]:
    with pytest.raises(BadFile) as caught:
        read(path)
    return str(caught.value), caught.value.hint


# --- headers that no writer makes --------------------------------------------------------------------------

U32, ARRAY, TEXT = (4).to_bytes(4, "little"), (9).to_bytes(4, "little"), (8).to_bytes(4, "little")
ONE = raw_string(b"a") + U32 + (1).to_bytes(4, "little")
HUGE = 2**63


def _array(kind: int, count: int, items: bytes = b"") -> bytes:
    return raw_string(b"a") + ARRAY + kind.to_bytes(4, "little") + count.to_bytes(8, "little") + items


def _tensor(*shape: int, kind: int = 0, offset: int = 0, name: bytes = b"t") -> bytes:
    return raw_header(3, 1, 0, raw_tensor(name, shape, kind, offset)) + bytes(256)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (raw_header(3, 0, HUGE), f"claims {HUGE} keys, the most allowed is 10000"),
        (raw_header(3, HUGE, 0), f"claims {HUGE} tensors, the most allowed is 32768"),
        (raw_header(3, 0, 9000), "ends too early: 9000 keys do not fit into its 24 bytes"),
        (raw_header(3, 9000, 0), "ends too early: 9000 tensors do not fit into its 24 bytes"),
        (raw_header(3, 0, 2, ONE, ONE), "has the key `a` twice"),
        (
            raw_header(3, 0, 1, raw_string(b""), bytes(99)),
            "has a key without a readable name, `` (key 1 of 1)",
        ),
        (
            raw_header(3, 0, 1, raw_string(b"a\x1b[2J"), bytes(99)),
            "has a key without a readable name, `a�[2J` (key 1 of 1)",
        ),
        (raw_header(3, 0, 1, raw_string(b"a\xff"), bytes(99)), "has a name that is not UTF-8 at key 1 of 1"),
        (
            raw_header(3, 0, 1, raw_string(b"a", HUGE), bytes(99)),
            f"has a name of {HUGE} bytes at key 1 of 1, the most allowed is 65535",
        ),
        (
            raw_header(3, 0, 1, raw_string(b"a"), (13).to_bytes(4, "little"), bytes(99)),
            "gives `a` the unknown type 13",
        ),
        (
            raw_header(3, 0, 1, raw_string(b"a"), TEXT, raw_string(b"b", HUGE)),
            f"ends too early: it has 46 bytes, but `a` reaches to byte {HUGE + 45}",
        ),
        (raw_header(3, 0, 1, _array(9, 1, bytes(99))), "nests arrays in `a`, which llama.cpp does not read"),
        (raw_header(3, 0, 1, _array(77, 1, bytes(99))), "gives the items of `a` the unknown type 77"),
        (
            raw_header(3, 0, 1, _array(4, HUGE)),
            f"ends too early: it has 49 bytes, but `a` reaches to byte {4 * HUGE + 49}",
        ),
        (
            raw_header(3, 0, 1, _array(8, HUGE)),
            f"has {HUGE} strings in its metadata, the most allowed is 2097152",
        ),
        (
            raw_header(3, 0, 1, _array(8, 2000, raw_string(b"x") * 5)),
            "ends too early: it has 94 bytes, but `a` reaches to byte 102",
        ),
        (
            raw_header(3, 0, 1, _array(8, 2000, raw_string(b"x", HUGE))),
            f"ends too early: it has 58 bytes, but `a` reaches to byte {HUGE + 65}",
        ),
        (_tensor(1, 2, 3, 4, 5), "gives `t` 5 dimensions, the most allowed is 4"),
        (_tensor(0), "gives `t` the shape (0,), of 0 weights"),
        (_tensor(2**32, 2**32), f"gives `t` the shape (4294967296, 4294967296), of {2**64} weights"),
        (_tensor(HUGE), f"gives `t` the shape ({HUGE},), of {HUGE} weights"),
        (
            _tensor(33, kind=8),
            "has an impossible tensor `t`: a row of 33 weights is not whole blocks of q8_0, which hold 32",
        ),
        (_tensor(32, kind=43), "stores `t` in the unknown type 43"),
        (_tensor(32, kind=31), "stores `t` in the removed type q4_0_4_4"),
        (
            _tensor(8, offset=32),
            "has the tensor `t` at byte 32 of its data, but the tensors before it end at 0 (aligned to 32)",
        ),
        (_tensor(8, name=b""), "has a tensor without a readable name, `` (tensor 1 of 1)"),
        (_tensor(8, name=b"x" * 64), "has a name of 64 bytes at tensor 1 of 1, the most allowed is 63"),
        (_tensor(2**40), f"ends too early: it has 313 bytes, but its tensors reach to byte {2**42 + 64}"),
        (
            raw_header(3, 2, 0, raw_tensor(b"t", (8,)), raw_tensor(b"t", (8,), offset=32), bytes(99)),
            "has the tensor `t` twice",
        ),
        (
            raw_header(3, 2, 0, raw_tensor(b"t", (8,)), raw_tensor(b"u", (8,)), bytes(99)),
            "has the tensor `u` at byte 0 of its data, but the tensors before it end at 32 (aligned to 32)",
        ),
        (
            raw_header(3, 2, 0, raw_tensor(b"t", (8,)), raw_tensor(b"u", (8,), offset=64), bytes(99)),
            "has the tensor `u` at byte 64 of its data, but the tensors before it end at 32 (aligned to 32)",
        ),
        (
            raw_header(3, 2, 0, raw_tensor(b"t", (2,)), raw_tensor(b"u", (8,), offset=8), bytes(99)),
            "has the tensor `u` at byte 8 of its data, but the tensors before it end at 32 (aligned to 32)",
        ),
    ],
)
def test_impossible_headers(content: bytes, problem: str):
    """Counts, sizes, types, names and places that cannot be are refused before they are used."""
    Path("m.gguf").write_bytes(content)

    assert _refusal(Path("m.gguf"))[0] == f"`m.gguf` {problem}"


@pytest.mark.parametrize("alignment", [0, 48, "32", True, -8])
def test_alignments_that_cannot_be(alignment: object):
    """An alignment is a power of two."""
    writer = gguf.GGUFWriter("m.gguf", "llama")
    kind = {bool: gguf.GGUFValueType.BOOL, str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.INT32}
    writer.add_key_value("general.alignment", alignment, kind[type(alignment)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    problem = f"`m.gguf` has a `general.alignment` of {alignment}, which is no power of two"
    assert _refusal(Path("m.gguf"))[0] == problem


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.chat_template.tool_use"])
def test_chat_templates_are_bounded(key: str):
    """A chat template is a program: 256 KiB are allowed, one byte more is not."""
    gguf_files.write(Path("m.gguf"), FAMILIES["llama"], extra={key: "x" * 2**18})
    assert read_header(Path("m.gguf")).metadata[key] == "x" * 2**18

    gguf_files.write(Path("m.gguf"), FAMILIES["llama"], extra={key: "x" * (2**18 + 1)})
    assert _refusal(Path("m.gguf")) == (
        "`m.gguf` has a chat template of 262145 bytes, the most allowed is 262144",
        "pip install gguf && gguf-new-metadata --chat-template '{{ messages[-1].content }}' m.gguf new.gguf",
    )


# --- headers that hold together, of models that cannot be --------------------------------------------------

DUMP = "pip install gguf && gguf-dump --no-tensors m.gguf"


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (changed("llama", block_count=0), "has `llama.block_count` = 0, it must be from 1 to 512"),
        (changed("llama", block_count=999), "has `llama.block_count` = 999, it must be from 1 to 512"),
        (
            changed("llama", block_count=2**31),
            "has `llama.block_count` = 2147483648, it must be from 1 to 512",
        ),
        (changed("llama", block_count=None), "lacks the key `llama.block_count`, which every model has"),
        (changed("llama", block_count="two"), "has `llama.block_count` = 'two', which is no whole number"),
        (changed("llama", block_count=True), "has `llama.block_count` = True, which is no whole number"),
        (changed("llama", block_count=1), "has the tensor `blk.1.attn_norm.weight`, but only 1 layers"),
        (
            changed("llama", context_length=0),
            "has `llama.context_length` = 0, it must be from 1 to 1073741824",
        ),
        (
            changed("llama", context_length=2**32 - 1),
            "has `llama.context_length` = 4294967295, it must be from 1 to 1073741824",
        ),
        (
            changed("llama", embedding_length=0),
            "has `llama.embedding_length` = 0, it must be from 1 to 1048576",
        ),
        (
            changed("llama", embedding_length=128),
            "has `token_embd.weight` of shape (64, 48), but its keys ask for (128, 48)",
        ),
        (changed("llama", attention__head_count=5), "has 5 heads, which do not divide its width of 64"),
        (
            changed("llama", attention__head_count=0),
            "has no `llama.attention.head_count`, it must be at least 1",
        ),
        (
            changed("llama", attention__head_count_kv=3),
            "has 4 heads in a layer, which its 3 KV heads do not divide",
        ),
        (
            changed("llama", attention__head_count=[4, 4, 4]),
            "has 3 values of `llama.attention.head_count` for 2 layers",
        ),
        (
            changed("llama", attention__key_length=0),
            "has `llama.attention.key_length` = 0, it must be from 1 to 65536",
        ),
        (
            changed("llama", rope__dimension_count=18),
            "rotates 18 dimensions of a key head of 16, it must be all of it",
        ),
        (
            changed("llama", rope__dimension_count=7),
            "rotates 7 dimensions of a key head of 16, it must be all of it",
        ),
        (
            changed("llama", rope__scaling__type="sideways"),
            "scales its rotary positions by `sideways`, known: none, linear, yarn, longrope",
        ),
        (
            changed("llama", {"blk.0.attn_v.weight": (64, 16)}),
            "has `blk.0.attn_v.weight` of shape (64, 16), but its keys ask for (64, 32)",
        ),
        (
            changed("llama", {"output.weight": (64, 40)}),
            "has `output.weight` of shape (64, 40), but its keys ask for (64, 48)",
        ),
        (
            changed("qwen3moe", expert_count=4),
            "has `blk.0.ffn_gate_exps.weight` of shape (64, 32, 8), but its keys ask for (any, any, 4)",
        ),
        (
            changed("qwen3moe", expert_count=1025),
            "has `qwen3moe.expert_count` = 1025, it must be from 0 to 1024",
        ),
        (changed("qwen3moe", expert_used_count=0), "uses 0 of 8 experts, which is impossible"),
        (changed("qwen3moe", expert_used_count=9), "uses 9 of 8 experts, which is impossible"),
        (changed("qwen3moe", expert_group_count=8), "has 8 groups of experts, but 8 experts"),
        (
            changed("qwen3moe", expert_group_count=4, expert_group_used_count=4),
            "uses 4 of 4 groups of 8 experts, which is impossible",
        ),
        (
            changed("qwen35", full_attention_interval=0),
            "has `qwen35.full_attention_interval` = 0, it must be from 1 to 512",
        ),
        (
            changed("qwen35", nextn_predict_layers=5),
            "is for drafting alone: 5 of its 5 layers predict ahead",
        ),
        (
            changed("deepseek2", attention__key_length_mla=8),
            "rotates 8 dimensions of a decompressed head of 8, which leaves none",
        ),
        (
            changed("minimax-m2", expert_gating_func=9),
            "has `minimax-m2.expert_gating_func` = 9, it must be from 0 to 4",
        ),
        (
            changed("gpt-oss", attention__sliding_window_pattern=1),
            "has a sliding window that no layer uses, on which the engine aborts",
        ),
        (FAMILIES["llama"]._replace(tensors={}), "holds no tensors: it is a vocabulary alone"),
        (
            FAMILIES["llama"]._replace(tensors={"output_norm.weight": (64,)}),
            "lacks the tensor `token_embd.weight`, which every model of its family has",
        ),
    ],
)
def test_impossible_models(model: Tiny, problem: str):
    """Numbers that contradict each other, or on which the engine aborts, are refused with both."""
    gguf_files.write(Path("m.gguf"), model)

    assert _refusal(Path("m.gguf"), read_model) == (f"`m.gguf` {problem}", DUMP)


def test_a_tokenizer_of_another_model():
    """The embedding has a row for each token that the tokenizer lists."""
    gguf_files.write(
        Path("m.gguf"), FAMILIES["llama"], extra={"tokenizer.ggml.tokens": [f"t{i}" for i in range(50)]}
    )

    problem = "`m.gguf` embeds 48 tokens, but its tokenizer lists 50"
    assert _refusal(Path("m.gguf"), read_model) == (problem, DUMP)


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"general.type": "adapter"}, "of type `adapter`"),
        ({"general.type": "mmproj"}, "an image projector"),
        ({"general.architecture": "clip"}, "an image projector"),
    ],
)
def test_other_kinds_of_gguf(extra: dict[str, str], what: str):
    """Adapters and image projectors are GGUF files too, but no language models."""
    writer = gguf.GGUFWriter("m.gguf", extra.get("general.architecture", "llama"))
    for key, value in extra.items():
        if key != "general.architecture":
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    assert _refusal(Path("m.gguf"), read_model) == (
        f"`m.gguf` is {what}, not a language model",
        "name the model file that it belongs to",
    )


def test_a_file_without_an_architecture():
    """Without an architecture no key can be found."""
    Path("m.gguf").write_bytes(raw_header(3, 0, 0))

    assert _refusal(Path("m.gguf"), read_model)[0] == (
        "`m.gguf` does not say its architecture (`general.architecture`)"
    )
