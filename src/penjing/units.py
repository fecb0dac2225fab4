"""Reading and showing quantities. Inside the package there are only bytes, seconds and tokens."""

from __future__ import annotations

import math
import re

from penjing.errors import UsageError

KIB, MIB, GIB = 2**10, 2**20, 2**30

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """Bytes of `8GiB`, `600MB`, `1.5g` or `4096`; `GiB` counts by 1024, `GB` and `G` by 1000.

    Raises:
        UsageError: the text is no size, or the size is not positive.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"`{text}` is not a size", hint="write it like `8GiB`, `600MB` or `4096`")
    number, prefix, binary = match.groups()
    n_bytes = float(number) * (1024 if binary else 1000) ** _POWERS[prefix.lower()]
    if not 1 <= n_bytes < 2**63:
        raise UsageError(
            f"a size of `{text}` is out of range", hint="write it like `8GiB`, `600MB` or `4096`"
        )
    return int(n_bytes)


def show_bytes(n_bytes: float) -> str:
    """`n_bytes` in the binary unit that leaves one to four digits before the point: `1.50 GiB`."""
    size, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1000:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{show_number(size)} {unit}"


def show_number(value: float) -> str:
    """Three significant digits, never in scientific notation: `0.0123`, `1.50`, `12.3`, `1230`."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def show_seconds(seconds: float) -> str:
    """`250 µs`, `12.0 ms`, `3.40 s`, `2 min 05 s`, `1 h 07 min`."""
    if seconds < 1e-3:
        return f"{show_number(seconds * 1e6)} µs"
    if seconds < 1:
        return f"{show_number(seconds * 1e3)} ms"
    if seconds < 100:
        return f"{show_number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
