"""Hugging Face folders for tests: real names and shapes, weights that are only holes on the disk.

`data/hf_folders.json` holds the configuration and the tensor table of a tiny model of each family, as
transformers 5.23 wrote them (`save_pretrained` of a random model with 4 to 7 layers of width 48).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

BITS = {"BF16": 16, "F16": 16, "F32": 32, "F8_E4M3": 8, "U8": 8, "I32": 32, "F4": 4}
FAMILIES: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "hf_folders.json").read_text())

Table = dict[str, list[Any]]  # name: [dtype, *shape]


def header(tensors: Table) -> dict[str, Any]:
    """The header that holds `tensors` back to back."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, *shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return entries


def data_bytes(tensors: Table) -> int:
    return sum(math.prod(shape) * BITS[dtype] // 8 for dtype, *shape in tensors.values())


def write_file(path: Path, entries: dict[str, Any] | bytes, n_bytes: int) -> Path:
    """A safetensors file with that header and `n_bytes` of data."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + n_bytes)
    return path


def write_folder(folder: Path, config: dict[str, Any], tensors: Table | None, shards: int = 0) -> Path:
    """A folder with its configuration, and its weights in one file, or in `shards` with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tensors is None:
        return folder
    if not shards:
        write_file(folder / "model.safetensors", header(tensors), data_bytes(tensors))
        return folder
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        weight_map |= dict.fromkeys(part, name)
        write_file(folder / name, header(part), data_bytes(part))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def family(name: str, folder: Path, shards: int = 0, **changes: Any) -> Path:
    """The folder of a family's tiny model, its configuration changed by `changes`."""
    return write_folder(folder, FAMILIES[name]["config"] | changes, FAMILIES[name]["tensors"], shards)
