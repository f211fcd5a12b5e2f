"""Things to eat. Drawn in centimetres, lying as the benchmark places them."""

from __future__ import annotations

import cv2
import numpy as np

from vlapost.assets.procedural.noise import clouds, mix
from vlapost.assets.procedural.shapes import (
    Floats,
    Part,
    above,
    arc,
    blob,
    frill,
    from_above,
    lathe,
    lying,
    paint,
    smooth,
    straight,
    tube,
)


def carrot() -> list[Part]:
    """Tapered orange root, tip towards -x, with a tuft of green."""
    path = straight(9)
    t = np.linspace(0, 1, 24)
    radius = 0.25 + 1.35 * np.sqrt(t) * (1 - 0.9 * np.clip(t - 0.93, 0, 1) / 0.07 * 0.4)
    skin = mix((240, 120, 25), (205, 85, 10), clouds((64, 256), (4, 90), 1))
    parts = [paint(tube(lying(path, radius), radius), np.ascontiguousarray(skin.transpose(1, 0, 2)))]
    for angle, lift in ((-22, 0.2), (0, 0.55), (22, 0.3), (8, 0.8)):
        leaf = tube(straight(3.2, 8), np.array([0.25, 0.3, 0.4, 0.55, 0.6, 0.5, 0.35, 0.1]))
        leaf = leaf.move(x=1.6).turn(y=-35 * lift, z=angle).move(x=4.2, z=1.6)
        parts.append(paint(leaf, (40, 120, 35), piece=1))
    return parts


def bread() -> list[Part]:
    """Round loaf with cuts across its floury crust."""
    crust = mix((150, 92, 48), (196, 142, 88), clouds((256, 256), (60, 60), 2))
    flour = np.zeros((256, 256), np.uint8)
    for shift in (-60, 0, 60):
        cv2.line(flour, (128 + shift - 70, 30), (128 + shift + 70, 226), (255,), 9)
        cv2.line(flour, (128 + shift + 70, 30), (128 + shift - 70, 226), (255,), 9)
    crust = mix(crust, (236, 214, 176), cv2.GaussianBlur(flour, (9, 9), 0) / 255)
    return [paint(from_above(blob(2.2, 2.2, 1.45, square=0.85)), crust)]


def zucchini() -> list[Part]:
    """Slightly bowed, striped green, with a pale stem."""
    t = np.linspace(-1, 1, 24)
    radius = 1.25 * (1 - t**8 * 0.75) * (1 + 0.12 * t)
    stripes = 0.5 + 0.5 * np.sin(np.linspace(0, 2 * np.pi * 9, 128))[None, :] * np.ones((128, 1))
    skin = mix((28, 82, 30), (98, 148, 62), stripes * clouds((128, 128), (6, 6), 3))
    body = paint(tube(straight(10, bow=0.55), radius, flat=1.05), skin)
    stem = tube(straight(1.4, 6, bow=0.15), np.array([0.55, 0.45, 0.4, 0.4, 0.45, 0.5])).move(x=-5.5, y=0.05)
    return [body, paint(stem, (150, 165, 90))]


def banana() -> list[Part]:
    """Curved and yellow, with brown ends."""
    t = np.linspace(0, 1, 28)
    radius = 0.3 + 1.25 * np.clip(np.sin(np.pi * t), 0, 1) ** 0.55
    skin = mix((246, 204, 45), (206, 150, 30), clouds((256, 64), (60, 12), 4) ** 3)
    skin[:12] = (150, 130, 40)
    skin[-10:] = (84, 62, 28)
    path = lying(arc(212, 328, 6.4, 28), radius)
    pieces = [tube(path[a:b], radius[a:b]) for a, b in ((0, 11), (9, 19), (17, 28))]
    return [paint(tube(path, radius), skin, None), *(paint(piece, None, number) for number, piece in enumerate(pieces))]


