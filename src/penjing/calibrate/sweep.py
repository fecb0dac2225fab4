"""One sweep over a model: forward, labels, backward; what was heard becomes a sensitivity file.

Everything that was computed stands on disk before the next step begins, so that an interrupted sweep goes on where it
was: what enters each layer, the gradient that comes down, and the moments of each layer.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import torch

from penjing.calibrate.moments import Sums, stacked
from penjing.calibrate.names import EMBEDDING, HEAD, Place
from penjing.calibrate.observe import Use
from penjing.calibrate.walk import Walk, draw_labels
from penjing.progress import Bar
from penjing.quality.sensitivity import Moments

_EVEN_TOKENS = 0.5  # share of the token embedding's weight that ignores how often a token came


class Placed(Protocol):
    """Tells where the weights of a parameter lie in the GGUF file."""

    def places(self, name: str, expert: int | None = None) -> list[Place]: ...


_HEAD_TOKENS = 2048  # whose logits are computed at a time: 67 MB for a piece of the vocabulary
Key = tuple[str, int | None]
Arrays = Mapping[str, torch.Tensor | np.ndarray]


class Sweep:
    """Files of one sweep in `folder`; `title` names model, text and seed: files of another title are dropped."""

    def __init__(
        self, walk: Walk, placed: Placed, tokens: np.ndarray, seed: int, folder: Path, title: str
    ) -> None:
        self._walk, self._placed, self._tokens, self._seed = walk, placed, tokens, seed
        self._folder = folder
        about = folder / "about"
        if not about.exists() or about.read_text() != title:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            about.write_text(title)

    def drop(self) -> None:
        """Forget all that was kept for going on."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def steps(self) -> int:
        """What `tick` is called with in sum: sequences through layers, the way back counting double."""
        return len(self._tokens) * (3 * len(self._walk.layers) + 2)

    def run(self, bar: Bar) -> dict[str, Moments]:
        """All moments by the names of GGUF tensors."""
        n_layers, count = len(self._walk.layers), len(self._tokens)
        self._step("hidden-0", lambda: {"hidden": self._walk.embed(self._tokens)})
        for i in range(n_layers):
            self._step(f"hidden-{i + 1}", lambda i=i: {"hidden": self._forward(i)})  # type: ignore[misc]
            bar.advance(count)
        self._step(f"back-{n_layers}", self._head)
        bar.advance(2 * count)
        for i in reversed(range(n_layers)):
            self._step(f"back-{i}", lambda i=i: self._back(i))  # type: ignore[misc]
            for passed in (f"hidden-{i + 1}", f"gradient-{i + 1}"):
                self._path(passed).unlink(missing_ok=True)
            bar.advance(2 * count)
        return self._gathered()

    def _forward(self, index: int) -> torch.Tensor:
        return self._walk.forward_layer(index, self._get(f"hidden-{index}", "hidden"))

    def _back(self, index: int) -> Arrays:
        sums: dict[Key, Sums] = {}

        def heard(use: Use, gradient: torch.Tensor) -> None:
            name = f"model.layers.{index}.{use.name}"
            for place in self._placed.places(name, use.expert):
                _add(sums, place, use, gradient[:, place.rows])

        hidden, gradient = (
            self._get(f"hidden-{index}", "hidden"),
            self._get(f"gradient-{index + 1}", "gradient"),
        )
        below = self._walk.backward_layer(index, hidden, gradient, heard, lambda: None)
        self._save(f"gradient-{index}", {"gradient": below})
        return self._named(sums)

    def _named(self, sums: dict[Key, Sums]) -> dict[str, np.ndarray]:
        """Arrays under `tensor|expert|array`."""
        return {
            f"{tensor}|{'' if expert is None else expert}|{kind}": array
            for (tensor, expert), each in sums.items()
            for kind, array in each.arrays(self._tokens.size).items()
        }

    # ---- the head ----------------------------------------------------------------------------------

    def _head(self) -> Arrays:
        """Labels, the gradient at the last layer's output, and the moments of the output matrix."""
        walk = self._walk
        hidden = self._get(f"hidden-{len(walk.layers)}", "hidden").requires_grad_()
        normed = walk.final_norm(hidden)
        flat = normed.detach().flatten(0, 1)
        parts = [self._head_part(part, n) for n, part in enumerate(flat.split(_HEAD_TOKENS))]
        gradient, weights = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        normed.backward(gradient.reshape(normed.shape))
        assert hidden.grad is not None
        sums = Sums(flat.shape[1], 1, directions=True)
        sums.add(flat, weights.sqrt()[:, None], gradient)
        outputs = torch.stack([part[2] for part in parts]).sum(0) / len(flat)
        arrays = sums.arrays(len(flat)) | {"outputs": outputs.numpy()}
        (place,) = self._placed.places(HEAD)
        self._save(f"gradient-{len(walk.layers)}", {"gradient": hidden.grad})
        return {f"{place.tensor}||{kind}": a for kind, a in arrays.items()}

    def _head_part(self, part: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of some tokens (tokens, width): gradient below the head, |gradient|² at it, and Σ g²·|x|² of its rows."""
        labels, total = draw_labels(self._walk, part, self._seed + number)
        gradient, weights, rows_sums = torch.zeros_like(part), torch.zeros(len(part)), []
        sizes = (part * part).sum(1)
        for start, rows in self._walk.head():
            g = torch.exp(part @ rows.T - total[:, None])
            here = (labels >= start) & (labels < start + len(rows))
            g[here, labels[here] - start] -= 1
            gradient += g @ rows
            g *= g
            weights += g.sum(1)
            rows_sums.append(sizes @ g)
        return gradient, weights, torch.cat(rows_sums)

    def _embedding(self) -> Moments:
        """The embedding's rows are tokens, its columns the channels of the gradient that comes down to them."""
        gradient = self._get("gradient-0", "gradient").flatten(0, 1)
        counts = np.bincount(self._tokens.ravel(), minlength=self._walk.config.vocab_size).astype(np.float32)
        shares = (1 - _EVEN_TOKENS) * counts / counts.sum() + _EVEN_TOKENS / len(counts)
        columns = (gradient.double() ** 2).mean(0).float().numpy()
        return Moments(columns, shares.astype(np.float32), np.array(self._tokens.size))

    # ---- files -------------------------------------------------------------------------------------

    def _step(self, name: str, make: Callable[[], Arrays]) -> None:
        """Make a file unless it, or what comes after it, is there."""
        passed = name.startswith("hidden") and self._passed(int(name.split("-")[1]))
        if not passed and not self._path(name).exists():
            self._save(name, make())

    def _save(self, name: str, arrays: Arrays) -> None:
        path = self._path(name)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **{k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in arrays.items()})  # type: ignore[arg-type]
        temporary.replace(path)

    def _passed(self, layer: int) -> bool:
        """The way back has already left what enters this layer behind."""
        return layer > 0 and self._path(f"back-{layer - 1}").exists()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npz"

    def _get(self, name: str, array: str) -> torch.Tensor:
        with np.load(self._path(name)) as file:
            return torch.from_numpy(file[array])

    def _gathered(self) -> dict[str, Moments]:
        arrays: dict[str, dict[int | None, dict[str, np.ndarray]]] = {}
        for i in range(len(self._walk.layers) + 1):
            with np.load(self._path(f"back-{i}")) as file:
                for key in file.files:
                    tensor, expert, kind = key.split("|")
                    one = arrays.setdefault(tensor, {}).setdefault(int(expert) if expert else None, {})
                    one[kind] = file[key]
        found = {tensor: _moments(experts, self._count(tensor)) for tensor, experts in arrays.items()}
        embedding = self._embedding()
        (place,) = self._placed.places(EMBEDDING)
        tied = found.get(place.tensor)
        found[place.tensor] = embedding if tied is None else _sum(tied, embedding)
        return found

    def _count(self, tensor: str) -> int:
        """Experts in a stack, seen or not."""
        config = self._walk.config
        count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 0
        return count if "_exps." in tensor else 0


