"""What a model is, as far as memory, speed and quality depend on it: its tensors and its layers."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from msgspec import Struct

AttentionKind = Literal["full", "window", "latent", "compressed", "recurrent", "none"]

Role = Literal[
    "token_embedding", "output", "norm", "bias",
    "attention_q", "attention_k", "attention_v", "attention_qkv", "attention_output", "attention_gate",
    "latent_q_down", "latent_q_up", "latent_kv_down", "latent_kv_up", "latent_k_up", "latent_v_up",
    "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_up",
    "router", "expert_gate", "expert_up", "expert_down", "expert_gate_up",
    "shared_gate", "shared_up", "shared_down", "shared_router",
    "recurrent", "draft", "other",
]  # fmt: skip


class Tensor(Struct, frozen=True):
    """One weight tensor.

    Units:
        shape: in GGUF's order, the row length (input width) first: (in, out) or (in, out, experts).
        type: the name ggml gives it (`q4_K`, `f16`), or the safetensors dtype in lower case (`bf16`).
        n_bytes: as stored.
        active_share: share of the tensor that one token reads, in (0, 1]: experts used over experts
            for a routed expert, 1 otherwise. The token embedding, of which one row is read, is 1 / rows.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    type: str
    n_bytes: int
    layer: int | None = None
    active_share: float = 1.0

    @property
    def n_weights(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


class Layer(Struct, frozen=True):
    """How one layer mixes tokens, and so what it keeps of the past.

    Units:
        key_width, value_width: cached elements per token, over all KV heads; for latent attention
            (MLA) the latent and its rotary key as `key_width`, and 0.
        heads: query heads. window_tokens: what a `window` layer can see; None for the others.
        state_bytes: fixed memory per sequence of a `recurrent` layer (convolution and state, F32).
        borrowed_width: elements per token of another layer's cache that it reads, having none of its own.
        compression: tokens that share one entry of a `compressed` layer, which keeps its window beside them.
        index_width: elements per entry that an indexer keeps and reads, to choose `top_tokens` entries.
    """

    attention: AttentionKind
    heads: int = 0
    key_width: int = 0
    value_width: int = 0
    window_tokens: int | None = None
    state_bytes: int = 0
    borrowed_width: int = 0
    compression: int = 1
    index_width: int = 0
    top_tokens: int | None = None

    def kept_elements(self, tokens: int) -> float:
        """Elements of cache after so many tokens of one sequence; the state is not among them."""
        width = self.key_width + self.value_width
        recent = min(tokens, self.window_tokens or tokens)
        if self.attention == "compressed":
            return width * recent + (width + self.index_width) * tokens / self.compression
        return (width + self.index_width) * recent

    def read_elements(self, tokens: int) -> float:
        """Elements of cache that the next token reads after so many; where an indexer chooses, what it does."""
        width = self.key_width + self.value_width + self.borrowed_width
        recent = min(tokens, self.window_tokens or tokens)
        if self.attention == "compressed":
            entries = tokens / self.compression
            chosen = min(entries, self.top_tokens or entries)
            return width * (recent + chosen) + self.index_width * entries
        return width * min(recent, self.top_tokens or recent) + self.index_width * recent


class Model(Struct, frozen=True):
    """The weights and shapes of one model file, folder or catalogue entry.

    `known_family` is False when the shapes were read from the tensors alone, because the architecture
    is not one that penjing has been taught; `source` names the file, folder or catalogue entry.
    `embeds`: the file says how a text becomes one vector.
    """

    name: str
    architecture: str
    known_family: bool
    source: str
    width: int
    vocabulary: int
    context_tokens: int
    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]
    experts: int = 0
    experts_used: int = 0
    files: tuple[str, ...] = ()
    chat_template: bool = False
    embeds: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(t.n_bytes for t in self.tensors)

    @property
    def n_weights(self) -> int:
        return sum(t.n_weights for t in self.tensors)

    @property
    def tied(self) -> bool:
        """The token embedding doubles as the output matrix."""
        return not any(t.role == "output" for t in self.tensors)

    @property
    def can_go_back(self) -> bool:
        """Its cache can forget tokens that were guessed wrong; a recurrent state cannot."""
        return not any(layer.attention == "recurrent" for layer in self.layers)

    @property
    def tensor_types(self) -> dict[str, int]:
        """How many tensors are stored in each type, most frequent first."""
        return dict(Counter(t.type for t in self.tensors).most_common())

    @property
    def active_bytes(self) -> float:
        """Bytes of weights that one token reads: experts by their share, a tied embedding as output."""
        return sum(_active_bytes(t, self.tied) for t in self.tensors)

    @property
    def active_weights(self) -> float:
        """Weights that one token is multiplied with; the embedding row that is looked up counts as none."""
        return sum(
            t.n_weights * (1.0 if t.role == "token_embedding" else t.active_share)
            for t in self.tensors
            if t.role != "draft" and (t.role != "token_embedding" or self.tied)
        )


def _active_bytes(tensor: Tensor, tied: bool) -> float:
    if tensor.role == "draft":  # heads for drafting (MTP) are idle in plain decoding
        return 0.0
    if tensor.role == "token_embedding" and tied:
        return float(tensor.n_bytes)
    return tensor.n_bytes * tensor.active_share
