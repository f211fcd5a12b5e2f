"""Bottles, cans, cups and glasses. Drawn in centimetres, lying or standing as the benchmark places them."""

from __future__ import annotations

import cv2
import numpy as np

from vlapost.assets.procedural.noise import canvas, clouds, mix, write
from vlapost.assets.procedural.shapes import Colour, Part, Picture, Surface, arc, cylinder, disc, lathe, paint, tube

WHITE = (245, 245, 245)
STEEL = (190, 192, 196)


def _lying(surface: Surface) -> Surface:
    """The z axis laid along y."""
    return surface.turn(x=-90)


def _label(colour: Colour, text: str, ink: Colour, size: float = 3.0) -> Picture:
    """Wrap-round label, 256x512, with the same word three times so that one always faces the camera."""
    picture = canvas(256, 512, colour)
    for x in (10, 180, 350):
        picture = write(picture, text, x, 160, size, ink, 8)
    return picture


def plastic_bottle() -> list[Part]:
    """Lying water bottle: pale blue, white label with blue stripes, blue cap."""
    label = canvas(128, 256, WHITE)
    for y in (14, 100):
        label[y : y + 14] = (40, 90, 200)
    label = write(label, "WATER", 20, 80, 1.4, (30, 110, 210), 4)
    body = [(0, 0), (1.6, 0), (1.9, 0.4), (1.75, 1.1), (1.9, 1.8), (1.75, 2.5), (1.9, 3.2)]
    neck = [(1.9, 7.4), (1.85, 8.2), (1.4, 9.6), (0.85, 10.6), (0.8, 11.2)]
    return [
        paint(_lying(lathe(body)), (170, 212, 240), shine=0.6),
        paint(_lying(lathe([(1.93, 3.2), (1.93, 7.4)])), label),
        paint(_lying(lathe(neck)), (170, 212, 240), shine=0.6),
        paint(_lying(cylinder(0.95, 11.0, 12.2)), (30, 70, 190)),
    ]


def _can(height: float, radius: float) -> tuple[Surface, Surface, Surface]:
    """Wall, bottom and top of a standing drinks can."""
    wall = lathe([(radius * 0.86, 0.15), (radius, 0.5), (radius, height - 0.55), (radius * 0.84, height - 0.12)])
    bottom = lathe([(0, 0.25), (radius * 0.8, 0), (radius * 0.86, 0.16)])
    top = lathe(
        [(radius * 0.85, height - 0.14), (radius * 0.85, height), (radius * 0.78, height - 0.12), (0, height - 0.12)]
    )
    return wall, bottom, top


def seven_up_can() -> list[Part]:
    """Lying green can with a red dot and its name."""
    label = mix((0, 130, 60), (30, 170, 90), clouds((256, 512), (200, 60), 11))
    label[:20] = label[-20:] = (220, 225, 225)
    for x in (20, 190, 360):
        cv2.circle(label, (x + 62, 120), 52, (225, 35, 40), -1)
        label = write(label, "7up", x, 150, 2.6, WHITE, 10)
    wall, bottom, top = _can(6.1, 1.65)
    return [paint(_lying(wall), label, shine=0.6), paint(_lying(bottom), STEEL), paint(_lying(top), STEEL)]


def nonstop_can() -> list[Part]:
    """Standing slim black can."""
    label = canvas(512, 512, (22, 22, 26))
    label[:24] = label[-24:] = (200, 170, 60)
    for x in (0, 172, 344):
        cv2.line(label, (x + 10, 440), (x + 150, 330), (225, 60, 40), 16)
        label = write(label, "NON", x + 20, 170, 2.4, WHITE, 9)
        label = write(label, "STOP", x + 6, 265, 2.2, (240, 190, 40), 9)
    wall, bottom, top = _can(8.5, 1.74)
    return [paint(wall, label, shine=0.6), paint(bottom, STEEL), paint(top, STEEL)]


def ketchup_bottle() -> list[Part]:
    """Lying red squeeze bottle with a pointed white nozzle."""
    label = _label((250, 240, 225), "KETCHUP", (190, 20, 20), 1.1)
    cv2.circle(label, (256, 215), 26, (210, 30, 30), -1)
    red = (200, 22, 20)
    return [
        paint(_lying(lathe([(0, 0), (0.9, 0), (1.04, 0.3), (1.04, 1.4)])), red, shine=0.5),
        paint(_lying(lathe([(1.05, 1.4), (1.05, 4.2)])), label),
        paint(_lying(lathe([(1.04, 4.2), (1.04, 5.2), (0.6, 6.0)])), red, shine=0.5),
        paint(_lying(lathe([(0.72, 5.8), (0.72, 6.6), (0.72, 6.6), (0.2, 8.1), (0, 8.1)])), WHITE),
    ]


