"""The calibrator computes every family as the engine does, and its gradients are those of the whole model.

For each family a tiny GGUF file with random weights is run by the engine, and by transformers' layers with weights
streamed from the file. The same model is then saved as a Hugging Face folder and walked from there, forward and back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import calibrate_models
from calibrate_models import MODELS, REFUSED, V2_GROUPS, opened, ordinary
from engine_logits import engine_logits
from gguf_families import FAMILIES, VOCABULARY
from penjing.calibrate import names
from penjing.calibrate.folder_weights import FolderWeights
from penjing.calibrate.gguf_weights import GgufWeights
from penjing.calibrate.observe import Observer, Use
from penjing.calibrate.walk import Walk, Weights
from penjing.errors import UsageError
from penjing.gguf.parts import read_header

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 24))
# Both compute in F32; the largest difference seen is 4e-6 of the logits' deviation.
LOGITS_AGREE, GRADIENTS_AGREE = 1e-5, 1e-5
Pieces = dict[tuple[str, int | None], list[tuple[torch.Tensor, torch.Tensor]]]


class Case(NamedTuple):
    """A tiny model: its file, and the engine's logits of the first sequence."""

    path: Path
    logits: np.ndarray


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on matrices this small take ten times as long beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("families")
    paths = [calibrate_models.write(folder / f"{name}.gguf", model) for name, model in MODELS.items()]
    logits = engine_logits(paths, TOKENS[0].tolist())
    return {name: Case(*case) for name, *case in zip(MODELS, paths, logits, strict=True)}


