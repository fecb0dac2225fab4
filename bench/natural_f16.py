"""An F16 file of the model that ships whose weights lie on no quantization grid, for fair comparisons of formats.

    python bench/natural_f16.py OUT.gguf [--source MODEL.gguf] [--seed 0]

SmolLM2 ships as Q4_1. Dequantized, its weights still sit on the grid of Q4_1, which Q4_1 and Q5_1 would store without
loss. Here channels between layers are scaled by random factors and scaled back where they are read, which leaves the
function as it is and the grid behind: norm to q, k, v and to gate, up; up to down; v to the attention's output; the
last norm to the output matrix, which gets weights of its own for that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from penjing import store
from penjing.fetch import resolve
from penjing.gguf import Header, read_header
from penjing.quantize.native import Native
from penjing.quantize.tensors import Tensors

SPREAD = 0.35  # factors are exp(uniform(-SPREAD, SPREAD))
_LEFT_OUT = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
Weights = dict[str, np.ndarray]


def write(source: Path, target: Path, seed: int = 0) -> None:
    """The F16 file of a llama-like `source`. Equal arguments give equal bytes."""
    header = read_header(source)
    tensors = Tensors(header, Native())
    weights = {name: tensors.read(name) for name in tensors.infos}
    weights.setdefault("output.weight", weights["token_embd.weight"].copy())
    _leave_the_grid(header, weights, np.random.default_rng(seed))
    _save(source, target, weights)


def _leave_the_grid(header: Header, weights: Weights, draw: np.random.Generator) -> None:
    number = {key.removeprefix("llama."): value for key, value in header.metadata.items()}
    width, heads, kv_heads = (
        int(str(number[key]))
        for key in ("embedding_length", "attention.head_count", "attention.head_count_kv")
    )

    def factors(count: int) -> np.ndarray:
        return np.exp(draw.uniform(-SPREAD, SPREAD, count)).astype(np.float32)

    def through_norm(norm: str, readers: list[str]) -> None:
        by = factors(width)
        weights[f"{norm}.weight"] /= by
        for name in readers:
            weights[f"{name}.weight"] *= by

    through_norm("output_norm", ["output"])
    for layer in range(int(str(number["block_count"]))):
        block = f"blk.{layer}."
        through_norm(f"{block}attn_norm", [f"{block}attn_{x}" for x in "qkv"])
        through_norm(f"{block}ffn_norm", [f"{block}ffn_gate", f"{block}ffn_up"])
        by = factors(len(weights[f"{block}ffn_up.weight"]))
        weights[f"{block}ffn_up.weight"] /= by[:, None]
        weights[f"{block}ffn_down.weight"] *= by
        by = factors(len(weights[f"{block}attn_v.weight"]))
        weights[f"{block}attn_v.weight"] /= by[:, None]
        shared = by.reshape(kv_heads, 1, -1).repeat(heads // kv_heads, axis=1)
        weights[f"{block}attn_output.weight"] *= shared.ravel()


def _save(source: Path, target: Path, weights: Weights) -> None:
    import gguf

    with store.replacing(target) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        for key, field in gguf.GGUFReader(source).fields.items():
            if not key.startswith(_LEFT_OUT):
                _copy(writer, key, field)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        for name, values in weights.items():
            writer.add_tensor(name, values if values.ndim == 1 else values.astype(np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _copy(writer: Any, key: str, field: Any) -> None:
    kind, *inner = field.types
    writer.add_key_value(key, field.contents(), kind, sub_type=inner[-1] if inner else None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", help="a llama-like GGUF; left out: the model that ships")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(resolve(args.source), args.out, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
