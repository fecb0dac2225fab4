"""What feeds the calibrator: tensors of GGUF files, and folders in the layouts that people publish."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import calibrate_models
import gguf_files
from calibrate_models import MODELS, opened, ordinary
from gguf_families import FAMILIES
from penjing.calibrate import packed
from penjing.calibrate.folder_weights import FolderWeights
from penjing.calibrate.names import Layout, Place
from penjing.calibrate.walk import Walk
from penjing.errors import BadFile, UsageError
from penjing.gguf.parts import read_header
from penjing.quantize.native import Native
from penjing.quantize.tensors import Tensors, runs

# ---- GGUF ----------------------------------------------------------------------------------------


def quantized(path: Path, kind: gguf.GGMLQuantizationType, values: np.ndarray) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("first", np.ones(3, np.float32))
    writer.add_tensor("stack", gguf.quants.quantize(values, kind), raw_dtype=kind)
    gguf_files._finish(writer)
    return path


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q8_0"])
def test_only_what_is_asked_is_read(tmp_path: Path, kind: str):
    """A tensor, one of a stack, and some of its rows are what an independent reader finds."""
    number = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(2).standard_normal((3, 10, 64), dtype=np.float32)
    expected = gguf.quants.dequantize(gguf.quants.quantize(values, number), number)
    tensors = Tensors(read_header(quantized(tmp_path / "q.gguf", number, values)), Native(1))

    assert np.array_equal(expected, tensors.read("stack"))
    assert np.array_equal(expected[2], tensors.read("stack", 2))
    rows = np.array([0, 1, 2, 7, 9, 29])
    assert np.array_equal(expected.reshape(30, 64)[rows], tensors.rows("stack", rows))


def test_neighbours_are_read_at_once():
    """Ascending numbers become ranges without gaps."""
    assert [(0, 3), (7, 8), (9, 11)] == runs(np.array([0, 1, 2, 7, 9, 10]))


def test_parts_of_a_file_are_found(tmp_path: Path):
    """A tensor is read from the part that holds it."""
    paths = gguf_files.write_parts(tmp_path, FAMILIES["llama"], 3)
    header = read_header(paths[0])
    last = next(tensor for tensor in header.tensors if tensor.file == 2)
    with paths[2].open("r+b") as file:
        file.seek(last.offset)
        file.write(np.float32(7).tobytes())

    assert Tensors(header, Native(1)).read(last.name).flat[0] == 7


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, poison: float):
    """NaN or infinity in a tensor is an error that names the tensor."""
    path = calibrate_models.write(tmp_path / "poisoned.gguf", FAMILIES["llama"])
    tensor = next(t for t in read_header(path).tensors if t.name == "blk.1.ffn_up.weight")
    np.memmap(path, np.float32, "r+", tensor.offset, (5,))[3] = poison
    _, weights = opened(path)

    weights.load("model.layers.1.mlp.down_proj.weight")
    with pytest.raises(BadFile, match=re.escape("has NaN or infinity in the tensor `blk.1.ffn_up.weight`")):
        weights.load("model.layers.1.mlp.up_proj.weight")


def test_a_missing_tensor_is_named(tmp_path: Path):
    """A file without a tensor that the family needs is refused when it is asked for."""
    model = FAMILIES["qwen3"]
    kept = {name: shape for name, shape in model.tensors.items() if name != "blk.1.attn_q_norm.weight"}
    _, weights = opened(calibrate_models.write(tmp_path / "less.gguf", model._replace(tensors=kept)))

    with pytest.raises(BadFile, match=re.escape("lacks the tensor `blk.1.attn_q_norm.weight`")):
        weights.load("model.layers.1.self_attn.q_norm.weight")


def test_a_tensor_of_another_size_is_refused(tmp_path: Path):
    """Where the keys of a file and its tensors disagree, the walk stops before it computes."""
    model = calibrate_models.changed("llama", feed_forward_length=64)
    config, weights = opened(calibrate_models.write(tmp_path / "wide.gguf", model))

    with pytest.raises(
        BadFile, match=r"has the shape \(96, 64\), but the sizes of the model ask for \(64, 64\)"
    ):
        Walk(config, weights, 4).forward_layer(0, torch.zeros(1, 4, 64))


class Sizes:
    """The configuration of a model of one layer, as far as places depend on it."""

    model_type = "llama"
    num_attention_heads, num_key_value_heads, head_dim = 2, 1, 4
    qk_nope_head_dim, v_head_dim = 2, 3


def placed(family: str, name: str, expert: int | None = None) -> list[tuple[Any, ...]]:
    config = Sizes()
    config.model_type = family
    found = Layout(config, lambda tensor: not tensor.endswith("kv_b.weight")).places(name, expert)
    return [(p.tensor, p.expert, np.arange(10)[p.rows].tolist(), p.transposed) for p in found]


def test_rows_that_rotate_together_are_neighbours_in_a_llama():
    """A head of four: rows 0 and 2, then 1 and 3; other families keep their rows."""
    q = "model.layers.0.self_attn.q_proj.weight"

    assert [("blk.0.attn_q.weight", None, [0, 2, 1, 3, 4, 6, 5, 7], False)] == placed("llama", q)
    assert [("blk.0.attn_q.weight", None, list(range(10)), False)] == placed("qwen3", q)


def test_latents_decompress_head_by_head():
    """Keys of a head are transposed, its values are not."""
    expected = [
        ("blk.7.attn_k_b.weight", 0, [0, 1], True),
        ("blk.7.attn_v_b.weight", 0, [2, 3, 4], False),
        ("blk.7.attn_k_b.weight", 1, [5, 6], True),
        ("blk.7.attn_v_b.weight", 1, [7, 8, 9], False),
    ]

    assert expected == placed("deepseek_v3", "model.layers.7.self_attn.kv_b_proj.weight")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.norm.weight"),
        ("llama", "model.layers.3.input_layernorm.weight"),
        ("llama", "model.layers.3.self_attn.q_proj.bias"),
        ("glm4_moe", "model.layers.3.mlp.gate.weight"),
        ("glm4_moe", "model.layers.3.mlp.gate.e_score_correction_bias"),
        ("gpt_oss", "model.layers.3.self_attn.sinks"),
        ("gpt_oss", "model.layers.3.mlp.experts.gate_up_proj_bias"),
        ("llama", "model.layers.3.something.else"),
    ],
)
def test_what_is_never_quantized_has_no_place(family: str, name: str):
    """Norms, routers, biases and sinks stay as they are, so nothing is to be written about them."""
    assert [] == placed(family, name)


def test_a_place_that_is_the_whole_parameter():
    """Only rows in their own order, all of them, can be taken as they are."""
    assert Place("t").whole
    assert not Place("t", rows=slice(3)).whole
    assert not Place("t", rows=np.arange(3)).whole
    assert not Place("t", transposed=True).whole


# ---- folders -------------------------------------------------------------------------------------


def folder(family: str, path: Path) -> Path:
    """A family's tiny model as transformers saves it."""
    ordinary(*opened(calibrate_models.write(path / "m.gguf", MODELS[family]))).save_pretrained(path)
    return path


