"""The formats that each tensor may have, and the assignments that are worth building."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from penjing.formats import BY_NAME, type_bytes
from penjing.model import Model, Tensor
from penjing.quality import stock
from penjing.quality.allocate import Allocation, Choice, Item, price

# All that the engine runs and its quantizers make of ordinary weights. The ternary and binary types (tq1_0, tq2_0,
# q1_0, q2_0) are for models that were trained in them; q8_1 and q8_K are for activations.
KINDS = (
    "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "q2_K", "iq3_xxs", "iq3_s", "q3_K", "iq4_xs", "mxfp4", "nvfp4",
    "iq4_nl", "q4_0", "q4_K", "q4_1", "q5_0", "q5_K", "q5_1", "q6_K", "q8_0", "bf16",
)  # fmt: skip
SLOW_BITS = 4.0  # formats below take long to unpack, and pay only where memory is short
_PLAIN = frozenset({"f32", "f16", "bf16"})


def kinds_for(tensor: Tensor, least_bits: float = 0.0) -> list[str]:
    """The types in whose blocks the rows of `tensor` go up whole, from `least_bits` per weight to what it has now.

    Among them BF16 for F16: no smaller, but some processors multiply in it and in F16 do not.
    """
    now = BY_NAME[tensor.type].bits_per_weight
    return [
        kind
        for kind in KINDS
        if tensor.shape[0] % BY_NAME[kind].block_weights == 0
        and least_bits <= BY_NAME[kind].bits_per_weight
        and (BY_NAME[kind].bits_per_weight < now or (kind, tensor.type) == ("bf16", "f16"))
    ]


def item(tensor: Tensor, klds: dict[str, float]) -> Item:
    """A tensor with its formats; to keep it as it is costs nothing but its bytes."""
    choices = [Choice(kind, _bytes(tensor, kind), kld) for kind, kld in klds.items()]
    return Item(
        (tensor.name,), tensor.role, tensor.layer, (*choices, Choice(tensor.type, tensor.n_bytes, 0.0))
    )


def retyped(model: Model, types: Mapping[str, str]) -> Model:
    """`model` with the tensors named in `types` stored in those types."""
    tensors = (
        replace(t, type=types[t.name], n_bytes=_bytes(t, types[t.name])) if t.name in types else t
        for t in model.tensors
    )
    return replace(model, tensors=tuple(tensors))


def ready_made(model: Model) -> dict[str, dict[str, str]]:
    """Assignments that anybody can have: llama.cpp's mixes, and every type by itself."""
    mixes = {name: stock.mix(model, name, importance=True) for name in stock.MIXES}
    return mixes | {kind: stock.uniform(model, kind) for kind in KINDS}


def priced(full: Sequence[Item], assignments: dict[str, dict[str, str]]) -> dict[str, Allocation]:
    """The assignments that the items allow, with their sums; those with a type that an item lacks are left out."""
    found = {}
    for name, types in assignments.items():
        try:
            found[name] = price(full, types)
        except KeyError:
            continue
    return found


def needs_warning(model: Model) -> bool:
    """Most of the weights are quantized already: what is lost now comes on top of what was lost then."""
    return sum(t.n_weights for t in _matrices(model) if t.type not in _PLAIN) > model.n_weights / 2


def _matrices(model: Model) -> Iterable[Tensor]:
    return (t for t in model.tensors if stock.is_quantized(t))


def _bytes(tensor: Tensor, kind: str) -> int:
    return type_bytes(kind, tensor.n_weights, tensor.shape[0])
