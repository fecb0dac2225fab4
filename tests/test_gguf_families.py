"""What the reader makes of each model family it was taught, and of one it was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gguf_files
from gguf_families import FAMILIES, VOCABULARY, WIDTH
from gguf_files import Tiny
from penjing.gguf import read_model
from penjing.gguf.families import FAMILIES as TAUGHT
from penjing.gguf.families import Family, place_of, role_of
from penjing.model import Layer, Model, Tensor

# Hand-computed: 4 heads and 2 KV heads of 16 or 32; latents of 32 and a rotary key of 8.
FULL, WIDE = Layer("full", 4, 32, 32), Layer("full", 4, 64, 64)
LATENT, DRAFT = Layer("latent", 4, 40, 0), Layer("none")
# A kernel of 4 keeps 3 inputs of 64 values + 2 × 2 key heads of 16; the state is 4 heads of 16 × 16.
DELTA = Layer("recurrent", state_bytes=4 * (3 * (64 + 2 * 2 * 16) + 16 * 64))
# Kimi's keeps 3 inputs for each of q, k and v, of 4 heads of 16.
KIMI_DELTA = Layer("recurrent", state_bytes=4 * (3 * 3 * 4 * 16 + 16 * 16 * 4))
EXPECTED = {
    "llama": [FULL] * 2,
    "qwen2": [FULL] * 2,
    "qwen3": [WIDE] * 2,
    "qwen3moe": [WIDE] * 2,
    "qwen3next": [DELTA] * 3 + [WIDE],
    "qwen35": [DELTA] * 3 + [WIDE, DRAFT],
    "qwen35moe": [DELTA, WIDE] * 2,
    "glm4": [FULL] * 2,
    "glm4moe": [FULL] * 2 + [DRAFT],
    "minimax-m2": [FULL] * 2,
    "hunyuan-dense": [FULL] * 2,
    "hunyuan-moe": [FULL] * 2,
    "ernie4_5": [FULL] * 2,
    "ernie4_5-moe": [FULL] * 2,
    "deepseek2": [LATENT] * 2,
    "deepseek2-legacy": [Layer("full", 4, 96, 64)] * 2,
    "gpt-oss": [Layer("window", 4, 32, 32, 128), FULL] * 2,
    "gemma3": [Layer("window", 4, 64, 64, 512)] * 5 + [WIDE, Layer("window", 4, 64, 64, 512)],
    "kimi-linear": [KIMI_DELTA] * 3 + [LATENT],
}
FFN = {"ffn_gate", "ffn_up", "ffn_down"}
MOE = {"router", "expert_gate", "expert_up", "expert_down"}
SHARED = {"shared_gate", "shared_up", "shared_down"}
ATTENTION = {"attention_q", "attention_k", "attention_v", "attention_output"}
LATENTS = {"latent_q_down", "latent_q_up", "latent_kv_down", "latent_k_up", "latent_v_up", "attention_output"}
NET = {"attention_qkv", "attention_gate", "recurrent", "bias"} | ATTENTION
ROLES = {
    "llama": ATTENTION | FFN,
    "qwen2": ATTENTION | FFN | {"bias"},
    "qwen3": ATTENTION | FFN,
    "qwen3moe": ATTENTION | MOE,
    "qwen3next": NET | MOE | SHARED | {"shared_router"},
    "qwen35": NET | FFN | {"draft"},
    "qwen35moe": NET | SHARED | {"router", "expert_gate_up", "expert_down", "shared_router"},
    "glm4": ATTENTION | {"ffn_gate_up", "ffn_down"},
    "glm4moe": ATTENTION | FFN | MOE | SHARED | {"bias", "draft"},
    "minimax-m2": ATTENTION | MOE | {"bias"},
    "hunyuan-dense": ATTENTION | FFN,
    "hunyuan-moe": ATTENTION | MOE | SHARED,
    "ernie4_5": ATTENTION | FFN,
    "ernie4_5-moe": ATTENTION | FFN | MOE | SHARED | {"bias"},
    "deepseek2": LATENTS | FFN | MOE | SHARED | {"bias"},
    "deepseek2-legacy": (LATENTS - {"latent_k_up", "latent_v_up"} | {"latent_kv_up"})
    | FFN
    | MOE
    | SHARED
    | {"bias"},
    "gpt-oss": ATTENTION | MOE | {"bias"},
    "gemma3": ATTENTION | FFN,
    "kimi-linear": (LATENTS - {"latent_q_down", "latent_q_up"})
    | ATTENTION
    | FFN
    | MOE
    | SHARED
    | {"bias", "recurrent"},
}


def _read(folder: Path, model: Tiny) -> Model:
    return read_model(gguf_files.write(folder / "tiny.gguf", model))


def _with(
    model: Tiny, keys: dict[str, object] | None = None, tensors: gguf_files.Shapes | None = None
) -> Tiny:
    return Tiny(model.architecture, {**model.keys, **(keys or {})}, {**model.tensors, **(tensors or {})})


def test_every_taught_family_is_tried():
    """There is a little model for each family of the table."""
    assert set(TAUGHT) == {model.architecture for model in FAMILIES.values()}


@pytest.mark.parametrize("name", FAMILIES)
def test_layers(tmp_path: Path, name: str):
    """Kinds, heads, cache widths, windows and states are those computed by hand."""
    model = _read(tmp_path, FAMILIES[name])

    assert model.layers == tuple(EXPECTED[name])
    assert model.known_family


@pytest.mark.parametrize("name", FAMILIES)
def test_roles(tmp_path: Path, name: str):
    """Each tensor has the role of its job, none is left over, and drafting layers are told apart."""
    model = _read(tmp_path, FAMILIES[name])

    everywhere = {"token_embedding", "norm"} | (set() if model.tied else {"output"})
    assert {t.role for t in model.tensors} == ROLES[name] | everywhere
    assert {t.layer for t in model.tensors if t.role == "draft"} == {
        i for i, layer in enumerate(model.layers) if layer == DRAFT
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_active_shares(tmp_path: Path, name: str):
    """A token reads 2 of 8 routed experts, with their biases, one row of the embedding, and all else."""
    model = _read(tmp_path, FAMILIES[name])

    for tensor in model.tensors:
        expected = 1.0
        if "_exps." in tensor.name:
            expected = 0.25
        elif tensor.role == "token_embedding":
            expected = 1 / VOCABULARY
        assert (tensor.name, tensor.active_share) == (tensor.name, expected)
    assert model.experts == (8 if any("_exps." in t.name for t in model.tensors) else 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_and_sizes(tmp_path: Path, name: str):
    """Tensors keep names, shapes and bytes; the model keeps its width, vocabulary and context."""
    tiny = FAMILIES[name]

    model = _read(tmp_path, tiny)

    assert {t.name: t.shape for t in model.tensors} == tiny.tensors
    assert all(t.n_bytes == 4 * t.n_weights for t in model.tensors)
    assert (model.width, model.vocabulary, model.context_tokens) == (WIDTH, VOCABULARY, 4096)
    assert model.tied == ("output.weight" not in tiny.tensors)


def test_a_listed_window_pattern_wins(tmp_path: Path):
    """A list in the file overrides the family's period, and layers past the list see everything."""
    listed = {"attention.sliding_window_pattern": [False, True, True]}

    model = _read(tmp_path, _with(FAMILIES["gemma3"], listed))

    kinds = [layer.attention for layer in model.layers]
    assert kinds == ["full", "window", "window", "full", "full", "full", "full"]


