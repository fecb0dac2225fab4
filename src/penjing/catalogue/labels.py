"""What people and tables write around a name: vendors, repositories, formats, dates, sizes.

"meta-llama/Llama-3.1-8B-Instruct-FP8" ─→ Llama-3.1-8B        "NVIDIA A100 80GB PCIe" ─→ a100 pcie 80gb
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_VENDORS = {
    "nvidia", "geforce", "tesla", "amd", "intel", "apple", "huawei", "google", "aws", "qualcomm", "tenstorrent",
    "gpu", "npu", "graphics", "corporation", "r", "tm",
}  # fmt: skip

# Endings of a model's name that change neither its shape nor its size: tuning, formats, dates, versions.
_ENDING = re.compile(
    r"[-_ .:](instruct|chat|it|hf|base|gguf|thinking|preview|latest|dynamic|quantized|marlin|ud|pt|qat"
    r"|fp8|fp4|nvfp4|mxfp4|bf16|fp16|f16|bfloat16|awq|gptq|int[48]|[48]bit|w\d+a\d+|iq\d\w*|t?q\d\w*"
    r"|[01]\d{3}|2[45]\d\d|v0\.\d|\d+k)$",
    re.IGNORECASE,
)
_SIZE = re.compile(r"[ (-]*(\d+) ?gi?b\b\)?", re.IGNORECASE)


def words(name: str) -> list[str]:
    """Letters and digits of a name, in lower case; `3.5` and `max+` stay whole."""
    return re.findall(r"[^\W_]+(?:[.+][^\W_]*)*", name[:200].lower())


def plain(name: str) -> str:
    return "".join(words(name))


def key(name: str) -> tuple[str, ...]:
    """The words of a name in no order, without the vendor's: two ways to write one thing have one key."""
    return tuple(sorted(word for word in words(name) if word not in _VENDORS))


def readings(name: str, kind: str) -> Iterator[str]:
    """A name as it stands, then with less and less around it that changes nothing of what it names."""
    yield name
    if kind == "machine":
        yield bare_machine(name)
        return
    name = name[:200].rpartition("/")[2]
    yield name
    while (shorter := _ENDING.sub("", name)) != name:
        name = shorter
        yield name


def bare_machine(name: str) -> str:
    return " ".join(word for word in words(name) if word not in _VENDORS)


def without_size(name: str) -> tuple[str, int | None]:
    """A device's name without `80GB`, and that number."""
    found = _SIZE.search(name[:200])
    return (_SIZE.sub(" ", name[:200], count=1), int(found[1])) if found else (name, None)
