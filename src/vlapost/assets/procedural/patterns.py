"""Materials as pictures `[h, w, 3]`: wood, stone, grass, bricks, cloth. Every one is fixed by its seed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from vlapost.assets.procedural.noise import canvas, cells, clouds, mix, shade
from vlapost.assets.procedural.shapes import Colour, Picture

Shape = tuple[int, int]


def mottle(shape: Shape, light: Colour, dark: Colour, seed: int, size: float = 60, grain: float = 0.04) -> Picture:
    """Two colours in soft blotches of `size` pixels, with fine grain: plaster, concrete, plastic, felt."""
    fine = np.random.default_rng(seed).normal(1, grain, shape)
    return shade(mix(light, dark, clouds(shape, (size, size), seed)), fine)


def wood(shape: Shape, light: Colour, dark: Colour, seed: int, plank: int = 0) -> Picture:
    """Grain along the columns; `plank` pixels is the width of a board, 0 is one piece."""
    h, w = shape
    wave = clouds(shape, (h / 3, w), seed, octaves=2) * 7
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * wave)
    fibre = clouds(shape, (3, w / 3), seed + 1, octaves=3)
    picture = mix(light, dark, 0.18 * rings + 0.82 * fibre)
    if plank:
        generator = np.random.default_rng(seed + 2)
        for top in range(0, h, plank):
            row = slice(top, top + plank)
            cut = int(generator.integers(w))
            picture[row] = np.roll(picture[row], int(generator.integers(w)), axis=1)
            for part in (slice(0, cut), slice(cut, w)):
                factor = generator.uniform(0.86, 1.08)
                picture[row, part] = np.clip(picture[row, part] * factor, 0, 255)
            picture[top : top + 2] = picture[top : top + 2] // 2
            picture[row, cut : cut + 2] = picture[row, cut : cut + 2] // 2
    return picture


def marble(shape: Shape, base: Colour, vein: Colour, seed: int, size: float = 220, width: float = 0.05) -> Picture:
    """Thin branching veins on a lightly clouded stone."""
    share = np.zeros(shape)
    for octave, weight in ((1.0, 0.9), (2.2, 0.5)):
        field = clouds(shape, (size / octave, size / octave), seed + int(10 * octave), octaves=5)
        strength = clouds(shape, (size, size), seed + 50 + int(octave), octaves=2)
        share = np.maximum(share, weight * strength * np.clip(1 - np.abs(field - 0.5) / width, 0, 1))
    share = np.clip(share + 0.16 * clouds(shape, (size, size), seed + 90), 0, 1)
    return mix(base, vein, share)


def swirl(shape: Shape, colours: Sequence[Colour], seed: int) -> Picture:
    """Bands of colour folded like agate."""
    warp = clouds(shape, (shape[0] / 1.5, shape[1] / 2), seed, octaves=5)
    y, x = np.mgrid[: shape[0], : shape[1]]
    phase = 9 * warp + y / shape[0] * 3 - x / shape[1] * 1.5
    index = (phase * 4) % len(colours)
    table = np.array([*colours, colours[0]], float)
    low = index.astype(int)
    blend = table[low] + (table[low + 1] - table[low]) * (index - low)[..., None]
    return shade(blend.astype(np.uint8), 0.9 + 0.2 * clouds(shape, (6, 40), seed + 1))


def grass(shape: Shape, light: Colour, dark: Colour, seed: int, blade: float = 12, count: int = 0) -> Picture:
    """Blades of grass of about `blade` pixels drawn over each other, seen from above."""
    h, w = shape
    generator = np.random.default_rng(seed)
    count = count or int(h * w / blade / 1.1)
    picture = mix(dark, light, 0.4 * clouds(shape, (40, 40), seed))
    start = generator.random((count, 2)) * [w, h]
    end = start + generator.normal(0, blade / 1.6, (count, 2))
    share = np.clip(generator.normal(0.5, 0.25, count), 0, 1.15)
    colours = np.clip(np.array(dark) + (np.array(light, float) - dark) * share[:, None], 0, 255)
    for a, b, colour in zip(start.astype(int).tolist(), end.astype(int).tolist(), colours.tolist()):
        cv2.line(picture, a, b, colour, 1, cv2.LINE_AA)
    return picture


def bricks(
    shape: Shape, colours: Sequence[Colour], mortar: Colour, size: tuple[int, int], seed: int, gap: int = 3
) -> Picture:
    """Courses of bricks of `size` = (height, width) pixels, every second one shifted by half a brick."""
    picture = mottle(shape, mortar, tuple(int(c * 0.8) for c in mortar), seed, 30)  # type: ignore[arg-type]
    generator = np.random.default_rng(seed)
    height, width = size
    for row, top in enumerate(range(0, shape[0], height)):
        for left in range(-width // 2 * (row % 2), shape[1], width):
            colour = np.array(colours[int(generator.integers(len(colours)))]) * generator.uniform(0.85, 1.1)
            rows = slice(top + gap // 2, top + height - gap // 2)
            picture[rows, max(left + gap // 2, 0) : left + width - gap // 2] = np.clip(colour, 0, 255)
    return shade(picture, 0.82 + 0.3 * clouds(shape, (18, 18), seed + 1))


def stones(
    shape: Shape, colours: Sequence[Colour], joint: Colour, count: int, seed: int, gap: float = 3, round_: float = 0.6
) -> Picture:
    """Irregular stones with joints `gap` pixels wide; `round_` darkens them towards their border."""
    border, number = cells(shape, count, seed)
    generator = np.random.default_rng(seed)
    palette = np.array(colours, float)[generator.integers(len(colours), size=count)]
    palette = np.clip(palette * generator.uniform(0.8, 1.15, (count, 1)), 0, 255)
    relief = 1 - round_ * np.exp(-border / (gap * 2.5))
    picture = palette[number] * (relief * (0.8 + 0.35 * clouds(shape, (14, 14), seed + 1)))[..., None]
    return mix(np.clip(picture, 0, 255).astype(np.uint8), joint, np.clip(gap - border, 0, 1))


def tartan(shape: Shape, ground: Colour, stripes: Sequence[tuple[float, float, Colour]], repeat: int) -> Picture:
    """Twill of crossing stripes given as (start, end, colour) in shares of `repeat` pixels."""
    lines = canvas(1, repeat, ground)[0]
    for start, end, colour in stripes:
        lines[int(start * repeat) : int(end * repeat)] = colour
    across = lines[np.arange(shape[1]) % repeat][None].repeat(shape[0], axis=0)
    down = lines[np.arange(shape[0]) % repeat][:, None].repeat(shape[1], axis=1)
    y, x = np.mgrid[: shape[0], : shape[1]]
    twill = ((x + y) // 3 % 2).astype(float)
    return mix(across, down, 0.25 + 0.5 * twill)


def tiles(shape: Shape, colours: Sequence[Colour], joint: Colour, size: int, gap: int, seed: int) -> Picture:
    """Square tiles whose colours take turns like a chess board."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    palette = np.array(colours, np.uint8)
    picture = palette[(x // size + y // size) % len(colours)]
    picture = shade(picture, 0.85 + 0.25 * clouds(shape, (50, 50), seed))
    picture[(x % size < gap) | (y % size < gap)] = joint
    return picture