@pytest.mark.parametrize(("period", "kinds"), [(2, "wfwfwfw"), (3, "wwfwwfw"), (0, "wwwwwww")])
def test_a_given_window_period_wins(tmp_path: Path, period: int, kinds: str):
    """A period in the file overrides the family's; 0 is a window in every layer."""
    model = _read(tmp_path, _with(FAMILIES["gemma3"], {"attention.sliding_window_pattern": period}))

    assert "".join(layer.attention[0] for layer in model.layers) == kinds


def test_gemma_without_a_window_sees_everything(tmp_path: Path):
    """A window of 0 is none."""
    model = _read(tmp_path, _with(FAMILIES["gemma3"], {"attention.sliding_window": 0}))

    assert set(model.layers) == {WIDE}


def test_windowed_layers_can_have_their_own_heads(tmp_path: Path):
    """Keys for windowed layers size their cache alone."""
    blocks = {f"blk.{i}.attn_{x}.weight": (WIDTH, 16) for i in range(7) if i != 5 for x in "kv"}
    own = {"attention.key_length_swa": 8, "attention.value_length_swa": 8}

    model = _read(tmp_path, _with(FAMILIES["gemma3"], own, blocks))

    assert (model.layers[0].key_width, model.layers[5].key_width) == (16, 64)


def test_a_list_of_recurrent_layers_wins(tmp_path: Path):
    """The file's own list tells the layers without a cache."""
    listed = {"attention.recurrent_layers": [0, 1, 0, 1]}

    model = _read(tmp_path, _with(FAMILIES["qwen35moe"], listed))

    assert model.layers == (WIDE, DELTA, WIDE, DELTA)


def test_heads_and_experts_of_each_layer(tmp_path: Path):
    """Arrays give each layer its own heads, KV heads, hidden width and experts used."""
    keys = {
        "attention.head_count": [4, 2],
        "attention.head_count_kv": [2, 1],
        "feed_forward_length": [96, 48],
        "expert_used_count": [2, 4],
    }
    narrow = {"blk.1.attn_k.weight": (WIDTH, 32), "blk.1.attn_v.weight": (WIDTH, 32)}

    model = _read(tmp_path, _with(FAMILIES["qwen3moe"], keys, narrow))

    assert model.layers == (WIDE, Layer("full", 2, 32, 32))
    shares = {t.layer: t.active_share for t in model.tensors if t.role == "expert_down"}
    assert shares == {0: 0.25, 1: 0.5}
    assert model.experts_used == 4


