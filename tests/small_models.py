"""Small language models with random weights that read text byte by byte: quick to write, build, measure and sweep."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from penjing import sensitivities
from penjing.gguf import read_header
from penjing.quality.sensitivity import Moments, Sensitivity

WIDTH, HIDDEN, HEADS, KV_HEADS = 256, 512, 4, 2
_KINDS = {"F16": gguf.GGMLQuantizationType.F16, "Q4_0": gguf.GGMLQuantizationType.Q4_0}


def write(
    path: Path, kind: str = "F16", *, layers: int = 2, hidden: int = HIDDEN, seed: int = 0, pooling: int = 0
) -> Path:
    """A model of the plainest family. Equal seeds give the same weights in every `kind`, as near as it can be.

    `pooling`: how a text becomes one vector, 1 for the mean of its tokens; 0 for a model that is not asked to.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"small-{layers}-{seed}")
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    if pooling:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    tokens = _add_tokenizer(writer)
    draw = np.random.default_rng(seed)
    for name, shape in _shapes(layers, hidden, tokens).items():
        values = draw.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, 1 + values / 10)
            continue
        values *= 1 if name == "token_embd.weight" else 1.5 * shape[-1] ** -0.5
        values = values.astype(np.float16).astype(np.float32)  # other kinds are made from what F16 keeps
        writer.add_tensor(name, gguf.quants.quantize(values, _KINDS[kind]), raw_dtype=_KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(layers: int, hidden: int, tokens: int) -> dict[str, tuple[int, ...]]:
    kv_width = WIDTH * KV_HEADS // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (tokens, WIDTH),
        "output.weight": (tokens, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (kv_width, WIDTH),
        "attn_v": (kv_width, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (hidden, WIDTH),
        "ffn_up": (hidden, WIDTH),
        "ffn_down": (WIDTH, hidden),
    }
    return shapes | {f"blk.{i}.{name}.weight": shape for i in range(layers) for name, shape in layer.items()}


def _add_tokenizer(writer: gguf.GGUFWriter) -> int:
    """A token for every byte, as GPT-2 spells them, and one that is merged of two; returns their number."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    tokens = ["<|endoftext|>", *letters, "Ġt"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    return len(tokens)


def sensitivity(path: Path, seed: int = 0) -> Sensitivity:
    """Random moments for every matrix of a model, with a few directions, as if they had been measured."""
    header, draw = read_header(path), np.random.default_rng(seed)
    moments = {
        info.name: Moments(
            inputs=draw.uniform(0.5, 2, info.shape[0]).astype(np.float32),
            outputs=draw.uniform(0.5, 2, info.shape[1]).astype(np.float32) / 1000,
            tokens=np.array(1024),
            directions=draw.normal(0, 0.2, (4, info.shape[0])).astype(np.float32),
        )
        for info in header.tensors
        if len(info.shape) == 2
    }
    return Sensitivity(moments, sensitivities.model_hash(header), "measured", 1024, seed)


def spoil(path: Path, tensor: str) -> None:
    """Put one NaN among the F16 weights of a tensor."""
    info = next(info for info in read_header(path).tensors if info.name == tensor)
    with path.open("r+b") as file:
        file.seek(info.offset + 200)
        file.write(np.float16(np.nan).tobytes())