def hamburger() -> list[Part]:
    """Bun, lettuce, patty, cheese, tomato, bun with sesame."""
    bun = mix((205, 132, 58), (176, 98, 36), clouds((256, 256), (50, 50), 5))
    seeds = np.random.default_rng(5).random((60, 2)) * 180 + 38
    for x, y in seeds.astype(int):
        cv2.ellipse(bun, (int(x), int(y)), (5, 3), float(x * y % 180), 0, 360, (250, 232, 190), -1)
    layers = [
        paint(lathe([(0, 0), (2.1, 0), (2.4, 0.4), (2.35, 0.9), (0, 0.9)]), (210, 150, 80)),
        paint(lathe([(0, 0.95), (2.45, 0.95), (2.5, 1.25), (2.45, 1.6), (0, 1.6)]), (88, 48, 26)),
        paint(lathe([(0, 2.05), (2.3, 2.05), (2.3, 2.3), (0, 2.3)]), (205, 40, 30)),
        paint(from_above(blob(2.4, 2.45, 1.75).move(z=2.3).bend(above(2.25))), bun),
    ]
    cheese = lathe([(0, 1.6), (3.1, 1.55), (3.1, 1.7), (0, 1.75)], 4).scale(0.82, 0.82, 1)
    lettuce = lathe([(0, 1.75), (2.5, 1.7), (2.6, 1.9), (2.4, 2.05), (0, 2.05)], 48).bend(frill(0.12, 12))
    return [*layers, paint(cheese, (250, 190, 40)), paint(lettuce, (96, 165, 50))]


def pepper() -> list[Part]:
    """Green bell pepper with four lobes and a stem."""
    profile = [(0, 0.3), (1.0, 0), (1.7, 0.5), (2.1, 1.8), (2.2, 3.0), (1.8, 3.9), (1.0, 4.1), (0.2, 3.7)]
    body = lathe(smooth(profile), 48).bend(frill(0.28, 4))
    skin = mix((52, 120, 30), (88, 158, 48), clouds((128, 128), (30, 30), 6))
    stem = lathe([(0.5, 3.6), (0.28, 4.0), (0.25, 4.7), (0.3, 4.8), (0, 4.8)], 12)
    return [paint(body, skin, shine=0.5), paint(stem, (120, 140, 60))]


def potato() -> list[Part]:
    """An uneven brown ellipsoid with dark eyes."""

    def lumpy(points: Floats) -> Floats:
        x, y, z = points.T
        factor = 1 + 0.06 * np.sin(1.7 * y + 1) + 0.05 * np.sin(2.1 * x + 0.5 * z) + 0.04 * np.cos(1.9 * z + y)
        return points * factor[:, None]

    skin = mix((178, 132, 72), (148, 100, 50), clouds((256, 256), (20, 20), 7))
    for x, y in (np.random.default_rng(7).random((40, 2)) * 256).astype(int):
        cv2.circle(skin, (int(x), int(y)), 2, (92, 62, 34), -1)
    return [paint(blob(2.3, 3.6, 2.1, square=0.9).bend(lumpy), skin)]


def baguette() -> list[Part]:
    """Long crusty loaf along y with slanting cuts."""
    crust = mix((196, 128, 58), (158, 92, 36), clouds((128, 512), (40, 40), 8))
    for x in range(40, 500, 85):
        cv2.ellipse(crust, (x, 64), (34, 11), 35, 0, 360, (240, 208, 150), -1)
    t = np.linspace(-1, 1, 24)
    surface = tube(straight(13.5, bow=0.25), 1.9 * np.sqrt(np.clip(1 - np.abs(t) ** 3.5, 0.02, 1)), flat=0.68)
    return [paint(from_above(surface).turn(z=90), crust)]


def onion() -> list[Part]:
    """Purple bulb along y with a dry tip."""
    profile = [(0.15, -2.6), (0.3, -2.5), (1.4, -2.1), (2.3, -1.0), (2.5, 0.1), (2.1, 1.2), (1.1, 2.1), (0.4, 2.6)]
    stripes = clouds((64, 256), (300, 5), 9)
    skin = mix((122, 28, 62), (190, 84, 112), stripes)
    skin[:9] = (196, 160, 110)
    bulb = lathe([*smooth(profile), (0.22, 3.2), (0.1, 3.6), (0, 3.6)], 40)
    return [paint(bulb.turn(x=-90), skin, shine=0.4)]
