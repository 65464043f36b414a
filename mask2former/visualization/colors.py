"""Colours that stay apart: for neighbours in a picture, for classes, and for colour-blind eyes.

Distances are measured in OKLab, where equal steps look equal, as normal, protan and deutan eyes see them, and the worst
case counts. Two colours of a palette therefore also differ in lightness or in blue-yellow, not in red-green alone.
"""

from functools import lru_cache

import numpy as np

__all__ = ["assign_colors", "color_distance", "spread_palette"]

# Linear sRGB -> cone responses -> OKLab (Ottosson 2020), rows act on column vectors.
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# What normal, protan and deutan eyes make of linear sRGB (Machado, Oliveira and Fernandes 2009, full severity).
_VISIONS = np.array(
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)
_NUM_INSTANCE_COLORS = 24  # more would be alike; neighbours never need more


@lru_cache(maxsize=8)
def spread_palette(num_colors: int) -> np.ndarray:
    """Choose colours one after the other, each as far as possible from all before it.

    A longer palette begins with the shorter one, so a class keeps its colour when classes are added.

    Args:
        num_colors: how many; beyond a few dozen they necessarily come closer to each other.

    Returns:
        (num_colors, 3) uint8 RGB; read-only, since it is shared.
    """
    candidates = _candidates()
    points = _perceived(candidates)  # (3 visions, candidates, 3)
    chosen = [int(np.argmin(np.abs(candidates.astype(int) - (0, 145, 255)).sum(1)))]  # begins with a clear blue
    nearest = np.full(len(candidates), np.inf)
    while len(chosen) < num_colors:
        nearest = np.minimum(nearest, _worst_case(points - points[:, chosen[-1:]]))
        chosen.append(int(nearest.argmax()))
    palette = candidates[chosen[:num_colors]]
    palette.setflags(write=False)
    return palette


def color_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Perceptual distance between every colour of ``first`` (A, 3) and of ``second`` (B, 3), uint8 RGB.

    Returns:
        (A, B) float: OKLab distance for the eyes that tell the two apart worst. 0 is equal, black to white is 1.
    """
    a, b = _perceived(first), _perceived(second)
    return _worst_case(a[:, :, None] - b[:, None])


def assign_colors(centers: np.ndarray, class_ids: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Colour instances so that each differs from those near it, and is its class's own colour where that is free.

    Args:
        centers: (N, 2) positions in pixels, in the order in which colours are given away.
        class_ids: (N,) ints.
        taken: (M, 3) uint8 RGB of colours used elsewhere in the picture, which are better avoided.

    Returns:
        (N, 3) uint8 RGB.
    """
    palette = spread_palette(_NUM_INSTANCE_COLORS)
    likeness = _likeness(palette, palette)  # (K, K)
    base_cost = 0.3 * _likeness(palette, taken).sum(1)  # (K,)
    spacing = max(float(np.ptp(centers, axis=0).max()), 1.0) / np.sqrt(len(centers)) if len(centers) else 1.0
    chosen = np.zeros(len(centers), dtype=np.int64)
    for i, (center, class_id) in enumerate(zip(centers, class_ids, strict=True)):
        distance = np.linalg.norm(centers[:i] - center, axis=1) / spacing
        cost = base_cost + likeness[:, chosen[:i]] @ (1 / (1 + distance**2))  # (K,)
        cost[int(class_id) % len(palette)] -= 0.1
        chosen[i] = cost.argmin()
    return palette[chosen]


def _likeness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How easily colours are taken for each other: 1 if equal, next to nothing beyond a distance of 0.3. (A, B)."""
    return np.exp(-((color_distance(first, second) / 0.14) ** 2))


@lru_cache(maxsize=1)
def _candidates() -> np.ndarray:
    """Colours that are neither so dark nor so pale nor so grey that they vanish on a photograph: (n, 3) uint8."""
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, a, b = _perceived(grid)[0].T
    return grid[(lightness > 0.55) & (lightness < 0.92) & (np.hypot(a, b) > 0.13)]


def _worst_case(difference: np.ndarray) -> np.ndarray:
    """Length of OKLab differences (3 visions, ..., 3) for the eyes that see them least: (...).

    Colour-blind eyes count half, or every palette would be made of blues and greens alone.
    """
    length = np.linalg.norm(difference, axis=-1)
    return np.minimum(length[0], 2 * length[1:].min(0))


def _perceived(colors: np.ndarray) -> np.ndarray:
    """OKLab of (n, 3) uint8 RGB as the three visions see it: (3, n, 3)."""
    encoded = np.asarray(colors, dtype=np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ _VISIONS.transpose(0, 2, 1), 0, 1)  # (3, n, 3)
    return np.cbrt(seen @ _TO_CONES.T) @ _TO_OKLAB.T
