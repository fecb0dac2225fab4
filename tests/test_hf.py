"""Reading Hugging Face folders: every family, from its tensors and from its configuration alone."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_folders import FAMILIES, data_bytes, family, header, write_file, write_folder
from penjing.errors import BadFile
from penjing.hf import read_folder
from penjing.model import Layer

BARE = {"hidden_size": 48, "num_hidden_layers": 1, "max_position_embeddings": 64, "num_attention_heads": 6}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "vocab_size": 129280,
    "max_position_embeddings": 163840, "num_attention_heads": 128, "num_key_value_heads": 128,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "moe_layer_freq": 1, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_is_counted_once(name: str, tmp_path: Path) -> None:
    """The weights and bytes of the model are those of the folder, whatever is merged on the way."""
    model = read_folder(family(name, tmp_path))
    assert sum(math.prod(shape) for _, *shape in FAMILIES[name]["tensors"].values()) == model.n_weights
    assert data_bytes(FAMILIES[name]["tensors"]) == model.n_bytes
    assert model.known_family


@pytest.mark.parametrize("name", FAMILIES)
def test_no_tensor_is_without_a_role(name: str, tmp_path: Path) -> None:
    """Of a known family every tensor has a role of its own."""
    assert [t.name for t in read_folder(family(name, tmp_path)).tensors if t.role in ("other", "draft")] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_configuration_alone_gives_the_same_model(name: str, tmp_path: Path) -> None:
    """Grown from config.json, a model has the weights, layers and experts that its tensors have."""
    read = read_folder(family(name, tmp_path / "whole"))
    grown = read_folder(write_folder(tmp_path / "bare", FAMILIES[name]["config"], None))
    assert read.n_weights == grown.n_weights
    assert read.active_weights == grown.active_weights
    assert read.layers == grown.layers
    assert (read.experts, read.experts_used, read.tied) == (grown.experts, grown.experts_used, grown.tied)
    assert read.width == grown.width and read.vocabulary == grown.vocabulary


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_family_is_read_from_its_tensors(name: str, tmp_path: Path) -> None:
    """Under a name nobody taught us a folder has the same cache, windows aside, and says so."""
    known = read_folder(family(name, tmp_path / "known"))
    unknown = read_folder(family(name, tmp_path / "unknown", model_type="novel"))
    assert not unknown.known_family
    assert [(x.key_width, x.value_width) for x in known.layers] == [
        (x.key_width, x.value_width) for x in unknown.layers
    ]
    assert (known.n_weights, known.experts) == (unknown.n_weights, unknown.experts)


def test_shapes_are_input_first(tmp_path: Path) -> None:
    """Shapes are in GGUF's order, and the experts of a layer are one tensor."""
    model = read_folder(family("qwen3_moe", tmp_path))
    by_name = {t.name: t for t in model.tensors}
    query = by_name["model.layers.0.self_attn.q_proj.weight"]
    gates = by_name["model.layers.2.mlp.experts.*.gate_proj.weight"]
    assert (query.shape, query.role, query.type, query.layer) == ((48, 96), "attention_q", "bf16", 0)
    assert (gates.shape, gates.role, gates.active_share) == ((48, 40, 4), "expert_gate", 0.5)
    assert gates.n_bytes == 4 * 48 * 40 * 2


def test_fused_experts_are_turned_round(tmp_path: Path) -> None:
    """The fused experts of gpt-oss lie (experts, in, out) in the file and become (in, out, experts)."""
    shapes = {t.role: t.shape for t in read_folder(family("gpt_oss", tmp_path)).tensors if t.layer == 0}
    assert shapes["expert_gate_up"] == (48, 80, 4)
    assert shapes["expert_down"] == (40, 48, 4)


def test_layers_of_latent_attention(tmp_path: Path) -> None:
    """MLA caches its latent of 20 and one rotary key of 8, whatever the number of heads."""
    assert (Layer("latent", heads=6, key_width=28),) * 4 == read_folder(
        family("deepseek_v3", tmp_path)
    ).layers


def test_layers_with_windows(tmp_path: Path) -> None:
    """Every second layer of gpt-oss has a window, and every layer of Mistral."""
    window, full = Layer("window", 6, 32, 32, window_tokens=64), Layer("full", 6, 32, 32)
    assert (window, full, window, full) == read_folder(family("gpt_oss", tmp_path / "a")).layers
    assert (window,) * 4 == read_folder(family("mistral", tmp_path / "b")).layers


