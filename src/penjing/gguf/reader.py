"""From a checked header to a `Model`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from penjing.errors import BadFile
from penjing.gguf.checks import check_experts, check_heads, check_shapes
from penjing.gguf.cursor import fetch_again, printable
from penjing.gguf.families import FAMILIES, LOOKED_UP, Family, Place, place_of, role_of
from penjing.gguf.header import Header, TensorInfo
from penjing.gguf.keys import Keys
from penjing.gguf.parts import model_stem, read_header
from penjing.gguf.shapes import Stems, draft_layers, layers_of
from penjing.gguf.values import ArrayOf
from penjing.model import Model, Tensor

_POOLED = (1, 2, 3)  # mean, first, last; 0 is none, and 4 ranks
_ARCHITECTURE = re.compile(r"[\w.-]{1,64}")


def read_model(path: Path) -> Model:
    """The model in a GGUF file, or in all parts of a split one.

    Layers that only draft (MTP) are at the end, of kind `none`, and their tensors have the role `draft`.

    Raises:
        BadFile: what `read_header` refuses, and what is no language model or would abort the engine.
    """
    return model_of(read_header(path), model_stem(path))


def model_of(header: Header, stem: str) -> Model:
    """The model that a header describes; `stem` names it if it has no name of its own."""
    architecture = _architecture(header)
    family = FAMILIES.get(architecture)
    keys = Keys(header, architecture)
    width, context = keys.number("embedding_length"), keys.number("context_length")
    places = [place_of(t.name) for t in header.tensors]
    _check_layers(keys, header, places)
    experts, used = check_experts(keys, family)
    layers = layers_of(keys, family, _stems(keys, header, places))
    check_heads(keys, header, family)
    vocabulary = _vocabulary(keys, header)
    check_shapes(keys, family, layers, header.tensors, places, vocabulary)
    return Model(
        name=_name(header, stem),
        architecture=architecture,
        known_family=family is not None,
        source=header.files[0],
        width=width,
        vocabulary=vocabulary,
        context_tokens=context,
        layers=layers,
        tensors=_tensors(keys, family or Family(), header.tensors, places, used),
        experts=experts,
        experts_used=max(used),
        files=header.files,
        chat_template="tokenizer.chat_template" in header.metadata,
        embeds=keys.number("pooling_type", 0) in _POOLED,
    )


def _architecture(header: Header) -> str:
    file, kind = header.files[0], header.metadata.get("general.type", "model")
    architecture = header.metadata.get("general.architecture")
    if kind != "model" or architecture == "clip":
        projector = kind == "mmproj" or architecture == "clip"
        what = "an image projector" if projector else f"of type `{printable(str(kind))}`"
        raise BadFile(f"`{file}` is {what}, not a language model", "name the model file that it belongs to")
    if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture):
        raise BadFile(f"`{file}` does not say its architecture (`general.architecture`)", fetch_again(file))
    return architecture


def _name(header: Header, stem: str) -> str:
    name = header.metadata.get("general.name")
    return printable(name.strip() if isinstance(name, str) and name.strip() else stem, 200)


def _check_layers(keys: Keys, header: Header, places: Sequence[Place]) -> None:
    if not header.tensors:
        raise keys.bad("holds no tensors: it is a vocabulary alone")
    for tensor, place in zip(header.tensors, places, strict=True):
        if place.layer is not None and place.layer >= keys.n_layers:
            raise keys.bad(f"has the tensor `{tensor.name}`, but only {keys.n_layers} layers")


def _stems(keys: Keys, header: Header, places: Sequence[Place]) -> list[Stems]:
    stems: list[dict[str, tuple[int, ...]]] = [{} for _ in range(keys.n_layers)]
    for tensor, place in zip(header.tensors, places, strict=True):
        if place.layer is not None and not place.is_bias:
            stems[place.layer][place.stem] = tensor.shape
    return list(stems)


def _vocabulary(keys: Keys, header: Header) -> int:
    """Rows of the token embedding; the tokenizer's list must be as long."""
    shape = next((t.shape for t in header.tensors if t.name == "token_embd.weight"), ())
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    listed = tokens.count if isinstance(tokens, ArrayOf) else len(tokens) if isinstance(tokens, tuple) else 0
    rows = shape[1] if len(shape) == 2 else 0
    if rows and listed and rows != listed:
        raise keys.bad(f"embeds {rows} tokens, but its tokenizer lists {listed}")
    return rows or listed or keys.number("vocab_size")


def _tensors(
    keys: Keys, family: Family, infos: Sequence[TensorInfo], places: Sequence[Place], used: tuple[int, ...]
) -> tuple[Tensor, ...]:
    n_trunk = keys.n_layers - draft_layers(keys)
    experts = keys.number("expert_count", 0)
    tensors = []
    for info, place in zip(infos, places, strict=True):
        drafts = place.layer is not None and place.layer >= n_trunk
        role = "draft" if drafts else role_of(place, family)
        share = 1.0
        if place.stem in LOOKED_UP and len(info.shape) == 2:
            share = 1 / info.shape[1]
        elif place.stem.endswith("_exps") and place.layer is not None and experts and used[place.layer]:
            share = used[place.layer] / experts
        tensors.append(Tensor(info.name, role, info.shape, info.type, info.n_bytes, place.layer, share))
    return tuple(tensors)