def rewrite(path: Path, tensors: dict[str, torch.Tensor], **config: Any) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | config))


def test_shards_are_opened_by_the_index(tmp_path: Path):
    """A folder in several files gives what the folder in one file gave."""
    whole = FolderWeights(folder("qwen3", tmp_path))
    expected = {name: whole.load(name) for name in load_file(tmp_path / "model.safetensors")}
    tensors = list(expected.items())
    (tmp_path / "model.safetensors").unlink()
    shards = [f"model-{i + 1:05d}-of-00003.safetensors" for i in range(3)]
    for i, shard in enumerate(shards):
        save_file(dict(tensors[i::3]), tmp_path / shard)
    index = {"weight_map": {name: shards[i % 3] for i, (name, _) in enumerate(tensors)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    sharded = FolderWeights(tmp_path)

    assert all(torch.equal(expected[name], sharded.load(name)) for name in expected)
    rows = np.array([0, 1, 5, 47])
    assert torch.equal(expected["lm_head.weight"][rows], sharded.rows("lm_head.weight", rows))


def test_fp8_with_scales_for_blocks(tmp_path: Path):
    """DeepSeek's folders: each block of a matrix in FP8 has a scale of its own."""
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    tensors = load_file(folder("deepseek2", tmp_path) / "model.safetensors")
    tensors[name] = torch.randn(32, 64).to(torch.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rewrite(tmp_path, tensors, quantization_config={"quant_method": "fp8", "weight_block_size": [24, 40]})

    loaded = FolderWeights(tmp_path).load("model.layers.1.mlp.experts.gate_up_proj")[3, 32:]

    plain = tensors[name].float()
    assert torch.equal(plain[:24, :40] * 1, loaded[:24, :40])
    assert torch.equal(plain[:24, 40:] * 2, loaded[:24, 40:])
    assert torch.equal(plain[24:, :40] * 3, loaded[24:, :40])
    assert torch.equal(plain[24:, 40:] * 4, loaded[24:, 40:])


def test_mxfp4_experts(tmp_path: Path):
    """gpt-oss' folders: blocks of 32 weights in four bits, as transformers unpacks them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = load_file(folder("gpt-oss", tmp_path) / "model.safetensors")
    shape = (8, 64, 2)  # experts, rows, groups
    del tensors[name]
    tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
    tensors[f"{name}_scales"] = torch.randint(120, 130, shape, dtype=torch.uint8)
    rewrite(tmp_path, tensors, quantization_config={"quant_method": "mxfp4"})

    loaded = FolderWeights(tmp_path).load(name)

    blocks, scales = tensors[f"{name}_blocks"], tensors[f"{name}_scales"]
    assert torch.equal(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32), loaded)


def test_mxfp4_by_hand():
    """0x2F is -6 and then 1, with a scale of 2."""
    block = torch.full((1, 1, 16), 0x2F, dtype=torch.uint8)

    assert [-12.0, 2.0] * 16 == packed.mxfp4(block, torch.tensor([[128]]))[0].tolist()


def test_kimi_k2_is_a_deepseek_v3(tmp_path: Path):
    """A folder that brings its own code is computed by the class that it copies; the code is not run."""
    rewrite(
        folder("deepseek2", tmp_path),
        load_file(tmp_path / "model.safetensors"),
        model_type="kimi_k2",
        auto_map={"AutoConfig": "configuration_deepseek.Config", "AutoModelForCausalLM": "modeling.Model"},
    )

    assert FolderWeights(tmp_path).config.model_type == "deepseek_v3"


def test_folders_that_cannot_be_calibrated(tmp_path: Path):
    """What is not known, not there or not numbers is refused with its name."""
    tensors = load_file(folder("qwen2", tmp_path) / "model.safetensors")
    up = "model.layers.0.mlp.up_proj.weight"

    rewrite(tmp_path, {**tensors, up: torch.full((96, 64), torch.nan)})
    with pytest.raises(BadFile, match=f"has NaN or infinity in the tensor `{up}`"):
        FolderWeights(tmp_path).load(up)
    rewrite(tmp_path, {**tensors, up: torch.zeros(96, 64, dtype=torch.int32)})
    with pytest.raises(BadFile, match=f"packs `{up}` in a way that is not known"):
        FolderWeights(tmp_path).load(up)
    rewrite(tmp_path, {name: tensor for name, tensor in tensors.items() if name != up})
    with pytest.raises(BadFile, match=f"lacks the parameter `{up}`"):
        FolderWeights(tmp_path).load(up)
    rewrite(tmp_path, tensors, hidden_size="wide")
    with pytest.raises(BadFile, match="is not the configuration of a language model"):
        FolderWeights(tmp_path)
    rewrite(tmp_path, tensors, model_type="bert")
    with pytest.raises(UsageError, match="does not know the family `bert`"):
        FolderWeights(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadFile, match="No such file"):
        FolderWeights(tmp_path)


def test_experts_that_are_missing(tmp_path: Path):
    """A folder that lacks one expert of a layer is refused."""
    tensors = load_file(folder("llama-experts", tmp_path) / "model.safetensors")
    gone = "model.layers.1.block_sparse_moe.experts.7.w2.weight"
    rewrite(tmp_path, {name: tensor for name, tensor in tensors.items() if name != gone})

    FolderWeights(tmp_path).load("model.layers.0.mlp.experts.down_proj")
    with pytest.raises(BadFile, match=re.escape("experts.7.w2.weight")):
        FolderWeights(tmp_path).load("model.layers.1.mlp.experts.down_proj")