def test_patterns_without_a_list_of_layers(tmp_path: Path) -> None:
    """Older configurations give a period in place of a list, and mean the same."""
    for name in ("gpt_oss", "gemma3_text", "qwen3_next"):
        config = {k: v for k, v in FAMILIES[name]["config"].items() if k != "layer_types"}
        listed = read_folder(family(name, tmp_path / name))
        assert listed.layers == read_folder(write_folder(tmp_path / f"{name}-old", config, None)).layers


def test_recurrent_state_by_hand(tmp_path: Path) -> None:
    """A delta net keeps 3 inputs of its 80 channels and 4 states of 8 × 12, in F32."""
    layers = read_folder(family("qwen3_next", tmp_path)).layers
    assert (Layer("recurrent", state_bytes=4 * (3 * 80 + 4 * 8 * 12)),) * 3 == layers[:3]
    assert Layer("full", 6, 32, 32) == layers[3]


def test_published_configuration_gives_published_count(tmp_path: Path) -> None:
    """DeepSeek-V3's config.json gives the 671,026,419,200 weights of its tensors, most of them in FP8."""
    model = read_folder(write_folder(tmp_path, DEEPSEEK_V3, None))
    assert model.n_weights == 671_026_419_200
    assert sum(layer.key_width + layer.value_width for layer in model.layers) == 61 * 576
    assert pytest.approx(model.n_bytes, rel=0.001) == 673e9


def test_mxfp4_is_unfolded(tmp_path: Path) -> None:
    """Blocks and scales of gpt-oss become one tensor of its real shape, 17 bytes for 32 weights."""
    tensors = dict(FAMILIES["gpt_oss"]["tensors"])
    config = FAMILIES["gpt_oss"]["config"] | {"hidden_size": 64, "intermediate_size": 96}
    for name, table in list(tensors.items()):
        tensors[name] = [table[0], *(64 if size == 48 else size for size in table[1:])]
    for layer in range(4):
        stem = f"model.layers.{layer}.mlp.experts"
        del tensors[f"{stem}.gate_up_proj"], tensors[f"{stem}.down_proj"]
        tensors[f"{stem}.gate_up_proj_blocks"] = ["U8", 4, 192, 2, 16]
        tensors[f"{stem}.gate_up_proj_scales"] = ["U8", 4, 192, 2]
        tensors[f"{stem}.down_proj_blocks"] = ["U8", 4, 64, 3, 16]
        tensors[f"{stem}.down_proj_scales"] = ["U8", 4, 64, 3]
    model = read_folder(write_folder(tmp_path, config, tensors))
    packed = [t for t in model.tensors if t.type == "mxfp4"]
    assert sorted(t.shape for t in packed if t.layer == 0) == [(64, 192, 4), (96, 64, 4)]
    assert all(t.n_bytes == t.n_weights * 17 // 32 for t in packed)
    assert data_bytes(tensors) == model.n_bytes


def test_draft_layers_are_told_apart(tmp_path: Path) -> None:
    """A layer beyond the last is a head for drafting: it is stored, and idle in plain decoding."""
    tensors = dict(FAMILIES["deepseek_v3"]["tensors"])
    plain = read_folder(write_folder(tmp_path / "plain", FAMILIES["deepseek_v3"]["config"], tensors))
    tensors |= {"model.layers.4.eh_proj.weight": ["BF16", 48, 96], "mtp.fc.weight": ["BF16", 48, 96]}
    model = read_folder(write_folder(tmp_path / "mtp", FAMILIES["deepseek_v3"]["config"], tensors))
    assert sum(t.n_weights for t in model.tensors if t.role == "draft") == 2 * 48 * 96
    assert plain.active_weights == model.active_weights and plain.layers == model.layers


def test_multimodal_keeps_its_text_part(tmp_path: Path) -> None:
    """Of a multimodal folder the part for text is read, under its own configuration and prefix."""
    text, table = FAMILIES["gemma3_text"]["config"], FAMILIES["gemma3_text"]["tensors"]
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 7}}
    tensors = {name.replace("model.", "language_model.model.", 1): value for name, value in table.items()}
    tensors["vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"] = ["BF16", 7, 7]
    tensors["multi_modal_projector.mm_input_projection_weight"] = ["BF16", 7, 48]
    model = read_folder(write_folder(tmp_path / "both", config, tensors))
    alone = read_folder(family("gemma3_text", tmp_path / "text"))
    assert (alone.layers, alone.n_weights) == (model.layers, model.n_weights)
    assert model.architecture == "gemma3_text" and model.known_family


