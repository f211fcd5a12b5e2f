"""Flat things to put something on. Drawn in centimetres; the collision shape is a prism under the whole outline."""

from __future__ import annotations

import cv2
import numpy as np

from vlapost.assets.procedural.noise import canvas, clouds, mix, shade, write
from vlapost.assets.procedural.shapes import (
    Colour,
    Floats,
    Part,
    Picture,
    block,
    cylinder,
    disc,
    from_above,
    grid,
    join,
    lathe,
    paint,
    plate,
    tube,
)

SIZE = 256  # pixels of a square picture


def _slab(picture: Picture, side: Colour, width: float = 11, depth: float = 11, thick: float = 0.4) -> list[Part]:
    """Rectangular board with a picture on its upper face."""
    return [paint(block(width, depth, 0, thick), side), paint(plate(width, depth, thick * 1.002), picture)]


def _coin(picture: Picture, side: Colour, thick: float = 0.4) -> list[Part]:
    """Round board with a picture on its upper face."""
    return [paint(cylinder(5.5, 0, thick, segments=48), side), paint(disc(5.49, thick * 1.002, 48), picture)]


def _centred() -> tuple[Floats, Floats]:
    """(x, y) of every pixel, -1 to 1; each `[SIZE, SIZE]`."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE))
    return x, y


def _radius() -> Floats:
    """Distance of every pixel from the centre, 1 at the middle of an edge; `[SIZE, SIZE]`."""
    return np.hypot(*_centred())


def _sheet(picture: Picture, height: Floats, width: float, depth: float) -> list[Part]:
    """Thin closed sheet over a height field `[rows, columns]`, the picture seen from above."""
    rows, columns = height.shape
    x, y = np.meshgrid(np.linspace(-width / 2, width / 2, columns), np.linspace(-depth / 2, depth / 2, rows))
    top = grid(np.stack([x, y, height], -1))
    under = grid(np.stack([x, y, np.maximum(height - 0.08, 0)], -1)[:, ::-1])
    return [paint(from_above(join([top, under])), picture)]


def yellow_plate() -> list[Part]:
    """Pale yellow dinner plate with a rim."""
    profile = [(0, 0), (3.2, 0), (3.6, 0.1), (5.5, 0.55), (5.5, 0.6), (5.4, 0.6), (3.7, 0.22), (3.4, 0.16), (0, 0.16)]
    picture = canvas(64, 8, (206, 220, 140))
    picture[9:15] = picture[20:24] = (164, 178, 98)
    return [paint(lathe(profile, 48), picture, shine=0.3)]


def cloth() -> list[Part]:
    """Crumpled grey cloth."""
    height = 0.12 + 0.75 * clouds((24, 24), (9, 9), 31, octaves=2) ** 2
    creases = 1 - np.abs(2 * clouds((SIZE, SIZE), (90, 90), 32, octaves=2) - 1)
    picture = mix((190, 192, 196), (142, 144, 150), creases**3)
    picture[::4] = shade(picture[::4], np.full((SIZE // 4, SIZE), 0.94))
    for inset in (8, 12):
        cv2.rectangle(picture, (inset, inset), (SIZE - inset, SIZE - inset), (128, 130, 136), 1)
    return _sheet(picture, height, 11, 11)


def carpet() -> list[Part]:
    """Woven rug with red, cream and blue stripes."""
    colours = [(168, 34, 34), (226, 150, 70), (236, 220, 190), (120, 26, 44), (60, 70, 110), (206, 92, 50)]
    picture = canvas(SIZE, SIZE, (168, 34, 34))
    generator = np.random.default_rng(33)
    row = 0
    while row < SIZE:
        step = int(generator.integers(6, 20))
        picture[row : row + step] = colours[int(generator.integers(len(colours)))]
        row += step
    weave = 0.82 + 0.3 * clouds((SIZE, SIZE), (3, 6), 34, octaves=2)
    picture = shade(picture, weave)
    picture[:, :8] = picture[:, -8:] = (226, 214, 186)
    return _slab(picture, (150, 40, 40), 11, 9.4, 0.37)


def newspaper() -> list[Part]:
    """Front page: headline, picture, columns of grey lines."""
    page = canvas(360, 252, (236, 234, 226))
    page = write(page, "THE NEWS", 8, 46, 1.55, (20, 20, 20), 5)
    cv2.line(page, (8, 60), (244, 60), (20, 20, 20), 3)
    page = write(page, "ROBOT SERVES", 8, 92, 1.0, (25, 25, 25), 3)
    photo = mix((50, 50, 54), (190, 190, 190), clouds((84, 110), (40, 40), 35))
    page[108:192, 10:120] = photo
    for left, top in ((132, 108), (10, 206), (132, 206)):
        for y in range(top, 350 if top > 200 else 192, 8):
            cv2.line(page, (left, y), (left + 100 + (y * 37) % 14, y), (96, 96, 96), 2)
    return _slab(page, (220, 218, 210), 8.1, 11.6, 0.4)


def sheet_metal() -> list[Part]:
    """Brushed steel sheet with four rivets."""
    picture = mix((150, 154, 160), (206, 210, 214), clouds((SIZE, SIZE), (3, 300), 36, octaves=2))
    for x in (24, SIZE - 24):
        for y in (24, SIZE - 24):
            cv2.circle(picture, (x, y), 9, (110, 114, 120), -1)
            cv2.circle(picture, (x - 2, y - 2), 5, (226, 228, 230), -1)
    return _slab(picture, (140, 144, 150), 11, 9.4, 0.32)


def drawing_tablet() -> list[Part]:
    """Black tablet with a grey frame round its drawing area and a row of keys."""
    picture = canvas(SIZE, SIZE, (26, 26, 29))
    cv2.rectangle(picture, (48, 20), (238, 236), (64, 66, 72), 3)
    cv2.rectangle(picture, (54, 26), (232, 230), (38, 39, 44), -1)
    for y in range(48, 220, 30):
        cv2.rectangle(picture, (14, y), (34, y + 16), (90, 92, 98), -1)
    return _slab(picture, (20, 20, 22), 11.3, 8.4, 0.36)


def tomato_slice() -> list[Part]:
    """Red slice with pale core and seed chambers."""
    radius = _radius()
    picture = mix((226, 62, 48), (190, 24, 22), np.clip((radius - 0.75) / 0.2, 0, 1))
    for i in range(7):
        angle = 2 * np.pi * i / 7
        centre = (int(128 + 62 * np.cos(angle)), int(128 + 62 * np.sin(angle)))
        cv2.ellipse(picture, centre, (34, 19), float(np.degrees(angle)), 0, 360, (246, 138, 96), -1)
        for j in (-1, 0, 1):
            seed = (int(centre[0] + 14 * j * np.cos(angle)), int(centre[1] + 14 * j * np.sin(angle)))
            cv2.circle(picture, seed, 4, (250, 224, 150), -1)
    cv2.circle(picture, (128, 128), 20, (248, 196, 168), -1)
    return _coin(picture, (190, 24, 22))


def pizza() -> list[Part]:
    """Crust, cheese, salami, olives, basil."""
    picture = mix((244, 200, 84), (222, 128, 44), clouds((SIZE, SIZE), (26, 26), 37))
    generator = np.random.default_rng(37)
    for i, colour, size in ((13, (176, 38, 30), 17), (14, (44, 44, 36), 6), (16, (50, 120, 44), 7)):
        for angle, distance in generator.random((i, 2)) * [2 * np.pi, 92]:
            place = (int(128 + distance * np.cos(angle)), int(128 + distance * np.sin(angle)))
            cv2.circle(picture, place, size, colour, -1)
            cv2.circle(picture, place, max(size - 4, 2), tuple(min(c + 26, 255) for c in colour), -1)
    crust = lathe([(0, 0), (5.2, 0), (5.5, 0.25), (5.45, 0.5), (5.2, 0.62), (4.8, 0.5), (4.7, 0.38)], 48)
    return [paint(crust, (206, 142, 70)), paint(disc(4.75, 0.42, 48), picture)]


def flat_bowl() -> list[Part]:
    """Shallow red bowl."""
    profile = [(0, 0), (3.0, 0), (4.6, 0.4), (5.5, 1.1), (5.5, 1.19), (5.35, 1.19), (4.4, 0.55), (3.0, 0.2), (0, 0.2)]
    picture = canvas(64, 8, (196, 28, 30))
    picture[10:16] = (150, 14, 18)
    return [paint(lathe(profile, 48), picture, shine=0.5)]


def gramophone_disk() -> list[Part]:
    """Black record with grooves and a red label."""
    radius = _radius()
    groove = 24 + 22 * (np.sin(radius * 150) > 0.4) * (radius < 0.95)
    picture = np.repeat(groove[..., None], 3, -1).astype(np.uint8)
    picture[radius < 0.34] = (186, 30, 34)
    picture[(radius > 0.2) & (radius < 0.22)] = (240, 200, 120)
    picture[radius < 0.04] = (230, 230, 230)
    return _coin(picture, (18, 18, 20), 0.27)


def frying_pan() -> list[Part]:
    """Black pan with a shiny bottom and a short handle towards +y."""
    picture = mix((38, 38, 41), (70, 70, 75), np.clip(1 - np.abs(_radius() - 0.5) * 3, 0, 1))
    profile = [(0, 0), (4.6, 0), (5.3, 0.7), (5.5, 0.8), (5.5, 0.85), (5.3, 0.85), (4.7, 0.2)]
    handle = tube(np.array([[0, 5.2, 0.5], [0, 5.8, 0.55], [0, 6.6, 0.6]]), np.array([0.55, 0.5, 0.5]), flat=0.5)
    return [
        paint(lathe(profile, 48), (26, 26, 28), shine=0.4),
        paint(disc(4.75, 0.2, 48), picture),
        paint(handle, (150, 104, 60), piece=1),
    ]


def mouse_pad() -> list[Part]:
    """Blue pad with rounded corners and paler waves."""
    y, x = np.mgrid[:SIZE, :SIZE]
    waves = np.sin(y / 9 + 2.2 * np.sin(x / 26)) > 0.55
    picture = mix((50, 118, 190), (120, 180, 226), waves * 0.8)
    angle = np.linspace(0, 2 * np.pi, 65)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], -1)
    ring = 5.5 * np.sign(circle) * np.abs(circle) ** 0.45
    up = np.array([0, 0, 0.6])
    rings = [ring * 0, ring, ring, ring + up, ring + up, ring * 0 + up]
    return [paint(from_above(grid(np.stack(rings))), picture)]


def cutting_board() -> list[Part]:
    """Wooden board with a juice groove and a hole to hang it by."""
    grain = clouds((SIZE, SIZE), (8, 200), 38)
    picture = mix((150, 92, 50), (202, 146, 92), grain)
    cv2.rectangle(picture, (16, 18), (240, 238), (112, 66, 34), 4)
    cv2.circle(picture, (222, 128), 8, (60, 36, 20), -1)
    return _slab(picture, (130, 78, 42), 12.6, 11, 0.27)


def chess_board() -> list[Part]:
    """Eight by eight fields in a dark frame."""
    y, x = np.mgrid[:SIZE, :SIZE]
    picture = mix((24, 22, 20), (240, 236, 224), ((x - 12) // 29 + (y - 12) // 29) % 2)
    for edge in (slice(0, 12), slice(SIZE - 12, SIZE)):
        picture[edge] = picture[:, edge] = (96, 60, 34)
    return _slab(picture, (80, 48, 26), thick=0.6)


def manhole_cover() -> list[Part]:
    """Cast iron with rings and radial ribs."""
    radius = _radius()
    x, y = _centred()
    spokes = np.sin(np.arctan2(y, x) * 20) > 0.2
    raised = np.where((radius > 0.45) & (radius < 0.85), spokes, np.abs(np.sin(radius * 22)) > 0.75)
    picture = mix((66, 62, 60), (136, 130, 124), raised * (0.6 + 0.4 * clouds((SIZE, SIZE), (8, 8), 39)))
    return _coin(write(picture, "CITY", 92, 138, 1.0, (170, 164, 156), 3), (60, 56, 54))


def envelope() -> list[Part]:
    """Brown paper envelope with its flap and a red seal."""
    picture = mix((196, 158, 108), (212, 176, 126), clouds((SIZE, SIZE), (20, 20), 40))
    for start, end in (((0, 0), (128, 140)), ((255, 0), (128, 140)), ((0, 255), (104, 120)), ((255, 255), (152, 120))):
        cv2.line(picture, start, end, (140, 104, 62), 3, cv2.LINE_AA)
    cv2.circle(picture, (128, 138), 20, (170, 26, 30), -1)
    return _slab(picture, (180, 142, 94), 11, 8, 0.3)


def notepad() -> list[Part]:
    """Ruled white page with a red margin and a spiral along one edge."""
    picture = canvas(SIZE, SIZE, (248, 248, 244))
    for x in range(52, 250, 20):
        cv2.line(picture, (x, 4), (x, 251), (120, 160, 214), 2)
    cv2.line(picture, (0, 214), (255, 214), (216, 70, 70), 2)
    picture[:, :30] = (52, 54, 62)
    for y in range(10, 250, 16):
        cv2.circle(picture, (20, y), 5, (220, 222, 226), -1)
    return _slab(picture, (230, 230, 226), 11, 8, 0.4)
