"""The codes inside a quantized row: taken out, chosen anew, put back, with the scales left as they are.

Every format stores a weight as `scale · level + offset`, where scale and offset belong to a group of 16 to 256
neighbours and the level to a code of 2 to 8 bits. How the bits of the codes lie in a block is described here as
planes (read in ggml-common.h and the dequantizers of ggml-quants.c, llama.cpp 0.6.0-dev); scales and offsets are
not parsed at all: the engine's own dequantizer tells them, from the values that two known codes give.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from penjing.formats import BY_NAME

Bytes = np.ndarray  # uint8 (rows, bytes of a row)
Floats = np.ndarray  # float32 (rows, weights of a row)

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


class Plane(Struct, frozen=True):
    """`n_bytes` bytes of a block, from `start`, that hold `bits` bits of each code at bit `shift` of it.

    Within each `run` of bytes the lowest bits of all bytes come first, then the next ones.
    """

    start: int
    n_bytes: int
    run: int
    bits: int
    shift: int = 0


class Codec(Struct, frozen=True):
    """How a format keeps its codes. `levels[code]` is the factor of the scale."""

    type: str
    planes: tuple[Plane, ...]
    levels: tuple[int, ...]


def _uniform(bits: int, zero: int = 0) -> tuple[int, ...]:
    return tuple(code - zero for code in range(2**bits))


_LOW = Plane(2, 16, 16, 4)
CODECS = {
    codec.type: codec
    for codec in (
        Codec("q4_0", (_LOW,), _uniform(4, 8)),
        Codec("q4_1", (Plane(4, 16, 16, 4),), _uniform(4)),
        Codec("q5_0", (Plane(6, 16, 16, 4), Plane(2, 4, 1, 1, 4)), _uniform(5, 16)),
        Codec("q5_1", (Plane(8, 16, 16, 4), Plane(4, 4, 1, 1, 4)), _uniform(5)),
        Codec("q8_0", (Plane(2, 32, 1, 8),), tuple(range(128)) + tuple(range(-128, 0))),
        Codec("iq4_nl", (_LOW,), _IQ4),
        Codec("iq4_xs", (Plane(8, 128, 16, 4),), _IQ4),
        Codec("mxfp4", (Plane(1, 16, 16, 4),), _FP4),
        Codec("q2_K", (Plane(16, 64, 32, 2),), _uniform(2)),
        Codec("q3_K", (Plane(32, 64, 32, 2), Plane(0, 32, 32, 1, 2)), _uniform(3, 4)),
        Codec("q4_K", (Plane(16, 128, 32, 4),), _uniform(4)),
        Codec("q5_K", (Plane(48, 128, 32, 4), Plane(16, 32, 32, 1, 4)), _uniform(5)),
        Codec("q6_K", (Plane(0, 128, 64, 4), Plane(128, 64, 32, 2, 4)), _uniform(6, 32)),
    )
}


def unpack(codec: Codec, data: Bytes) -> np.ndarray:
    """The codes of whole rows: uint8 (rows, weights)."""
    blocks = data.reshape(len(data), -1, BY_NAME[codec.type].block_bytes)
    codes = 0
    for plane in codec.planes:
        part = blocks[:, :, plane.start : plane.start + plane.n_bytes]
        runs = part.reshape(*part.shape[:2], -1, 1, plane.run) >> _shifts(plane) & (2**plane.bits - 1)
        codes = codes | runs.reshape(*part.shape[:2], -1) << plane.shift
    return np.asarray(codes, dtype=np.uint8).reshape(len(data), -1)


def pack(codec: Codec, data: Bytes, codes: np.ndarray) -> Bytes:
    """A copy of `data` with other codes and the same scales."""
    kind = BY_NAME[codec.type]
    blocks = data.reshape(len(data), -1, kind.block_bytes).copy()
    wanted = codes.astype(np.uint8).reshape(len(data), -1, kind.block_weights)
    for plane in codec.planes:
        bits = wanted >> plane.shift & (2**plane.bits - 1)
        runs = bits.reshape(*bits.shape[:2], -1, 8 // plane.bits, plane.run) << _shifts(plane)
        part = np.bitwise_or.reduce(runs, axis=3).reshape(*bits.shape[:2], -1)
        blocks[:, :, plane.start : plane.start + plane.n_bytes] = part
    return blocks.reshape(data.shape)


def _shifts(plane: Plane) -> np.ndarray:
    return np.arange(0, 8, plane.bits, dtype=np.uint8)[:, None]


def affine(codec: Codec, data: Bytes, dequantize: Callable[[str, Bytes], Floats]) -> tuple[Floats, Floats]:
    """(scale, offset) of every weight, float32 (rows, weights), as the engine's dequantizer applies them."""
    low, high = int(np.argmin(codec.levels)), int(np.argmax(codec.levels))
    at_low, at_high = (dequantize(codec.type, _filled(codec, data, code)) for code in (low, high))
    scale = (at_high - at_low) / np.float32(codec.levels[high] - codec.levels[low])
    return scale, at_low - scale * np.float32(codec.levels[low])


def _filled(codec: Codec, data: Bytes, code: int) -> Bytes:
    """A copy of `data` in which every weight has one code."""
    kind = BY_NAME[codec.type]
    blank, full = (np.full((1, kind.block_bytes), byte, dtype=np.uint8) for byte in (0, 255))
    codes = np.full((1, kind.block_weights), code, dtype=np.uint8)
    pattern, kept = pack(codec, blank, codes), pack(codec, full, np.zeros_like(codes))
    blocks = data.reshape(len(data), -1, kind.block_bytes)
    return np.asarray(blocks & kept | pattern).reshape(data.shape)