def test_an_unknown_family_is_read_from_keys_and_tensors(tmp_path: Path):
    """An architecture nobody taught us says so, and has the same layers and roles as its tensors show."""
    known = _read(tmp_path, FAMILIES["qwen3moe"])

    model = _read(tmp_path, FAMILIES["qwen3moe"]._replace(architecture="qwen9moe"))

    assert (model.architecture, model.known_family) == ("qwen9moe", False)
    assert model.layers == known.layers
    assert model.tensors == known.tensors


def test_an_unknown_family_trusts_its_projections(tmp_path: Path):
    """The cache of an unknown family is as wide as what its projections put out."""
    shapes = {f"blk.{i}.attn_{x}.weight": (WIDTH, 24) for i in range(2) for x in "kv"}

    model = _read(tmp_path, _with(FAMILIES["llama"], None, shapes)._replace(architecture="newllama"))

    assert {(layer.key_width, layer.value_width) for layer in model.layers} == {(24, 24)}


def test_an_unknown_hybrid_is_told_by_its_tensors(tmp_path: Path):
    """Layers with a mixer in time and no attention output are recurrent; with both they keep both."""
    hybrid = _with(FAMILIES["qwen3next"], None, {"blk.3.ssm_out.weight": (WIDTH, WIDTH)})

    model = _read(tmp_path, hybrid._replace(architecture="mixed"))

    assert model.layers == (DELTA, DELTA, DELTA, Layer("full", 4, 64, 64, None, DELTA.state_bytes))


def test_an_unknown_tensor_is_other(tmp_path: Path):
    """A tensor that no rule knows is kept, with the role `other`; large tables are read by the row."""
    strange = {"blk.0.whatever.weight": (8, 8), "per_layer_token_embd.weight": (8, VOCABULARY)}

    model = _read(tmp_path, _with(FAMILIES["llama"], None, strange))

    others = [t for t in model.tensors if t.role == "other"]
    assert [(t.name, t.active_share) for t in others] == [
        ("blk.0.whatever.weight", 1.0),
        ("per_layer_token_embd.weight", 1 / VOCABULARY),
    ]


def test_rotary_factors_and_drafting_heads_have_a_role(tmp_path: Path):
    """Small factors count as norms, and `nextn` tensors as drafting wherever they lie."""
    more = {"rope_freqs.weight": (8,), "nextn.pre_projection.weight": (8, 8)}

    roles = {t.name: t.role for t in _read(tmp_path, _with(FAMILIES["llama"], None, more)).tensors}

    assert (roles["rope_freqs.weight"], roles["nextn.pre_projection.weight"]) == ("norm", "draft")


def test_names(tmp_path: Path):
    """A model has its own name, or that of its file without the part number; control characters go."""
    path = gguf_files.write(tmp_path / "my-model.gguf", FAMILIES["llama"])
    named = gguf_files.write(
        tmp_path / "b.gguf", FAMILIES["llama"], extra={"general.name": "  Evil \x1b[31mred "}
    )

    assert read_model(path).name == "my-model"
    assert read_model(named).name == "Evil �[31mred"


def test_chat_template_is_noticed(tmp_path: Path):
    """`chat_template` says whether the file brings one."""
    with_one = gguf_files.write(
        tmp_path / "a.gguf", FAMILIES["llama"], extra={"tokenizer.chat_template": "{{ messages }}"}
    )
    without = gguf_files.write(tmp_path / "b.gguf", FAMILIES["llama"])

    assert read_model(with_one).chat_template
    assert not read_model(without).chat_template


def test_a_single_expert_of_a_dense_family_is_none(tmp_path: Path):
    """Hunyuan's dense files name one expert, which the engine takes for none."""
    model = _read(tmp_path, _with(FAMILIES["hunyuan-dense"], {"expert_count": 1, "expert_used_count": 1}))

    assert (model.experts, model.experts_used) == (0, 0)


def test_active_weights_of_experts_are_their_share(tmp_path: Path):
    """With 2 of 8 experts a token reads a quarter of the routed bytes."""
    model = _read(tmp_path, FAMILIES["qwen3moe"])

    def total(tensors: list[Tensor]) -> int:
        return sum(t.n_bytes for t in tensors)

    routed = [t for t in model.tensors if t.role.startswith("expert_")]
    table = [t for t in model.tensors if t.role == "token_embedding"]
    rest = total(list(model.tensors)) - total(routed) - total(table)
    assert model.active_bytes == pytest.approx(rest + total(routed) / 4 + 4 * WIDTH)


@given(st.text(min_size=1, max_size=63))
def test_every_name_has_a_place_and_a_role(name: str):
    """Whatever a tensor is called, it gets a role, and a layer only if it is in a block."""
    place = place_of(name)

    assert role_of(place, Family())
    assert place.layer is None or name.startswith((f"blk.{place.layer}.", "blk.0"))