def walked_logits(config: Any, weights: Weights) -> np.ndarray:
    walk = Walk(config, weights, TOKENS.shape[1])
    hidden = walk.embed(TOKENS[:1])
    for i in range(len(walk.layers)):
        hidden = walk.forward_layer(i, hidden)
    normed = walk.final_norm(hidden)[0]
    return torch.cat([normed @ rows.T for _, rows in walk.head()], dim=1).numpy()


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, as a share of the standard deviation of the logits."""
    return float(np.abs(ours - theirs).max() / theirs.std())


def test_no_family_is_left_out():
    """Every architecture that the calibrator knows is run, and so is every tiny file of one, or refused."""
    known = {family.architecture for family in names.FAMILIES.values()}

    assert known == {model.architecture for model in MODELS.values()}
    assert set() == {name for name, tiny in FAMILIES.items() if tiny.architecture in known} - MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_engine(cases: dict[str, Case], name: str):
    """Layers of transformers, filled from the file, compute what the engine computes."""
    ours = walked_logits(*opened(cases[name].path))

    assert difference(ours, cases[name].logits) < LOGITS_AGREE


class Shuffled(GgufWeights):
    """Weights with two rows of one head exchanged."""

    def load(self, name: str) -> torch.Tensor:
        loaded = super().load(name)
        return (
            loaded[[1, 0, *range(2, len(loaded))]]
            if name == "model.layers.0.self_attn.k_proj.weight"
            else loaded
        )


def test_a_shuffled_head_shows(cases: dict[str, Case]):
    """Two rows of one key head in the wrong order are far outside the bound."""
    config, _ = opened(cases["llama"].path)
    weights = Shuffled(read_header(cases["llama"].path), config)

    assert difference(walked_logits(config, weights), cases["llama"].logits) > 1000 * LOGITS_AGREE


def test_v2_ranks_groups_of_experts_otherwise(tmp_path: Path):
    """With groups, V2 and the engine choose some experts differently; every other token still agrees."""
    path = calibrate_models.write(tmp_path / "groups.gguf", V2_GROUPS)
    (theirs,) = engine_logits([path], TOKENS[0].tolist())
    ours = walked_logits(*opened(path))

    agreeing = [difference(mine, other) < 10 * LOGITS_AGREE for mine, other in zip(ours, theirs, strict=True)]

    assert sum(agreeing) >= 20


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_cannot_compute_is_refused(tmp_path: Path, name: str):
    """A file that no class can express is refused in words, not computed wrongly."""
    path = calibrate_models.write(tmp_path / "odd.gguf", FAMILIES[name])

    with pytest.raises(UsageError, match=REFUSED[name]):
        opened(path)


@pytest.mark.parametrize("name", ["qwen3next", "gemma3", "kimi-linear"])
def test_unknown_families_are_refused(tmp_path: Path, name: str):
    """A family that the calibrator was not taught is refused, with a way out."""
    path = calibrate_models.write(tmp_path / "other.gguf", FAMILIES[name])

    with pytest.raises(
        UsageError, match=f"does not know the family `{name}`; it knows deepseek2, "
    ) as caught:
        opened(path)

    assert "uses the prior that ships" in caught.value.hint


# ---- the same model as a folder ------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_folder_and_file_agree(cases: dict[str, Case], name: str, tmp_path: Path):
    """Every parameter, and the tensor that it lies in, is the same from the folder and from the file."""
    config, ours = opened(cases[name].path)
    model = ordinary(config, ours)
    model.save_pretrained(tmp_path)
    theirs = FolderWeights(tmp_path)

    assert ours.has(names.HEAD) == theirs.has(names.HEAD)
    for parameter in model.state_dict():
        if parameter != names.HEAD or theirs.has(names.HEAD):
            assert torch.equal(ours.load(parameter), theirs.load(parameter).squeeze(0)), parameter
        if name not in ("deepseek2-legacy", "deepseek2-fused"):  # which today's converter does not write
            assert shown(ours.places(parameter, 1)) == shown(theirs.places(parameter, 1)), parameter


def shown(places: list[names.Place]) -> list[tuple[Any, ...]]:
    return [(p.tensor, p.expert, p.transposed, np.arange(999)[p.rows].tolist()) for p in places]


@pytest.mark.parametrize("name", MODELS)
def test_every_quantized_weight_has_one_place(cases: dict[str, Case], name: str):
    """The places of all parameters cover each tensor that quantizers touch, row by row, once."""
    config, weights = opened(cases[name].path)
    covered: dict[str, int] = defaultdict(int)
    for parameter, like in ordinary(config, weights).state_dict().items():
        if parameter != names.HEAD or weights.has(names.HEAD):
            for expert in range(len(like)) if like.dim() == 3 else [None]:
                rows, columns = oriented(like, turned=name == "gpt-oss")
                for place in weights.places(parameter, expert):
                    covered[place.tensor] += len(np.arange(rows)[place.rows]) * columns

    trunk = f"blk.{config.num_hidden_layers}."  # what comes after it only drafts
    assert dict(covered) == {
        tensor: int(np.prod(shape))
        for tensor, shape in MODELS[name].tensors.items()
        if len(shape) > 1
        and not tensor.startswith(trunk)
        and not tensor.endswith(("bias", "gate_inp.weight"))
    }


def oriented(like: torch.Tensor, *, turned: bool) -> tuple[int, int]:
    """Output rows and input columns of a parameter, or of each of its experts; 0 of what is no matrix."""
    if like.dim() < 2:
        return 0, 0
    rows, columns = like.shape[-2:]
    return (columns, rows) if turned and like.dim() == 3 else (rows, columns)


@pytest.mark.parametrize("name", MODELS)
def test_streamed_gradients_are_those_of_the_whole_model(cases: dict[str, Case], name: str, tmp_path: Path):
    """Layer by layer from a folder: the gradient below, and each product heard, as one pass of autograd has them."""
    model = ordinary(*opened(cases[name].path))
    model.save_pretrained(tmp_path)
    weights = FolderWeights(tmp_path)
    walk = Walk(weights.config, weights, TOKENS.shape[1])
    states = [walk.embed(TOKENS)]
    for i in range(len(walk.layers)):
        states.append(walk.forward_layer(i, states[-1]))
    gradient = torch.randn(states[-1].shape, generator=torch.Generator().manual_seed(3))

    heard: Pieces = defaultdict(list)
    below = gradient
    for i in reversed(range(len(walk.layers))):
        below = walk.backward_layer(i, states[i], below, listener(heard, f"model.layers.{i}."), lambda: None)
    whole, at_embedding, of_weights = autograd(model, states[0], gradient)

    assert close(below, at_embedding)
    assert heard.keys() == whole.keys()
    for key, pieces in heard.items():
        for (x, g), (their_x, their_g) in zip(pieces, whole[key], strict=True):
            assert close(x, their_x), key
            assert close(g, their_g), key
    for key, products in of_weights.items():
        assert close(sum_of_products(heard, key, products, turned=name == "gpt-oss"), products), key


def listener(pieces: Pieces, prefix: str) -> Any:
    def heard(use: Use, gradient: torch.Tensor) -> None:
        pieces[prefix + use.name, use.expert].append((use.inputs, gradient))

    return heard


def autograd(
    model: Any, embedded: torch.Tensor, gradient: torch.Tensor
) -> tuple[Pieces, torch.Tensor, dict[str, Any]]:
    """One ordinary pass per sequence: products heard, the gradient at the embedding, those of the weights."""
    pieces: Pieces = defaultdict(list)
    last: list[torch.Tensor] = []
    layers = dict(model.named_parameters())
    layers = {name: weight for name, weight in layers.items() if ".layers." in name and weight.dim() > 1}
    layers = {name: weight for name, weight in layers.items() if not name.endswith("bias")}
    model.model.layers[-1].register_forward_hook(lambda _module, _inputs, out: last.append(out))
    entered = embedded.clone().requires_grad_()
    for s in range(len(embedded)):
        with Observer(layers, listener(pieces, "")):
            model.model(inputs_embeds=entered[s : s + 1], use_cache=False)
        last.pop()[0].backward(gradient[s])
    assert entered.grad is not None
    return pieces, entered.grad, {name: weight.grad for name, weight in layers.items()}


def sum_of_products(pieces: Pieces, name: str, like: torch.Tensor, *, turned: bool) -> torch.Tensor:
    """The gradient of a weight from what was heard of it: outputs' gradients times inputs, over all tokens."""
    total = torch.zeros_like(like)
    for (heard, expert), uses in pieces.items():
        if heard == name:
            for x, g in uses:
                product = x.T @ g if turned and expert is not None else g.T @ x
                total[slice(None) if expert is None else expert] += product
    return total


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """The norm of the difference is a small share of the norm."""
    return bool((ours - theirs).norm() <= GRADIENTS_AGREE * theirs.norm())
