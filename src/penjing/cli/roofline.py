"""The roofline of this machine as an SVG: arithmetic over what each byte of weights is used for, every type on it.

Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009. Left of the ridge memory is the limit (small
batches), right of it the kernels are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from penjing.formats import BY_NAME
from penjing.kernel_rates import operations, seconds
from penjing.rates import Kernel, KernelTiming

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 860, 520, 70, 30, 200, 50
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#000000")

Place = tuple[float, float]  # operations for each byte of weights, operations per second


class _Axes:
    """Logarithmic axes over whole decades around some places."""

    def __init__(self, places: Sequence[Place]) -> None:
        columns = [[math.log10(place[i]) for place in places] for i in (0, 1)]
        (self.x0, self.x1), (self.y0, self.y1) = (
            (math.floor(min(values)), math.ceil(max(values) + 1e-9)) for values in columns
        )

    def at(self, place: Place) -> tuple[float, float]:
        x = (math.log10(place[0]) - self.x0) / (self.x1 - self.x0)
        y = (math.log10(place[1]) - self.y0) / (self.y1 - self.y0)
        return (
            round(_LEFT + x * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    def grid(self) -> Iterable[str]:
        for i in range(self.x0, self.x1 + 1):
            low, high = self.at((10.0**i, 10.0**self.y0)), self.at((10.0**i, 10.0**self.y1))
            yield _line([low, high], "#dddddd")
            yield _text(low[0], low[1] + 18, f"{10.0**i:g}", "middle")
        for i in range(self.y0, self.y1 + 1):
            low, high = self.at((10.0**self.x0, 10.0**i)), self.at((10.0**self.x1, 10.0**i))
            yield _line([low, high], "#dddddd")
            yield _text(low[0] - 8, low[1] + 4, f"{10.0**i / 1e9:g}", "end")


def svg(timings: Sequence[KernelTiming], read_bytes_per_s: float | None, title: str) -> str:
    """Lines of one type and layout over their batches, under the roof of the memory and of the fastest kernel."""
    lines: dict[str, list[Place]] = {}
    for timing in sorted(timings, key=lambda t: (BY_NAME[t.kernel.type].bits_per_weight, t.kernel)):
        lines.setdefault(name_of(timing.kernel), []).append(place_of(timing))
    axes = _Axes([place for line in lines.values() for place in line])
    parts = [*axes.grid(), *_roof(axes, lines.values(), read_bytes_per_s)]
    for n, (name, places) in enumerate(lines.items()):
        colour, dashes = _COLOURS[n % len(_COLOURS)], "" if n < 2 * len(_COLOURS) else "5 3"
        points = [axes.at(place) for place in places]
        parts += [_line(points, colour, dashes), *(_dot(p, colour, n // len(_COLOURS) % 2) for p in points)]
        x, y = _WIDTH - _RIGHT + 30, _TOP + 6 + 16 * n
        parts += [_line([(x - 14, y), (x + 14, y)], colour, dashes)]
        parts += [_dot((x, y), colour, n // len(_COLOURS) % 2), _text(x + 20, y + 4, name)]
    height = max(_HEIGHT, _TOP + 16 * len(lines) + 20)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts += [
        _text(
            middle,
            _HEIGHT - 12,
            "operations for each byte of weights (larger batches to the right)",
            "middle",
        ),
        _text(_LEFT - 50, _TOP - 12, "GFLOP/s"),
        _text(middle, _TOP - 12, title, "middle"),
    ]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>', *parts, "</svg>\n",
    ])  # fmt: skip


def _roof(axes: _Axes, lines: Iterable[Sequence[Place]], read_bytes_per_s: float | None) -> Iterable[str]:
    top = max(rate for line in lines for _, rate in line)
    left, right, floor = 10.0**axes.x0, 10.0**axes.x1, 10.0**axes.y0
    slope = read_bytes_per_s or math.inf
    bends = (min(max(x, left), right) for x in (floor / slope, top / slope, right))
    yield _line([axes.at((x, max(floor, min(top, x * slope)))) for x in bends], "#333333", "2 3")


def name_of(kernel: Kernel) -> str:
    return f"{kernel.type}, repacked" if kernel.repack else kernel.type


def place_of(timing: KernelTiming) -> Place:
    kernel, kind = timing.kernel, BY_NAME[timing.kernel.type]
    return 2 * kernel.batch * 8 / kind.bits_per_weight, operations(kernel) / seconds(timing)


def _line(points: Sequence[tuple[float, float]], colour: str, dashes: str = "") -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    style = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{style}/>'


def _dot(point: tuple[float, float], colour: str, square: int) -> str:
    x, y = point
    if square:
        return f'<rect x="{x - 3:g}" y="{y - 3:g}" width="6" height="6" fill="{colour}"/>'
    return f'<circle cx="{x:g}" cy="{y:g}" r="3.5" fill="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
