"""Limits that are possible are not refused before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

import gguf_files
from penjing import prior
from penjing.engines.llamacpp import LlamaCpp
from penjing.errors import DoesNotFit
from penjing.gguf import read_header, read_model
from penjing.quantize.native import Native
from penjing.quantize.tensors import Tensors
from penjing.shrink import Goal, Shrinker

WIDTH, LAYERS = 256, 6


def test_many_layers_with_formats_of_few_bits(tmp_path: Path):
    """Six layers that all have 2-bit formats: 5 bits per weight are possible, 0.5 are not."""
    block = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)} | dict.fromkeys(
        ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), (WIDTH, WIDTH)
    )
    shapes = {"token_embd.weight": (WIDTH, 64), "output_norm.weight": (WIDTH,), "output.weight": (WIDTH, 64)}
    shapes |= {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in block.items()}
    keys: dict[str, gguf_files.Value] = {
        "block_count": LAYERS, "context_length": 512, "embedding_length": WIDTH, "feed_forward_length": WIDTH,
        "attention.head_count": 4, "attention.head_count_kv": 4, "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": 64,
    }  # fmt: skip
    path = gguf_files.write(tmp_path / "m.gguf", gguf_files.Tiny("llama", keys, shapes))
    header, model, native = read_header(path), read_model(path), Native(1)
    shrinker = Shrinker(header, model, prior.sensitivity(model, Tensors(header, native)), LlamaCpp(), native)

    shrinker._check_possible(Goal(bits_per_weight=5.0))
    shrinker._check_possible(Goal(max_bytes=10**7))
    with pytest.raises(DoesNotFit):
        shrinker._check_possible(Goal(bits_per_weight=0.5))
