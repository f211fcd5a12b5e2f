"""The 21 textures that the benchmark's texture variants blend over the picture, 640x480 pixels."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from vlapost.assets.procedural.noise import canvas, cells, clouds, mix, shade
from vlapost.assets.procedural.patterns import bricks, grass, mottle, stones, swirl, tartan, tiles, wood
from vlapost.assets.procedural.shapes import Picture

SHAPE = (480, 640)


def worn_brick() -> Picture:
    """Orange bricks with grey worn patches."""
    picture = bricks(SHAPE, [(226, 116, 26), (204, 92, 20), (236, 138, 40)], (150, 146, 140), (44, 92), 201, 6)
    return mix(picture, (116, 118, 118), np.clip(6 * (clouds(SHAPE, (70, 90), 202) - 0.72), 0, 0.9))


def diamond_tiles() -> Picture:
    """Dark tiles laid on their corners."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    joint = ((x + y) % 128 < 3) | ((x - y) % 128 < 3)
    picture = mottle(SHAPE, (52, 42, 40), (36, 28, 27), 203, 40)
    picture[joint] = (150, 136, 126)
    return picture


def bold_tartan() -> Picture:
    """Black, yellow, red and blue checks."""
    stripes = [
        (0.0, 0.12, (226, 188, 20)),
        (0.3, 0.44, (40, 130, 160)),
        (0.55, 0.75, (176, 30, 28)),
        (0.88, 0.94, (120, 160, 50)),
    ]
    return tartan(SHAPE, (14, 14, 14), stripes, 300)


def stained_concrete() -> Picture:
    """White concrete with dark flaking spots."""
    spots = np.clip(8 * (clouds(SHAPE, (60, 60), 205, octaves=6) - 0.74), 0, 0.85)
    return mix(mottle(SHAPE, (220, 218, 212), (176, 174, 168), 204, 120), (92, 82, 74), spots)


def mossy_asphalt() -> Picture:
    """Dark gravelly asphalt with moss."""
    moss = np.clip(2 * (clouds(SHAPE, (90, 90), 207, octaves=6) - 0.5), 0, 0.6)
    return mix(mottle(SHAPE, (104, 100, 92), (70, 68, 62), 206, 20, 0.16), (98, 122, 24), moss)


def rusty_steel() -> Picture:
    """Grey steel with brown rust running down."""
    rust = np.clip(3.5 * (clouds(SHAPE, (150, 60), 208, octaves=6) - 0.45), 0, 0.95)
    return mix(mottle(SHAPE, (150, 146, 148), (112, 108, 112), 209, 50), (136, 66, 32), rust)


def cracked_ice() -> Picture:
    """Blue-grey plates of ice with bright cracks."""
    border, number = cells(SHAPE, 60, 210)
    tone = np.random.default_rng(210).uniform(0, 0.8, 60)[number]
    picture = mix((62, 88, 92), (170, 196, 198), np.clip(0.6 * tone + 0.4 * clouds(SHAPE, (50, 50), 211), 0, 1))
    return mix(picture, (236, 246, 246), np.exp(-border / 4))


