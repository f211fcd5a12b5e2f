"""Tools, a toy, a plant, a ball. Drawn in centimetres, lying or standing as the benchmark places them."""

from __future__ import annotations

import numpy as np

from vlapost.assets.procedural.noise import clouds, mix
from vlapost.assets.procedural.shapes import Floats, Part, arc, blob, block, cylinder, lathe, paint, straight, tube

GOLD = (206, 152, 52)
STEEL = (168, 172, 178)


def kitchen_shovel() -> list[Part]:
    """Brass turner along y: a slotted blade and a long handle that comes down to the table."""
    blade = block(5.6, 4.6, 0, 0.35).move(y=-4.4)
    slots = [block(0.5, 3.0, 0.3, 0.37).move(x=x, y=-4.4) for x in (-1.5, 0, 1.5)]
    t = np.linspace(0, 1, 16)
    path = np.stack([0 * t, -2.4 + 11 * t, 0.25 + 1.3 * np.sin(np.pi * np.minimum(t * 1.15, 1.0)) + 0.35 * t], -1)
    handle = tube(path, 0.38 + 0.42 * t**2)
    parts = [paint(blade, GOLD, shine=0.5), *(paint(slot, (60, 44, 20)) for slot in slots)]
    return [*parts, paint(handle, GOLD, piece=1, shine=0.5)]


def kitchen_spoon() -> list[Part]:
    """Golden ladle spoon along y: a round hollow bowl and a handle."""
    bowl = lathe([(0, 0), (1.5, 0.05), (2.2, 0.5), (2.45, 1.15), (2.3, 1.15), (1.4, 0.45), (0, 0.35)]).scale(y=1.25)
    t = np.linspace(0, 1, 14)
    path = np.stack([0 * t, 2.4 + 8.3 * t, 1.0 - 0.35 * t + 0.3 * np.sin(np.pi * t)], -1)
    handle = tube(path, 0.4 + 0.25 * t**3)
    return [paint(bowl.move(y=-1), GOLD, shine=0.5), paint(handle.move(y=-1), GOLD, piece=1, shine=0.5)]


def watering_can() -> list[Part]:
    """Standing zinc can: body, spout towards +x with a rose, handles over the top and behind."""
    zinc = mix((128, 134, 138), (172, 178, 180), clouds((128, 256), (24, 24), 21))
    body = lathe([(0, 0), (1.9, 0), (1.9, 0), (2.0, 0.2), (1.85, 3.2), (2.0, 3.4), (2.0, 3.4), (0, 3.3)])
    spout = tube(
        np.array([[1.6, 0, 0.8], [2.6, 0, 1.5], [3.8, 0, 2.7], [4.6, 0, 3.4]]), np.array([0.5, 0.42, 0.35, 0.35])
    )
    rose = cylinder(0.35, 0, 0.7, top=0.85).turn(y=50).move(x=4.5, z=3.3)
    over = tube(arc(0, 180, 1.7, 14), 0.22, segments=10).turn(x=90).move(z=3.2)
    behind = tube(arc(100, 260, 1.5, 14), 0.24, segments=10).turn(x=90).move(x=-2.1, z=1.9)
    return [
        paint(body, zinc, shine=0.4),
        paint(spout, zinc, piece=1, shine=0.4),
        paint(rose, (186, 150, 70), piece=1),
        paint(over, (110, 116, 120), piece=2),
        paint(behind, (110, 116, 120), piece=3),
    ]


def pipe() -> list[Part]:
    """Lying steel pipe with a flange at each end and a dark bore."""
    metal = mix((140, 144, 150), (196, 198, 202), clouds((128, 256), (200, 14), 22))
    flange = [(1.0, 0), (1.73, 0), (1.73, 0), (1.73, 0.75), (1.73, 0.75), (1.3, 0.8)]
    barrel = lathe([(1.3, 0.7), (1.3, 6.7)])
    start, end = lathe(flange), lathe(flange).turn(x=180).move(z=7.4)
    bores = [cylinder(1.0, 0.02, 0.3).turn(x=180).move(z=0.33), cylinder(1.0, 7.1, 7.38)]
    parts = [paint(part.turn(x=-90), metal, shine=0.5) for part in (barrel, start, end)]
    return [*parts, *(paint(bore.turn(x=-90), (20, 20, 22), piece=None) for bore in bores)]


def toy_bear() -> list[Part]:
    """Sitting teddy bear that looks towards -y."""
    fur = mix((150, 98, 52), (188, 132, 78), clouds((128, 128), (8, 8), 23))
    pale = (226, 190, 140)

    def ball(x: float, y: float, z: float, a: float, b: float, c: float) -> Part:
        return paint(blob(a, b, c, segments=20).move(x, y, z), fur, piece=0 if z < 3.2 else 1)

    parts = [
        ball(0, 0.2, 1.9, 1.45, 1.3, 1.9),
        ball(0, 0, 4.2, 1.35, 1.2, 1.2),
        *(ball(side * 1.05, 0.1, 5.2, 0.5, 0.32, 0.5) for side in (-1, 1)),
        *(ball(side * 1.5, -0.4, 2.4, 0.55, 0.6, 1.0) for side in (-1, 1)),
        *(ball(side * 1.15, -1.2, 0.6, 0.7, 0.9, 0.6) for side in (-1, 1)),
    ]
    details = [
        (blob(0.62, 0.5, 0.5).move(0, -1.05, 3.9), pale),
        (blob(0.85, 0.3, 1.1).move(0, -1.0, 1.9), pale),
        (blob(0.2, 0.16, 0.16).move(0, -1.52, 4.05), (20, 14, 12)),
        *((blob(0.15, 0.12, 0.15).move(side * 0.5, -1.08, 4.55), (20, 14, 12)) for side in (-1, 1)),
        *((blob(0.34, 0.1, 0.34).move(side * 1.05, -0.2, 5.2), pale) for side in (-1, 1)),
    ]
    return parts + [paint(surface, colour, piece=None) for surface, colour in details]


def plant() -> list[Part]:
    """Pot of clay with a bush of pointed leaves."""
    pot = lathe([(0, 0), (1.3, 0), (1.3, 0), (1.65, 2.4), (1.65, 2.4), (1.85, 2.4), (1.85, 2.9), (1.6, 2.9)])
    soil = cylinder(1.65, 2.5, 2.8)
    parts = [paint(pot, (184, 96, 58)), paint(soil, (60, 42, 28))]
    generator = np.random.default_rng(24)
    for i in range(26):
        length, tilt = 2.2 + 1.9 * generator.random(), 22 + 58 * generator.random()
        t = np.linspace(0, 1, 7)
        width = 0.42 * np.sin(np.pi * t**0.8) + 0.05
        leaf = tube(straight(length, 7), width, flat=0.25, segments=8).move(x=length / 2)
        leaf = leaf.turn(y=-tilt, z=i * 137.5).move(z=2.8)
        green = (30 + int(40 * generator.random()), 105 + int(60 * generator.random()), 45)
        parts.append(paint(leaf, green, piece=1))
    return parts


def golf_ball() -> list[Part]:
    """White ball with dimples."""
    dimples = np.full((128, 256, 3), 246, np.uint8)
    rows, columns = np.mgrid[:128, :256]
    near: Floats = ((rows % 12) - 6.0) ** 2 + ((columns + 6 * (rows // 12 % 2)) % 12 - 6.0) ** 2
    dimples[near < 11] = 214
    return [paint(blob(1.53, 1.53, 1.53), dimples, shine=0.4)]