def bbq_sauce() -> list[Part]:
    """Standing flat bottle of dark sauce with an orange label."""
    label = canvas(256, 512, (232, 120, 30))
    label[:14] = label[-14:] = (120, 20, 10)
    for x in (20, 150, 280, 410):
        label = write(label, "BBQ", x, 130, 1.6, (70, 10, 5), 7)
        label = write(label, "SAUCE", x, 200, 0.95, WHITE, 3)
    dark = (58, 22, 12)
    return [
        paint(lathe([(0, 0), (2.5, 0), (2.65, 0.3), (2.65, 1.0)]).scale(y=0.61), dark, shine=0.6),
        paint(lathe([(2.66, 1.0), (2.66, 3.6)]).scale(y=0.61), label),
        paint(lathe([(2.65, 3.6), (2.6, 4.1), (1.9, 4.9), (1.0, 5.6), (0.9, 6.2)]).scale(y=0.62), dark, shine=0.6),
        paint(cylinder(1.0, 6.1, 7.7), (170, 25, 15), piece=1),
    ]


def fast_food_cup() -> list[Part]:
    """Standing red paper cup with white band, lid and straw."""
    label = canvas(256, 256, (205, 20, 25))
    label[96:176] = WHITE
    for x in (8, 95, 180):
        label = write(label, "COLA", x, 150, 1.0, (205, 20, 25), 4)
    straw = tube(np.array([[0.3, 0, 4.2], [0.3, 0, 5.0], [0.3, 0, 5.4]]), 0.12, segments=8)
    return [
        paint(lathe([(0, 0), (0.85, 0), (0.85, 0), (1.18, 4.2)]), label),
        paint(lathe([(1.24, 4.2), (1.24, 4.45), (1.0, 4.5), (0.95, 4.7), (0, 4.7)]), WHITE),
        paint(straw, (240, 60, 60), piece=1),
    ]


def travel_cup() -> list[Part]:
    """Lying steel mug with a blue grip, black lid and a handle towards +x."""
    handle = tube(arc(-75, 75, 2.0), 0.38, flat=0.9).move(x=1.4, y=-0.1)
    return [
        paint(_lying(lathe([(0, 0), (1.75, 0), (1.75, 0), (1.85, 1.2)])).move(y=-4), STEEL, shine=0.6),
        paint(_lying(lathe([(1.9, 1.2), (2.0, 6.2)])).move(y=-4), (40, 95, 170), shine=0.4),
        paint(_lying(lathe([(1.95, 6.2), (2.0, 6.9)])).move(y=-4), STEEL, shine=0.6),
        paint(_lying(lathe([(2.05, 6.9), (2.05, 7.8), (1.2, 8.4), (0, 8.4)])).move(y=-4), (30, 30, 34)),
        paint(handle, (30, 30, 34), piece=1),
    ]


def champagne_glass() -> list[Part]:
    """Standing flute, drawn as opaque grey-blue glass with a golden wine in it."""
    glass = (176, 196, 205)
    foot = lathe([(0, 0), (1.4, 0), (1.42, 0.15), (0.4, 0.4), (0.17, 0.8), (0.16, 3.6)])
    bowl = lathe([(0.16, 3.5), (0.6, 3.9), (1.1, 4.8), (1.3, 6.0), (1.25, 8.5), (1.25, 8.5), (1.12, 8.5), (1.12, 7.7)])
    return [
        paint(foot, glass, shine=0.7),
        paint(bowl, glass, piece=1, shine=0.7),
        paint(disc(1.15, 7.7), (226, 190, 90), piece=1),
    ]


def cup() -> list[Part]:
    """Standing red mug with a handle towards +x and coffee in it."""
    red = (190, 28, 38)
    outside = lathe([(0, 0), (1.75, 0), (1.9, 0.15), (2.2, 3.7), (2.2, 3.7), (2.0, 3.7), (1.95, 3.0)])
    handle = tube(arc(-85, 85, 1.2), 0.27).turn(x=90).move(x=2.0, z=1.9)
    return [
        paint(outside, red, shine=0.5),
        paint(disc(1.96, 3.05), (70, 40, 22)),
        paint(handle, red, piece=1, shine=0.5),
    ]