def test_shards_with_an_index_and_without(tmp_path: Path) -> None:
    """Three shards hold the same model as one file, also where the index was not fetched."""
    one = read_folder(family("qwen3", tmp_path / "one"))
    folder = family("qwen3", tmp_path / "three", shards=3)
    assert one.tensors == read_folder(folder).tensors
    (folder / "model.safetensors.index.json").unlink()
    assert one.tensors == read_folder(folder).tensors
    assert len(read_folder(folder).files) == 3


def test_chat_template_is_seen(tmp_path: Path) -> None:
    """A template counts wherever a folder may keep it."""
    folder = family("llama", tmp_path)
    assert not read_folder(folder).chat_template
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert read_folder(folder).chat_template


def test_snapshot_of_the_hub_is_named_after_its_repository(tmp_path: Path) -> None:
    """A folder of the hub's cache is called by the repository, not by the commit."""
    folder = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "0f0f0f"
    assert read_folder(family("qwen3", folder)).name == "Qwen3-0.6B"


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("qwen3", {"num_key_value_heads": 3}, "keys and values of 48 and 48 elements, the tensors 32 and 32"),
        (
            "qwen3",
            {"num_hidden_layers": 5, "layer_types": None},
            "in layer 4 config.json gives keys and values of 32 and 32 .*, the tensors 0 and 0",
        ),
        ("qwen3", {"hidden_size": 64}, "gives a width of 64, the embedding has 48"),
        ("qwen3", {"num_hidden_layers": 513}, "num_hidden_layers"),
        ("qwen3", {"num_hidden_layers": 0}, ">= 1"),
        ("qwen3", {"max_position_embeddings": 0}, ">= 1"),
        ("qwen3", {"model_type": "a\x1b[31mred"}, "matching regex"),
        ("qwen3", {"hidden_size": "48"}, "Expected `int`"),
        ("qwen3", {"layer_types": ["full_attention"]}, "1 `kinds` for 4 layers"),
        ("qwen3", {"layer_types": ["chunked"] * 4}, "layer_types has 'chunked'"),
        (
            "qwen3_moe",
            {"num_experts": 5, "num_local_experts": 5},
            "be 5 experts.* has 4, the first missing is 4",
        ),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "alternate"),
        ("deepseek_v3", {"v_head_dim": None}, "`v_head_dim` is missing"),
        ("gpt_oss", {"sliding_window": None}, "window"),
    ],
)
def test_contradictions_are_refused(
    name: str, changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """A configuration that its tensors, or itself, contradict is refused in words."""
    with pytest.raises(BadFile, match=expected):
        read_folder(family(name, tmp_path, **changes))


def test_missing_shards_are_named(tmp_path: Path) -> None:
    """A folder that lacks a shard says which, with an index and without."""
    folder = family("qwen3", tmp_path, shards=5)
    (folder / "model-00002-of-00005.safetensors").unlink()
    for _ in range(2):
        with pytest.raises(BadFile, match=r"lacks 1 of 5 weight files: model-00002-of-00005.safetensors"):
            read_folder(folder)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)


def test_missing_expert_is_named(tmp_path: Path) -> None:
    """A layer without one of its experts is refused by the number of the expert."""
    tensors = dict(FAMILIES["qwen3_moe"]["tensors"])
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    with pytest.raises(
        BadFile, match=r"be 4 experts, `model.layers.1.mlp.experts.\*.up_proj.weight` has 3.*is 2"
    ):
        read_folder(write_folder(tmp_path, FAMILIES["qwen3_moe"]["config"], tensors))


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", "I32", 12),
        ("model.layers.0.self_attn.q_proj.weight", "U8", 24),
        ("model.layers.0.mlp.down_proj.weight_packed", "I32", 6),
    ],
)
def test_packed_weights_are_refused(name: str, dtype: str, size: int, tmp_path: Path) -> None:
    """Weights packed into integers are refused: their stored shape is not the shape of the model."""
    tensors = FAMILIES["qwen3"]["tensors"] | {name: [dtype, size, 48]}
    with pytest.raises(BadFile, match="packed into") as caught:
        read_folder(write_folder(tmp_path, FAMILIES["qwen3"]["config"], tensors))
    assert "repository that it was made from" in caught.value.hint


