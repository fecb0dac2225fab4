"""The weights of a GGUF file under the names and in the layouts of transformers' classes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from penjing.calibrate.names import Layout, Place
from penjing.gguf.header import Header
from penjing.quantize.native import Native
from penjing.quantize.tensors import Tensors

# The matrix whose outputs a bias is added to, which tells its length.
_MATRIX_OF = (
    (re.compile(r"\.(?:gate\.)?(?:moe_statics\.)?e_score_correction_bias$"), ".gate.weight"),
    (re.compile(r"\.bias$"), ".weight"),
)


class GgufWeights:
    """Parameters by name, float32, read and put together when they are asked for."""

    def __init__(self, header: Header, config: Any, native: Native | None = None) -> None:
        self._tensors = Tensors(header, native or Native())
        self._layout = Layout(config, self._tensors.__contains__)
        self.places = self._layout.places

    def has(self, name: str) -> bool:
        found = self._layout.sources(name)
        return bool(found) and all(place.tensor in self._tensors for place in found)

    def rows(self, name: str, rows: np.ndarray) -> torch.Tensor:
        """Some rows, in ascending order, of a matrix that the file has as it is: the embedding or the head."""
        (place,) = self._layout.sources(name)
        return torch.from_numpy(self._tensors.rows(place.tensor, rows))

    def load(self, name: str) -> torch.Tensor:
        """The whole parameter; zeros for a bias that its class has and the file leaves out."""
        if name.endswith("bias") and not self.has(name):
            matrix = name
            for pattern, replacement in _MATRIX_OF:
                matrix = pattern.sub(replacement, matrix)
            return torch.zeros(self._shape(self._layout.sources(matrix))[0])
        return torch.from_numpy(self._experts(name) if ".experts." in name else self._plain(name))

    def _plain(self, name: str) -> np.ndarray:
        """A matrix (rows, columns), or a vector (rows,)."""
        places = self._layout.sources(name)
        if places[0].whole:
            return self._tensors.read(places[0].tensor)
        matrix = np.empty(self._shape(places), dtype=np.float32)
        self._fill(matrix, places)
        return matrix

    def _experts(self, name: str) -> np.ndarray:
        """(experts, rows, columns), or (experts, columns, rows) in a family that multiplies from the left."""
        places = self._layout.sources(name, 0)
        count, shape = self._tensors.shape(places[0].tensor)[0], self._shape(places)
        turned = self._layout.family.interleaved
        stack = np.empty((count, *(shape[::-1] if turned else shape)), dtype=np.float32)
        for expert in range(count):
            one = stack[expert].T if turned else stack[expert]
            self._fill(one, self._layout.sources(name, expert))
        return stack

    def _fill(self, target: np.ndarray, places: list[Place]) -> None:
        for place in places:
            part = self._tensors.read(place.tensor, place.expert)
            target[place.rows] = part.T if place.transposed else part

    def _shape(self, places: list[Place]) -> tuple[int, ...]:
        """(rows, columns) or (rows,) of what these places make up."""
        shapes = []
        for place in places:
            shape = self._tensors.shape(place.tensor)[0 if place.expert is None else 1 :]
            shapes.append(shape[::-1] if place.transposed else shape)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])
