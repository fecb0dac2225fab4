"""Sees every product of an activation with a weight, whatever class of layer it happens in.

Layers of different families call their weights in different ways: modules, slices of a stack of experts, transposed
matrices. All of them end in a few functions of torch, so those are watched: a weight is known by its storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from msgspec import Struct
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_LINEAR = (functional.linear,)
_MATMUL = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm)


class Use(Struct, frozen=True):
    """One product: of parameter `name` (of its `expert`, None for a plain matrix).

    Units:
        inputs: (tokens, columns). weight: (rows, columns), however it is stored.
    """

    name: str
    expert: int | None
    inputs: torch.Tensor
    weight: torch.Tensor


Heard = Callable[[Use, torch.Tensor], None]


class Observer(TorchFunctionMode):
    """While active, calls `heard(use, gradient)` when the gradient at a product's output, (tokens, rows), is known.

    A parameter with three dimensions is a stack of experts; those named in `as_stored` are (columns, rows).
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], heard: Heard) -> None:
        super().__init__()
        self._known = {
            t.untyped_storage().data_ptr(): (name, t) for name, t in parameters.items() if t.dim() > 1
        }
        self._heard = heard

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _LINEAR or func in _MATMUL:
            weight = args[1] if len(args) > 1 else (kwargs or {}).get("weight")
            self._watch(args[0], weight if func in _LINEAR else _turned(weight), out)
        return out

    def _watch(self, inputs: Any, weight: Any, out: torch.Tensor) -> None:
        if not isinstance(weight, torch.Tensor) or not out.requires_grad:
            return
        known = self._known.get(weight.untyped_storage().data_ptr())
        if known is None:
            return
        name, whole = known
        expert = None
        if whole.dim() == 3:
            expert = (weight.storage_offset() - whole.storage_offset()) // (whole.shape[1] * whole.shape[2])
        use = Use(name, expert, inputs.detach().flatten(0, -2), weight.detach())
        out.register_hook(lambda gradient: self._heard(use, gradient.detach().flatten(0, -2)))


def _turned(weight: Any) -> Any:
    """A matrix that is multiplied from the right, as the linear layer would have it."""
    return weight.mT if isinstance(weight, torch.Tensor) and weight.dim() == 2 else weight