def _add(sums: dict[Key, Sums], place: Place, use: Use, gradient: torch.Tensor) -> None:
    """A transposed tensor has the parameter's outputs as its columns: the two change roles."""
    x, g = (gradient, use.inputs) if place.transposed else (use.inputs, gradient)
    key = place.tensor, place.expert
    if key not in sums:
        sums[key] = Sums(x.shape[1], g.shape[1], directions=place.expert is None)
    sums[key].add(x, g, None if place.transposed else gradient @ use.weight[place.rows])


def _moments(experts: dict[int | None, dict[str, np.ndarray]], count: int) -> Moments:
    if None in experts:
        return Moments(**experts[None])
    some = next(iter(experts.values()))
    unseen = {k: np.zeros_like(v) for k, v in some.items()}
    return stacked([experts.get(i, unseen) for i in range(max(count, len(experts)))])


def _sum(output: Moments, lookup: Moments) -> Moments:
    """Of a matrix in both jobs: the product of sums that has the same totals over rows and over columns."""
    rows = output.outputs * output.inputs.sum() + lookup.outputs * lookup.inputs.sum()
    columns = output.inputs * output.outputs.sum() + lookup.inputs * lookup.outputs.sum()
    return Moments(columns / columns.sum(), rows, output.tokens)


def title_of(**facts: object) -> str:
    """A name for everything that a sweep depends on."""
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()
