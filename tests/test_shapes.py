"""Shapes of the catalogue against counts that this package did not make."""

import csv
from pathlib import Path

import pytest

from penjing import catalogue
from penjing.gguf import families
from penjing.model import Layer, Model

# Sums over published lists of tensors, counts by another program, and published totals. They stand apart
# from the entries, so that a slip in an entry does not go with its own check.
COUNTS = {
    row["name"]: row
    for row in csv.DictReader((Path(__file__).parent / "data/catalogue/models.csv").read_text().splitlines())
}
MODELS = {model.name: model for model in catalogue.models()}

# Why a shape has not the very count of the other program (never more than 0.1 %).
DIFFERS = {
    "Hunyuan-Large": "layers that use the keys of another have no norm of keys here",
    "Kimi-K3": "the norm of the experts' input, where its place is assumed anyway",
    "Gemma-4-26B-A4B": "one scalar per layer is left out",
    "Gemma-4-31B": "one scalar per layer is left out",
    "Gemma-4-E2B": "one scalar per layer is left out, and one row of the second embedding counts as active",
    "Gemma-4-E4B": "one scalar per layer is left out, and one row of the second embedding counts as active",
    "StableLM-3B-4E1T": "the last norm has a bias too",
}
# Names and published totals that are further than 6 % from the sum: rounded, or with parts left out here.
ROUNDED = {
    "Qwen2.5-7B", "Qwen-7B", "Qwen1.5-0.5B", "Hunyuan-7B", "ERNIE-4.5-0.3B", "Llama-3.2-1B", "Llama-3.2-3B",
    "OpenLLaMA-3B", "BitNet-b1.58-3B", "StableLM-3B-4E1T",
    "Gemma-4-E2B", "Gemma-4-E4B",  # published with the parts for pictures and sound
}  # fmt: skip
# What the other count takes for layers that see everything, though they attend within chunks of 8192 tokens.
CHUNKED = ("Llama-4-Scout-17B-16E", "Llama-4-Maverick-17B-128E")


def test_all_models_are_counted() -> None:
    """No entry ships without a count to check it."""
    assert COUNTS.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_a_shape(name: str) -> None:
    """The tensors grown from a shape hold what the model holds: to the last weight, or we say why not."""
    counted = int(COUNTS[name]["tensor_list"] or COUNTS[name]["counted"])
    assert counted == pytest.approx(MODELS[name].n_weights, rel=1e-3 if name in DIFFERS else 0)
    assert catalogue.shape(name).weights == counted


@pytest.mark.parametrize("name", MODELS)
def test_weights_fit_the_published_total(name: str) -> None:
    """A sum is within 6 % of what the makers say, unless their name is rounded more than that."""
    off = abs(MODELS[name].n_weights / float(COUNTS[name]["published"]) - 1)
    assert (off > 0.06) == (name in ROUNDED)


@pytest.mark.parametrize("name", MODELS)
def test_active_weights_of_a_shape(name: str) -> None:
    """Experts count by the share a token uses; the other count has the looked-up embedding in it."""
    model = MODELS[name]
    assert int(COUNTS[name]["active"]) == pytest.approx(
        with_tables(model), rel=1e-4 if name in DIFFERS else 1e-9
    )
    assert 0 < model.active_weights <= model.n_weights


def with_tables(model: Model) -> float:
    """Active weights, and all of the tables that a token reads one row of, but those per layer."""
    tables = ("token_embd.weight", "position_embd.weight")
    return sum(t.n_weights * (1.0 if t.name in tables else t.active_share) for t in model.tensors)


@pytest.mark.parametrize("name", [n for n in MODELS if COUNTS[n]["cache_elements_per_token"]])
def test_cache_of_a_shape(name: str) -> None:
    """Layers that attend to everything cache the published number of elements per token."""
    kinds = ("full", "latent", "window") if name in CHUNKED else ("full", "latent")
    layers = [layer for layer in MODELS[name].layers if layer.attention in kinds]
    counted = sum(layer.key_width + layer.value_width for layer in layers)
    assert int(COUNTS[name]["cache_elements_per_token"]) == counted


