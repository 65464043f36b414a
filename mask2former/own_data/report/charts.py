"""Line charts as inline SVG, drawn with nothing but text."""

import math
from collections.abc import Mapping
from html import escape

from mask2former.own_data.report.curves import Series

__all__ = ["line_chart"]

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 12, 30
_COLORS = 6  # that the style sheet has


def line_chart(title: str, series: Mapping[str, Series], *, smooth: bool = False, zero: bool = False) -> str:
    """Draw a chart.

    Args:
        title: Above it.
        series: Points (step, value) by name; empty ones are left out.
        smooth: Draw a running mean, and the values themselves faintly.
        zero: Begin the vertical axis at 0.

    Returns:
        A ``<figure>``; "" if there is nothing to draw.
    """
    shown = {name: points for name, points in series.items() if points}
    if not shown:
        return ""
    steps = [step for points in shown.values() for step, _ in points]
    values = [value for points in shown.values() for _, value in points]
    x_ticks = _ticks(min(0, *steps), max(steps))
    y_ticks = _ticks(0 if zero else min(values), max(values))
    x_range = (min(0, *steps), max(max(steps), 1))
    y_range = (y_ticks[0], y_ticks[-1])

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (step - x_range[0]) / (x_range[1] - x_range[0]) * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - (value - y_range[0]) / (y_range[1] - y_range[0]) * (_HEIGHT - _TOP - _BOTTOM)
        return x, y

    parts = []
    for value in y_ticks:
        _, y = place(0, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for step in x_ticks:
        if step <= x_range[1]:
            x, _ = place(step, y_range[0])
            text = f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{_number(step)}</text>'
            parts.append(text)
    for i, points in enumerate(shown.values()):
        parts += _curve([place(*point) for point in points], points, i % _COLORS, smooth=smooth)
    keys = "".join(
        f'<span class="key c{i % _COLORS}">{escape(name)}: {_number(points[-1][1])}</span>'
        for i, (name, points) in enumerate(shown.items())
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="keys">{keys}</div></figure>'
    )


def _curve(places: list[tuple[float, float]], points: Series, color: int, *, smooth: bool) -> list[str]:
    lines = []
    if smooth and len(places) > 10:
        lines.append(f'<polyline class="faint s{color}" points="{_path(places)}"/>')
        places = _running_mean(places)
    lines.append(f'<polyline class="s{color}" points="{_path(places)}"/>')
    if len(places) <= 60:
        for (x, y), (step, value) in zip(places, points, strict=True):
            tip = f"<title>step {step}: {_number(value)}</title>"
            lines.append(f'<circle class="f{color}" cx="{x:.1f}" cy="{y:.1f}" r="3">{tip}</circle>')
    return lines


def _path(places: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _running_mean(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    reach = max(2, len(places) // 30)
    means = []
    for i, (x, _) in enumerate(places):
        window = [y for _, y in places[max(0, i - reach) : i + reach + 1]]
        means.append((x, sum(window) / len(window)))
    return means


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, four to eight of them."""
    span = high - low or abs(high) or 1.0
    exact = span / 5
    magnitude = 10 ** math.floor(math.log10(exact))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= exact * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(i * step, 12) for i in range(first, last + 1)]


def _number(value: float) -> str:
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"
