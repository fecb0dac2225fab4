"""The number formats that a tensor can be stored in, as the pinned llama.cpp knows them (ggml.h, ggml.c)."""

from __future__ import annotations

from msgspec import Struct

from penjing.errors import UsageError


class TensorType(Struct, frozen=True):
    """One format: `block_weights` neighbours of a row share `block_bytes` bytes."""

    id: int
    name: str
    block_weights: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_weights


_TABLE = (
    (0, "f32", 1, 4),
    (1, "f16", 1, 2),
    (2, "q4_0", 32, 18),
    (3, "q4_1", 32, 20),
    (6, "q5_0", 32, 22),
    (7, "q5_1", 32, 24),
    (8, "q8_0", 32, 34),
    (9, "q8_1", 32, 36),
    (10, "q2_K", 256, 84),
    (11, "q3_K", 256, 110),
    (12, "q4_K", 256, 144),
    (13, "q5_K", 256, 176),
    (14, "q6_K", 256, 210),
    (15, "q8_K", 256, 292),
    (16, "iq2_xxs", 256, 66),
    (17, "iq2_xs", 256, 74),
    (18, "iq3_xxs", 256, 98),
    (19, "iq1_s", 256, 50),
    (20, "iq4_nl", 32, 18),
    (21, "iq3_s", 256, 110),
    (22, "iq2_s", 256, 82),
    (23, "iq4_xs", 256, 136),
    (24, "i8", 1, 1),
    (25, "i16", 1, 2),
    (26, "i32", 1, 4),
    (27, "i64", 1, 8),
    (28, "f64", 1, 8),
    (29, "iq1_m", 256, 56),
    (30, "bf16", 1, 2),
    (34, "tq1_0", 256, 54),
    (35, "tq2_0", 256, 66),
    (39, "mxfp4", 32, 17),
    (40, "nvfp4", 64, 36),
    (41, "q1_0", 128, 18),
    (42, "q2_0", 64, 18),
)

TYPES = {row[0]: TensorType(*row) for row in _TABLE}
BY_NAME = {t.name: t for t in TYPES.values()}

# Once written by llama.cpp, refused by it since: the layouts are now made when the model is loaded.
REMOVED = {
    4: "q4_2", 5: "q4_3",
    31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8",
    36: "iq4_nl_4_4", 37: "iq4_nl_4_8", 38: "iq4_nl_8_8",
}  # fmt: skip


def type_bytes(name: str, n_weights: int, row_length: int) -> int:
    """Bytes of `n_weights` weights, in rows of `row_length`, stored as type `name`.

    Raises:
        UsageError: no such type, or the rows are not whole blocks of it.
    """
    if name not in BY_NAME:
        raise UsageError(f"`{name}` is no tensor type", hint=f"one of: {' '.join(BY_NAME)}")
    kind = BY_NAME[name]
    if row_length < 1 or row_length % kind.block_weights:
        raise UsageError(
            f"a row of {row_length} weights is not whole blocks of {name}, which hold {kind.block_weights}",
            hint="take a type with smaller blocks, such as `q8_0` (32) or `f16` (1)",
        )
    if n_weights < 0 or n_weights % row_length:
        raise UsageError(f"{n_weights} weights are not whole rows of {row_length}")
    return n_weights // kind.block_weights * kind.block_bytes
