"""The weights of a Hugging Face folder of safetensors, under the names of transformers' classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penjing.calibrate import packed
from penjing.calibrate.names import FAMILIES, HEAD, Layout, unknown
from penjing.catalogue.files import read_bounded
from penjing.errors import BadFile
from penjing.hf import headers
from penjing.quantize.tensors import runs

_CONFIG_LIMIT_BYTES = 4 * 2**20
_FP8_BLOCK = (128, 128)
# Families whose folders bring their own code, and the class that computes the same.
_SAME_AS = {"kimi_k2": "deepseek_v3"}
# How files call the parameters that classes call otherwise.
_RENAMED = ((".mlp.", ".block_sparse_moe."), (".mlp.gate.moe_statics.", ".mlp.moe_statics."))
# What an expert's matrices are called where each expert is stored by itself.
_EXPERTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
# What the converter makes two tensors of.
_SPLIT = ("attn_kv_b.weight", "ffn_gate_up_exps.weight")


class FolderWeights:
    """Parameters by name, float32, each read when it is asked for; `config` is what transformers makes of the folder.

    Raises:
        UsageError: a family that is not known here.
        BadFile: no weights or configuration, a damaged one, or weights packed in an unknown way.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config, packing = _configuration(folder)
        self._block = packing.get("weight_block_size") or _FP8_BLOCK
        files, entries = headers.read(folder)
        if not entries:
            raise self._bad("has no weights in safetensors files")
        self._file_of = {name: file for file in files for name in headers.read_header(file)}
        self._open: dict[Path, Any] = {}
        self.places = Layout(self.config, self._converted).places

    def has(self, name: str) -> bool:
        tied = name == HEAD and self.config.tie_word_embeddings
        return not tied and self._stored(name) is not None

    def load(self, name: str) -> torch.Tensor:
        stored = self._stored(name)
        if stored is None and ".experts." in name:
            return self._experts(name)
        return self._matrix(self._required(name))

    def rows(self, name: str, rows: np.ndarray) -> torch.Tensor:
        """Some rows, in ascending order, of a matrix that is stored as it is: the embedding or the head."""
        stored = self._required(name)
        part = self._file(stored).get_slice(stored)
        return self._checked(stored, torch.cat([part[start:stop].float() for start, stop in runs(rows)]))

    def _converted(self, tensor: str) -> bool:
        """The GGUF file that llama.cpp makes of this folder has the tensor, if it is one of this model."""
        return self.has(HEAD) if tensor == "output.weight" else not tensor.endswith(_SPLIT)

    def _stored(self, name: str) -> str | None:
        """What the files call a parameter; None if they do not have it."""
        names = [name, *(name.replace(ours, theirs) for ours, theirs in _RENAMED)]
        return next((n for n in names if n in self._file_of), None)

    def _required(self, name: str) -> str:
        stored = self._stored(name)
        if stored is None:
            raise self._bad(f"lacks the parameter `{name}`, or packs it in a way that is not known")
        return stored

    def _experts(self, name: str) -> torch.Tensor:
        """The experts of a layer as one parameter: of packed ones, or of matrices stored one by one."""
        blocks = self._stored(f"{name}_blocks")
        if blocks is not None:
            return self._packed_experts(blocks, self._required(f"{name}_scales"))
        prefix, _, part = name.rpartition(".")
        for names in _EXPERTS.get(part, ()):
            if self._stored(f"{prefix}.0.{names[0]}.weight") is not None:
                return self._stack(
                    [[f"{prefix}.{i}.{n}.weight" for n in names] for i in range(self._count())]
                )
        raise self._bad(f"lacks the experts `{name}`, or packs them in a way that is not known")

    def _count(self) -> int:
        count: int = getattr(self.config, "num_local_experts", None) or self.config.num_experts
        return count

    def _stack(self, names: list[list[str]]) -> torch.Tensor:
        """(experts, rows, columns); the rows of one expert's matrices follow each other."""
        stack = torch.empty(0)
        for i, parts in enumerate(names):
            one = torch.cat([self._matrix(self._required(part)) for part in parts])
            stack = stack if i else torch.empty(len(names), *one.shape)
            stack[i] = one
        return stack

    def _packed_experts(self, blocks: str, scales: str) -> torch.Tensor:
        """(experts, columns, rows) of MXFP4 blocks (experts, rows, groups, bytes)."""
        packs, exponents = self._file(blocks).get_slice(blocks), self._file(scales).get_slice(scales)
        count, rows, groups, n_bytes = packs.get_shape()
        stack = torch.empty(count, 2 * groups * n_bytes, rows)
        for i in range(count):
            stack[i] = packed.mxfp4(packs[i], exponents[i]).T
        return self._checked(blocks, stack)

    def _matrix(self, stored: str) -> torch.Tensor:
        weights = self._file(stored).get_tensor(stored)
        scales = f"{stored}_scale_inv"
        if scales in self._file_of:
            weights = packed.scaled_blocks(weights, self._file(scales).get_tensor(scales), self._block)
        elif not weights.dtype.is_floating_point:
            raise self._bad(f"packs `{stored}` in a way that is not known")
        return self._checked(stored, weights.float())

    def _checked(self, stored: str, weights: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(weights).all():
            raise self._bad(f"has NaN or infinity in the tensor `{stored}`")
        return weights

    def _file(self, stored: str) -> Any:
        from safetensors import safe_open

        path = self._file_of[stored]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path]

    def _bad(self, problem: str) -> BadFile:
        return BadFile(
            f"`{self._folder}` {problem}", "calibrate the repository that it was made from, or a GGUF of it"
        )


def _configuration(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The configuration of a folder and how its weights are packed; code that comes with it is never run."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = folder / "config.json"
    try:
        values = dict(json.loads(read_bounded(path, _CONFIG_LIMIT_BYTES)))
        given = str(values.pop("model_type", ""))
        family = _SAME_AS.get(given, given)
        if family not in FAMILIES:
            raise unknown(family)
        packing = values.pop("quantization_config", None) or {}
        return AutoConfig.for_model(family, **values), dict(packing)
    except (OSError, ValueError, TypeError, KeyError, RecursionError, StrictDataclassError) as error:
        raise BadFile(f"`{path}` is not the configuration of a language model: {error}") from error
