"""A Hugging Face folder as a `Model`: its `config.json` and the headers of its weights, never the weights.

    config.json ──→ shapes.shape_of ──→ Shape ───────────┐
    *.safetensors → headers.read ─────→ Entry by name ───┴→ gather.tensors ──→ Model

The folder is treated as hostile: every count, size and offset is checked against the files before use.
With no weights beside it, the `config.json` of a known family is enough for the shapes.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from penjing.catalogue.grow import grow, layers_of
from penjing.catalogue.shape import Shape
from penjing.errors import BadFile
from penjing.hf import gather, headers
from penjing.hf.config import Config, folder_name, read_config
from penjing.hf.names import vision_or_sound
from penjing.hf.shapes import is_known, published_types, shape_of
from penjing.model import Layer, Model

_TEMPLATE_LIMIT_BYTES = 64 * 2**20


def read_folder(path: Path) -> Model:
    """The model in a Hugging Face folder: `config.json` and `*.safetensors`, with an index or without.

    Of a multimodal model only the part for text is read. The experts of a layer become one tensor, as
    in a GGUF file. A family that penjing has not been taught is read from its tensors alone, and
    `known_family` is False.

    Raises:
        BadFile: a file is missing, damaged, contradicts another, or holds weights packed in a way that
            does not show their shapes.
    """
    try:
        return _read(path)
    except OSError as error:
        raise BadFile(f"cannot read `{error.filename or path}`: {error.strerror}") from error


def _read(path: Path) -> Model:
    config = read_config(path)
    files, entries = headers.read(path)
    shape = shape_of(config, path) if is_known(config) else None
    if not files:
        return _from_config(path, config, shape)
    text = {name: entry for name, entry in entries.items() if not vision_or_sound(name)}
    tensors = gather.tensors(text, config, path)
    layers = gather.layers(tensors, config)
    return Model(
        name=folder_name(path),
        architecture=config.model_type,
        known_family=shape is not None,
        source=str(path),
        width=config.hidden_size,
        vocabulary=gather.vocabulary(tensors, config, path),
        context_tokens=config.max_position_embeddings,
        layers=_agreed(layers, layers_of(shape), path) if shape else layers,
        tensors=tensors,
        experts=gather.experts(tensors, config),
        experts_used=config.experts_used,
        files=tuple(str(file) for file in files),
        chat_template=_has_template(path),
    )


def _from_config(path: Path, config: Config, shape: Shape | None) -> Model:
    if shape is None:
        raise BadFile(
            f"`{path}` has no weights, and `{config.model_type}` is not a family whose shapes penjing knows",
            hint=f"put the *.safetensors files beside `{path / 'config.json'}`: only their headers are read",
        )
    model = grow(shape, published_types(config, path))
    return replace(model, source=f"{path} (config.json alone)", chat_template=_has_template(path))


def _agreed(seen: tuple[Layer, ...], told: tuple[Layer, ...], path: Path) -> tuple[Layer, ...]:
    """What the configuration tells of each layer, if it caches what its tensors produce."""
    if len(seen) != len(told):
        raise BadFile(f"`{path}`: config.json tells of {len(told)} layers, the tensors are of {len(seen)}")
    for i, (tensors, config) in enumerate(zip(seen, told, strict=True)):
        if (tensors.key_width, tensors.value_width) != (config.key_width, config.value_width):
            raise BadFile(
                f"`{path}`: in layer {i} config.json gives keys and values of {config.key_width} and "
                f"{config.value_width} elements, the tensors {tensors.key_width} and {tensors.value_width}",
                hint="the folder mixes files of different models: fetch it again",
            )
    return told


def _has_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    tokenizer = path / "tokenizer_config.json"
    if not tokenizer.is_file() or tokenizer.stat().st_size > _TEMPLATE_LIMIT_BYTES:
        return False
    return b'"chat_template"' in tokenizer.read_bytes()
