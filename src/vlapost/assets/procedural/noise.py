"""Patterns: seeded noise, cells, stripes and lettering as pictures."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import cKDTree

from vlapost.assets.procedural.shapes import Colour, Floats, Picture


def clouds(shape: tuple[int, int], size: tuple[float, float], seed: int, octaves: int = 4) -> Floats:
    """Smooth noise `[h, w]` in 0..1 whose largest blotches are `size` = (rows, columns) pixels."""
    generator = np.random.default_rng(seed)
    total = np.zeros(shape, np.float32)
    weight = 1.0
    for octave in range(octaves):
        rows, columns = (max(2, round(n / s * 2**octave) + 1) for n, s in zip(shape, size))
        values = generator.random((min(rows, shape[0]), min(columns, shape[1])), np.float32)
        total += weight * cv2.resize(values, shape[::-1], interpolation=cv2.INTER_CUBIC)
        weight /= 2
    low, high = np.percentile(total[::3, ::3], [1, 99])
    return np.clip((total - low) / (high - low), 0, 1)


def mix(first: Colour | Picture, second: Colour | Picture, share: Floats) -> Picture:
    """`first` where `share` `[h, w]` is 0, `second` where it is 1."""
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)
    blend = a + (b - a) * np.asarray(share, np.float32)[..., None]
    return np.clip(blend, 0, 255).astype(np.uint8)


def shade(picture: Picture, factor: Floats) -> Picture:
    """Brightness multiplied by `factor` `[h, w]`."""
    return np.clip(picture * np.asarray(factor, np.float32)[..., None], 0, 255).astype(np.uint8)


def cells(shape: tuple[int, int], count: int, seed: int) -> tuple[Floats, np.ndarray]:
    """Voronoi cells: distance to the nearest border `[h, w]` in pixels (about), and the cell's number `[h, w]`."""
    generator = np.random.default_rng(seed)
    centres = generator.random((count, 2)) * shape
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    pixels = np.stack([rows, columns], -1).reshape(-1, 2)
    distance, index = cKDTree(centres).query(pixels, k=2)
    border = (distance[:, 1] - distance[:, 0]) / 2
    return border.reshape(shape), index[:, 0].reshape(shape)


def write(picture: Picture, text: str, x: int, y: int, size: float, colour: Colour, thick: int = 2) -> Picture:
    """A copy of the picture with `text` from (x, y), its lower left corner in pixels."""
    copy = picture.copy()
    cv2.putText(copy, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, thick, cv2.LINE_AA)
    return copy


def canvas(height: int, width: int, colour: Colour) -> Picture:
    """A picture of one colour to draw on."""
    return np.full((height, width, 3), colour, np.uint8)
