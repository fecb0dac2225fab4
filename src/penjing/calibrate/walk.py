"""Forward and back through a model with one layer in memory at a time.

The classes of transformers compute; their parameters live on torch's meta device, which takes no memory, until their
turn comes. Forward: every sequence passes a layer before the next layer is read, and what enters each layer is kept on
disk. Backward: the layers are read again from the last to the first, each computes once more from what entered it, and
hands the gradient down. That is three forward passes of arithmetic and two readings of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from penjing.calibrate.observe import Heard, Observer
from penjing.errors import BadFile

_HEAD_ROWS = 8192  # of the output matrix at a time: 130 MB for a width of 4096


class Weights(Protocol):
    """A source of parameters under the names that transformers gives them."""

    def load(self, name: str) -> torch.Tensor:
        """The whole parameter, float32."""
        ...

    def rows(self, name: str, rows: np.ndarray) -> torch.Tensor:
        """Some rows of a large matrix, float32."""
        ...

    def has(self, name: str) -> bool:
        """The source has this parameter."""
        ...


class _Recorder(nn.Module):
    """Stands in for a layer to learn with what arguments the model would call it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = [layer]  # hidden from the module's own bookkeeping
        self.called_with: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.called_with = kwargs
        return hidden


class Walk:
    """A model of transformers whose layers are filled from `weights` when they are needed."""

    def __init__(self, config: Any, weights: Weights, tokens: int) -> None:
        from transformers import AutoModelForCausalLM

        config.use_cache = False
        with torch.device("meta"):
            # one product per expert, not one for all of them: the observer tells them apart
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, experts_implementation="eager"
            )
        model.eval()
        self.config, self.weights = config, weights
        self._base = model.get_decoder() if hasattr(model, "get_decoder") else model.model
        self.layers: list[nn.Module] = list(self._base.layers)
        self.tied = not weights.has("lm_head.weight")
        self._arguments = self._learn_arguments(tokens)

    def _learn_arguments(self, tokens: int) -> list[dict[str, Any]]:
        """What each layer gets beside the hidden states: masks and rotations, equal for all sequences."""
        base = self._base
        for name, module in list(base.named_children()):
            if "rotary" in name:
                setattr(base, name, type(module)(self.config))
        recorders = [_Recorder(layer) for layer in self.layers]
        base.layers = nn.ModuleList(recorders)
        norm, base.norm = base.norm, nn.Identity()
        with torch.no_grad():
            base(inputs_embeds=torch.zeros(1, tokens, self.config.hidden_size), use_cache=False)
        base.layers, base.norm = nn.ModuleList(self.layers), norm
        return [recorder.called_with for recorder in recorders]

    # ---- one layer -------------------------------------------------------------------------------

    def parameters(self, index: int) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers of a layer, under their names within it."""
        lasting = self.layers[index].state_dict()
        return {name: self._load(f"model.layers.{index}.{name}", like) for name, like in lasting.items()}

    def _load(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A parameter in the shape its class wants, which may have a dimension of 1 more."""
        found = self.weights.load(name)
        if found.squeeze().shape != like.squeeze().shape:
            have, want = tuple(found.shape), tuple(like.shape)
            raise BadFile(f"`{name}` has the shape {have}, but the sizes of the model ask for {want}")
        return found.reshape(like.shape)

    def run(self, index: int, parameters: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """What leaves layer `index` for one sequence: (tokens, width) in and out."""
        out = torch.func.functional_call(
            self.layers[index], parameters, (hidden[None],), self._arguments[index]
        )
        return (out[0] if isinstance(out, tuple) else out)[0]

    def forward_layer(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """All sequences, (sequences, tokens, width), through one layer."""
        parameters = self.parameters(index)
        with torch.no_grad():
            return torch.stack([self.run(index, parameters, sequence) for sequence in hidden])

    def backward_layer(
        self, index: int, hidden: torch.Tensor, gradient: torch.Tensor, heard: Heard, tick: Callable[[], None]
    ) -> torch.Tensor:
        """The gradient at what entered the layer; `heard` gets the products on the way, sequence by sequence."""
        parameters = self.parameters(index)
        below = torch.empty_like(gradient)
        for s, sequence in enumerate(hidden):
            entered = sequence.clone().requires_grad_()
            with Observer(parameters, heard):
                left = self.run(index, parameters, entered)
            left.backward(gradient[s])
            assert entered.grad is not None
            below[s] = entered.grad
            tick()
        return below

    # ---- both ends -------------------------------------------------------------------------------

    def embed(self, tokens: np.ndarray) -> torch.Tensor:
        """(sequences, tokens, width) of token ids (sequences, tokens); only the rows needed are read."""
        unique, places = np.unique(tokens, return_inverse=True)
        rows = self.weights.rows("model.embed_tokens.weight", unique)
        return rows[torch.from_numpy(places.reshape(tokens.shape))]

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        norm = self._base.norm
        parameters = {
            name: self._load(f"model.norm.{name}", like) for name, like in norm.state_dict().items()
        }
        out: torch.Tensor = torch.func.functional_call(norm, parameters, (hidden,))
        return out

    def head(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The output matrix in pieces: (first row, rows)."""
        name = "model.embed_tokens.weight" if self.tied else "lm_head.weight"
        for start in range(0, self.config.vocab_size, _HEAD_ROWS):
            stop = min(start + _HEAD_ROWS, self.config.vocab_size)
            yield start, self.weights.rows(name, np.arange(start, stop))


def draw_labels(walk: Walk, normed: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from the model's own distribution, and the log-sum-exp of the logits: both (tokens,).

    Drawn by the Gumbel trick, piece of the vocabulary by piece, so that the logits never exist as a whole.
    """
    draw = torch.Generator().manual_seed(seed)
    best = torch.full((len(normed),), -torch.inf)
    labels = torch.zeros(len(normed), dtype=torch.int64)
    total = torch.full((len(normed),), -torch.inf, dtype=torch.float64)
    for start, rows in walk.head():
        logits = normed @ rows.T
        total = torch.logaddexp(total, logits.double().logsumexp(1))
        noise = -torch.log(-torch.log(torch.rand(logits.shape, generator=draw).clamp(1e-30, 1 - 1e-7)))
        found, where = (logits + noise).max(1)
        better = found > best
        best, labels = torch.where(better, found, best), torch.where(better, where + start, labels)
    return labels, total.float()


def save(path: Path, array: torch.Tensor) -> None:
    """Write an array so that `path` holds all of it or nothing."""
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, array.numpy())
    temporary.replace(path)


def load(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(path))