def test_no_weights_of_an_unknown_family(tmp_path: Path) -> None:
    """Without weights, a family that nobody taught us is refused with a way out."""
    with pytest.raises(BadFile, match="`novel` is not a family") as caught:
        read_folder(write_folder(tmp_path, BARE | {"model_type": "novel"}, None))
    assert "*.safetensors" in caught.value.hint


@pytest.mark.parametrize("packing", ["gptq", "awq", ["fp8"], {"a": 1}])
def test_no_weights_of_unknown_size(packing: Any, tmp_path: Path) -> None:
    """Without weights, a packing that config.json does not explain is refused rather than guessed."""
    config = FAMILIES["qwen3"]["config"] | {"quantization_config": {"quant_method": packing}}
    with pytest.raises(BadFile, match="does not tell the size of"):
        read_folder(write_folder(tmp_path, config, None))


def test_packing_beside_the_configuration_counts(tmp_path: Path) -> None:
    """A hf_quant_config.json says that weights are packed, even if config.json is silent."""
    folder = write_folder(tmp_path, FAMILIES["qwen3"]["config"], None)
    (folder / "hf_quant_config.json").write_text("{}")
    with pytest.raises(BadFile, match="`modelopt`"):
        read_folder(folder)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"model_type": 3}', b"[" * 100_000, b"\xff\xfe", b'{"a": 1e999}']
)
def test_broken_configuration(text: bytes, tmp_path: Path) -> None:
    """A config.json that is none ends in one line."""
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(BadFile, match="not the configuration of a language model"):
        read_folder(tmp_path)


def test_infinity_in_a_configuration_is_read(tmp_path: Path) -> None:
    """Python writes `Infinity`, which is no JSON, into configurations of real models."""
    folder = family("llama", tmp_path)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"time_step_limit": [0.0, Infinity], ', 1))
    assert read_folder(folder).known_family


def test_folder_of_something_else(tmp_path: Path) -> None:
    """A folder without config.json, or without an embedding, is no language model."""
    with pytest.raises(BadFile, match=r"no config.json"):
        read_folder(tmp_path)
    adapter = write_folder(tmp_path / "b", BARE | {"model_type": "novel"}, {"a.weight": ["BF16", 4]})
    with pytest.raises(BadFile, match="no token embedding among its 1 tensors"):
        read_folder(adapter)


def test_adapters_and_second_layouts_are_left_out(tmp_path: Path) -> None:
    """Only the files of the model are read where others lie beside them."""
    folder = family("llama", tmp_path)
    write_file(folder / "adapter_model.safetensors", b"{}", 0)
    write_file(folder / "consolidated.safetensors", header({"tok_embeddings.weight": ["BF16", 4, 4]}), 32)
    assert read_folder(folder).n_bytes == data_bytes(FAMILIES["llama"]["tensors"])


ODD = [None, True, -1, 0, 1, 3, 2**24, 2**63, 2**200, 1.5, "", "x", [], [0], [[]], {}, {"quant_method": 7}]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_odd_values_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever a configuration says, and whatever shape a tensor has, it is read or refused."""
    name = data.draw(st.sampled_from(list(FAMILIES)))
    config, tensors = dict(FAMILIES[name]["config"]), dict(FAMILIES[name]["tensors"])
    for key in data.draw(st.lists(st.sampled_from([*config, "model_type", "text_config"]), max_size=2)):
        config[key] = data.draw(st.sampled_from([*ODD, "novel"]))
    for key in data.draw(st.lists(st.sampled_from(list(tensors)), max_size=2)):
        shape = data.draw(st.lists(st.sampled_from([0, 1, 16, 48, 96]), max_size=5))
        tensors[key] = [data.draw(st.sampled_from(["BF16", "U8", "F32"])), *shape]
    folder = tmp_path_factory.getbasetemp() / "odd"
    with_weights = data.draw(st.booleans())
    (folder / "model.safetensors").unlink(missing_ok=True)
    try:
        model = read_folder(write_folder(folder, config, tensors if with_weights else None))
    except BadFile as refusal:
        assert str(refusal).isprintable()
        return
    assert model.active_bytes >= 0 and model.vocabulary > 0
