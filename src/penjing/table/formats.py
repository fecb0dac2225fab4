"""Names of weight formats, as tables write them: bits for each weight and the class of kernels."""

from __future__ import annotations

import re

from penjing.cost.ways import Kernel, Weights

_GIB = 2.0**30

# bits of matrices and of the output matrix in llama.cpp's mixes: quantize.cpp of llama.cpp, averaged over layers
_GGUF: dict[str, tuple[float, float]] = {
    "Q2_K_S": (2.8, 6.56), "Q2_K": (2.96, 6.56), "Q2_K_L": (3.0, 8.5), "Q2_K_XL": (3.0, 6.56),
    "Q3_K_S": (3.44, 6.56), "Q3_K_M": (3.85, 6.56), "Q3_K_L": (4.2, 6.56), "Q3_K": (3.85, 6.56), "Q3_K_XL": (4.0, 6.56),
    "Q4_0": (4.5, 6.56), "Q4_1": (5.0, 6.56), "Q4_K_S": (4.55, 6.56), "Q4_K_M": (4.78, 6.56), "Q4_K": (4.78, 6.56),
    "Q4_K_L": (4.9, 8.5), "Q4_K_XL": (4.9, 6.56),
    "Q5_0": (5.5, 6.56), "Q5_1": (6.0, 6.56), "Q5_K_S": (5.5, 6.56), "Q5_K_M": (5.65, 6.56), "Q5_K": (5.65, 6.56),
    "Q5_K_XL": (5.75, 6.56), "Q6_K": (6.56, 6.56), "Q6_K_XL": (6.8, 8.5), "Q8_0": (8.5, 8.5), "Q8_K": (8.5, 8.5),
    "Q8_K_XL": (9.8, 16.0), "IQ1_S": (1.6, 5.0), "IQ1_M": (1.8, 5.0), "IQ2_XXS": (2.1, 5.0), "IQ2_XS": (2.35, 5.0),
    "IQ2_S": (2.55, 5.0), "IQ2_M": (2.75, 5.0), "IQ3_XXS": (3.1, 5.0), "IQ3_XS": (3.3, 6.56), "IQ3_S": (3.44, 6.56),
    "IQ3_M": (3.66, 6.56), "IQ4_XS": (4.27, 6.56), "IQ4_NL": (4.5, 6.56), "IQ2_K": (2.4, 6.56), "IQ3_K": (3.44, 6.56),
    "IQ4_K": (4.5, 6.56), "IQ5_K": (5.5, 6.56), "IQ6_K": (6.6, 6.56), "IQ4_KS": (4.25, 6.56), "IQ2_KS": (2.19, 6.56),
    "IQ1_BN": (1.63, 6.56), "IQ2_BN": (2.0, 6.56), "TQ1_0": (1.69, 6.56), "TQ2_0": (2.06, 6.56),
}  # fmt: skip
_FAMILIES: tuple[tuple[str, Kernel], ...] = (
    (r"IQ\d_BN|TQ\d", "low"), (r"IQ[4-6]", "q4"), (r"IQ", "iq"), (r"Q8", "q8"), (r"Q\d_[01]", "q4"), (r"Q\d", "qk"),
)  # fmt: skip

# everything else: pattern, class, bits, bits of the ends, activations in the format too
_OTHERS: tuple[tuple[str, Kernel, float, float, bool], ...] = (
    (r"NVFP4", "fp4", 4.5, 16, True),
    (r"MXFP4|\bFP4\b", "fp4", 4.25, 16, True),
    (r"W4A8|INT4.?FP8", "i4", 4.15, 16, True),
    (r"W8A8|SMOOTHQUANT|INT8.?W8", "i8", 8, 16, True),
    (r"W8A16|INT8.?WEIGHT|INT8.?CW|INT8.?SYM|INT8.?ASYM|\bW8\b", "i8", 8, 8, False),
    (r"BFP4|BFLOAT4", "fp4", 4.5, 8.5, False),
    (r"BFP8|BFLOAT8", "f8", 8.5, 8.5, True),
    (r"FP8|F8\b|E4M3", "f8", 8, 16, True),
    (r"INT8|\bI8\b|8.?BIT", "i8", 8, 16, True),
    (r"INT4.?MIXED|INT4.?SYM|INT4.?ASYM", "i4", 4.7, 8, False),
    (r"W1\.58|1\.58|TERNARY|BITNET", "low", 2, 16, False),
    (r"\bW1\b", "low", 1.2, 16, False),
    (r"\bW2\b|INT2|2.?BIT", "low", 2.25, 16, False),
    (r"\bW3\b|INT3|3.?BIT", "low", 3.25, 16, False),
    (r"AWQ|GPTQ|INT4|\bW4|\bU?I4\b|4.?BIT|\bNF4\b|\bQ4\b|G128|G32", "i4", 4.25, 16, False),
    (r"6.?BIT", "i4", 6.25, 16, False),
    (r"FP32|\bF32\b", "f16", 32, 32, False),
    (r"BF16|FP16|F16|HALF|16.?BIT", "f16", 16, 16, False),
)  # fmt: skip


def weight_format(text: str) -> Weights | None:
    """The format that a text names first; None where it names none."""
    name = re.sub(r"[ -]+", "_", text.strip().upper())
    parts = re.split(r"EXPERTS", name, maxsplit=1)
    found = _single(parts[0])
    if found is None:
        return None
    if len(parts) > 1 and (other := _single(parts[1])):
        return Weights(text, found.kernel, other.bits, found.routed_bits, found.end_bits, _size(text))
    if "MXFP4" in name and "MOE" in name:  # experts only: the rest of such files has 8 bits
        return Weights(text, "fp4", 8.5, 4.25, 8.5, _size(text), found.activations)
    return Weights(
        text, found.kernel, found.bits, found.routed_bits, found.end_bits, _size(text), found.activations
    )


def size_in(text: str) -> float | None:
    """The bytes of a file that a note prints."""
    match = re.search(r"file ([\d.]+) ?(GiB|GB|MiB)", text)
    return _bytes(match) if match else None


def _size(text: str) -> float | None:
    match = re.search(r"\(?([\d.]+) ?(GiB|GB|MiB)\)?", text)
    return _bytes(match) if match else None


def _bytes(match: re.Match[str]) -> float:
    return float(match[1]) * {"GiB": _GIB, "GB": 1e9, "MiB": 2.0**20}[match[2]]


def _single(name: str) -> Weights | None:
    gguf = re.search(r"(?<![A-Z])I?[QT]Q?\d_(?:K_)?(?:XXS|XS|NL|BN|KS|XL|[SML01K])?(?:_(?:XL|R\d))?", name)
    if gguf and (bits := _gguf_bits(gguf[0])):
        kernel = next(k for pattern, k in _FAMILIES if re.match(pattern, gguf[0]))
        matrix = _stated_bits(name) or bits[0]
        return Weights(name, kernel, matrix, matrix, max(bits[1], matrix))
    spaced = name.replace("_", " ")
    for pattern, kernel, bits_each, ends, activations in _OTHERS:
        if re.search(pattern, spaced):
            return Weights(name, kernel, bits_each, bits_each, ends, activations=activations)
    return None


def _gguf_bits(name: str) -> tuple[float, float] | None:
    plain = re.sub(r"_R\d$", "", name).rstrip("_")
    return _GGUF.get(plain) or _GGUF.get(re.sub(r"_[A-Z]+$", "", plain))


def _stated_bits(name: str) -> float | None:
    match = re.search(r"([\d.]+)_?BPW", name)
    return float(match[1]) if match else None