# GGUF files of GLM-4 have the gate and the way up in one tensor, which shapes write as two
NAMED = [n for n, m in MODELS.items() if m.architecture in families.FAMILIES.keys() - {"glm4"}]


@pytest.mark.parametrize("name", NAMED)
def test_names_are_those_of_gguf(name: str) -> None:
    """The reader of GGUF gives every grown tensor of a family it knows the role that it was grown with."""
    model = MODELS[name]
    family = families.FAMILIES[model.architecture]
    assert {t.name: t.role for t in model.tensors} == {
        t.name: families.role_of(families.place_of(t.name), family) for t in model.tensors
    }


def layers_of(name: str, kind: str) -> list[Layer]:
    return [layer for layer in MODELS[name].layers if layer.attention == kind]


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("MiniMax-M1", "recurrent", 70), ("MiniMax-M1", "full", 10),
        ("Kimi-Linear-48B-A3B", "latent", 7), ("GLM-5.3-Flash", "recurrent", 34),
        ("Gemma-4-31B", "window", 50), ("Nemotron-3-Nano-30B-A3B", "none", 23),
        ("DeepSeek-V4-Flash", "compressed", 41), ("DeepSeek-V4-Flash", "window", 2),
        ("Llama-4-Scout-17B-16E", "full", 12),
    ],
)  # fmt: skip
def test_layers_are_of_the_published_kinds(name: str, kind: str, count: int) -> None:
    """Mixed models have as many layers of each kind as their makers say."""
    assert count == len(layers_of(name, kind))


def test_states_of_layers_without_a_cache() -> None:
    """Mamba-2 keeps what was published; lightning attention one matrix per head; a state is F32."""
    assert 4 * 12_482_560 == sum(layer.state_bytes for layer in MODELS["Nemotron-3-Nano-30B-A3B"].layers)
    assert 4 * 64 * 128 * 128 == layers_of("MiniMax-Text-01", "recurrent")[0].state_bytes


def test_layers_that_use_the_cache_of_another() -> None:
    """Every second layer of Hunyuan-Large keeps nothing, and reads as much as the others."""
    own, borrowing = MODELS["Hunyuan-Large"].layers[:2]
    assert (own.key_width + own.value_width, own.borrowed_width) == (1280, 0)
    assert (borrowing.kept_elements(1000), borrowing.read_elements(1000)) == (0, 1280_000)


@pytest.mark.parametrize("tokens", [1, 100, 128, 1000, 100_000])
def test_a_compressed_cache_by_hand(tokens: int) -> None:
    """DeepSeek-V4-Flash keeps 128 tokens, and an entry of 512 (and 128 of an index) for 4, or for 128."""
    fine, coarse = MODELS["DeepSeek-V4-Flash"].layers[2:4]
    recent = 512 * min(tokens, 128)
    assert recent + (512 + 128) * tokens / 4 == fine.kept_elements(tokens)
    assert recent + 512 * tokens / 128 == coarse.kept_elements(tokens)
    assert recent + 512 * min(tokens / 4, 512) + 128 * tokens / 4 == fine.read_elements(tokens)


@pytest.mark.parametrize("name", MODELS)
def test_a_longer_past_costs_more(name: str) -> None:
    """What layers keep and read grows with the tokens, and nothing is read that is not kept somewhere."""
    for layer in MODELS[name].layers:
        kept, read = zip(
            *((layer.kept_elements(n), layer.read_elements(n)) for n in (1, 500, 5_000)), strict=True
        )
        assert sorted(kept) == list(kept) and sorted(read) == list(read)
        assert layer.borrowed_width or all(r <= k for k, r in zip(kept, read, strict=True))


def test_an_indexer_is_shared() -> None:
    """21 of the 78 layers of GLM-5.2 own an indexer; all read 2048 tokens at the most."""
    model = MODELS["GLM-5.2"]
    assert sum("indexer.attn_q" in t.name for t in model.tensors) == 21
    assert {2048} == {layer.top_tokens for layer in model.layers}
    own = [layer for layer in model.layers if layer.index_width]
    assert len(own) == 21 and own[0].read_elements(100_000) == 2048 * 576 + 128 * 100_000