def grid_paving() -> Picture:
    """Grass growing in a concrete grid."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    bars = (x % 40 < 7) | (y % 40 < 7) | (x % 160 < 11) | (y % 160 < 11)
    picture = grass(SHAPE, (150, 170, 50), (88, 92, 26), 212, 6)
    picture[bars] = mottle(SHAPE, (214, 208, 170), (176, 170, 130), 213, 12, 0.08)[bars]
    return picture


def dark_checker() -> Picture:
    """Near-black and dark green squares with small white studs at the corners."""
    picture = tiles(SHAPE, [(20, 44, 36), (28, 27, 28)], (24, 30, 28), 80, 0, 214)
    for y in range(0, 481, 80):
        for x in range(0, 641, 80):
            cv2.rectangle(picture, (x - 4, y - 4), (x + 4, y + 4), (196, 204, 198), -1)
    return picture


def pastel_discs() -> Picture:
    """Discs of pale blue, lilac and green on light grey."""
    picture = canvas(*SHAPE, (196, 202, 204))
    colours = [(224, 248, 250), (222, 220, 246), (220, 246, 224)]
    generator = np.random.default_rng(215)
    for row, y in enumerate(range(0, 500, 52)):
        for x in range(30 * (row % 2), 680, 60):
            cv2.circle(picture, (x, y), 28, colours[int(generator.integers(3))], -1, cv2.LINE_AA)
    return picture


def lattice() -> Picture:
    """Crossing wooden slats in a frame."""
    picture = wood(SHAPE, (150, 92, 52), (116, 66, 34), 216)
    slat = wood((44, 900), (222, 158, 106), (186, 118, 70), 217)
    for angle, offsets in ((45, range(-320, 700, 100)), (-45, range(-320, 700, 100))):
        for i, offset in enumerate(offsets):
            turn = np.asarray(cv2.getRotationMatrix2D((450, 22), angle, 1.0), float)
            turn[:, 2] += [offset - 130 + 16 * (i % 2), 218]
            cv2.warpAffine(slat, turn, SHAPE[::-1], dst=picture, borderMode=cv2.BORDER_TRANSPARENT)
    frame = wood(SHAPE, (186, 118, 68), (150, 88, 46), 218)
    inside = np.zeros(SHAPE, bool)
    inside[44:436, 48:592] = True
    picture[~inside] = frame[~inside]
    return picture


def pastel_tartan() -> Picture:
    """White, pink, green and grey checks."""
    stripes = [
        (0.1, 0.2, (86, 80, 100)),
        (0.3, 0.36, (140, 200, 150)),
        (0.5, 0.64, (214, 70, 100)),
        (0.8, 0.84, (86, 80, 100)),
    ]
    return tartan(SHAPE, (236, 234, 240), stripes, 260)


def blue_white_tiles() -> Picture:
    """White tiles with blue rosettes."""
    tile = canvas(80, 80, (240, 242, 250))
    cv2.rectangle(tile, (0, 0), (79, 79), (150, 156, 214), 1)
    for x, y in ((0, 0), (79, 0), (0, 79), (79, 79), (40, 40)):
        for radius, thick in ((22, 3), (12, 2), (5, -1)):
            cv2.circle(tile, (x, y), radius, (44, 48, 176), thick, cv2.LINE_AA)
    for x, y in ((40, 8), (40, 72), (8, 40), (72, 40)):
        cv2.ellipse(tile, (x, y), (5, 9), 45.0, 0, 360, (84, 90, 206), -1, cv2.LINE_AA)
    return shade(np.tile(tile, (6, 8, 1)), 0.93 + 0.1 * clouds(SHAPE, (60, 60), 219))


def cobbles() -> Picture:
    """Rounded purple and blue cobbles on dark soil."""
    colours = [(150, 136, 182), (126, 130, 178), (172, 148, 172), (122, 142, 194)]
    return stones(SHAPE, colours, (42, 38, 46), 190, 220, gap=4, round_=0.6)


def gravel() -> Picture:
    """Grey and beige chips."""
    return stones(SHAPE, [(150, 150, 140), (120, 120, 114), (168, 160, 140)], (86, 80, 70), 900, 221, gap=2)


RED_BRICKS = ((178, 84, 58), (160, 70, 48), (192, 100, 70), (120, 62, 48))
BLUE_MARBLE = ((70, 110, 134), (110, 156, 176), (214, 214, 206), (166, 104, 60), (92, 132, 152), (50, 80, 104))

# In the order of the benchmark: texture i belongs to table picture i.
TEXTURES: tuple[Callable[[], Picture], ...] = (
    worn_brick,
    lambda: grass(SHAPE, (134, 178, 52), (84, 128, 24), 222, 9),
    diamond_tiles,
    bold_tartan,
    stained_concrete,
    lambda: wood(SHAPE[::-1], (206, 132, 74), (172, 98, 48), 223).transpose(1, 0, 2).copy(),
    mossy_asphalt,
    rusty_steel,
    lambda: mottle(SHAPE, (208, 182, 112), (178, 150, 84), 224, 90, 0.07),
    cracked_ice,
    grid_paving,
    lambda: bricks(SHAPE, [(14, 82, 54), (20, 96, 64), (16, 74, 50)], (150, 170, 158), (54, 160), 225, 4),
    dark_checker,
    pastel_discs,
    lattice,
    cobbles,
    gravel,
    lambda: swirl(SHAPE, BLUE_MARBLE, 226),
    lambda: bricks(SHAPE, RED_BRICKS, (196, 184, 172), (30, 78), 227, 6),
    pastel_tartan,
    blue_white_tiles,
)  # fmt: skip
