"""The 21 tables: what each picture shows, in the benchmark's order."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from vlapost.assets.procedural.noise import clouds, shade
from vlapost.assets.procedural.patterns import bricks, grass, marble, mottle, wood
from vlapost.assets.procedural.shapes import Colour, Picture
from vlapost.assets.procedural.tables import Look

TOP = (540, 1275)  # pixels of a table top's material: 1.5 per millimetre
WALL = (900, 900)
FLOOR = (700, 900)


RED, PINK, VIOLET = (236, 60, 50), (238, 90, 170), (150, 80, 220)
BLUE, GREEN, YELLOW = (40, 130, 235), (70, 180, 70), (250, 215, 50)


def _smooth(light: Colour, seed: int, depth: float = 0.93) -> Picture:
    """Plastic or paint: almost one colour."""
    dark: Colour = (int(light[0] * depth), int(light[1] * depth), int(light[2] * depth))
    return mottle(TOP, light, dark, seed, 500, 0.012)


def _wall(colour: Colour, seed: int, grain: float = 0.02) -> Picture:
    dark: Colour = (int(colour[0] * 0.9), int(colour[1] * 0.9), int(colour[2] * 0.9))
    return mottle(WALL, colour, dark, seed, 400, grain)


def _rainbow() -> Picture:
    """Ragged diagonal bands of bright colours."""
    bands = np.array([RED, PINK, VIOLET, BLUE, GREEN, YELLOW])
    y, x = np.mgrid[: TOP[0], : TOP[1]]
    jag = 90 * clouds(TOP, (150, 18), 316, octaves=3)
    index = ((x * 0.55 + y * 0.9 + jag) / 172).astype(int) % len(bands)
    return cv2.GaussianBlur(bands[index].astype(np.uint8), (9, 9), 0).astype(np.uint8)


def _windows(picture: Picture) -> Picture:
    """The reflection of a window on a polished top."""
    light = np.ones(TOP)
    for left in (420, 525, 660, 765):
        for top in (80, 250, 375):
            corners = np.array([(left, top), (left + 82, top + 15), (left + 67, top + 120), (left - 15, top + 105)])
            cv2.fillPoly(light, [corners], (1.06,))
    return shade(picture, np.asarray(cv2.GaussianBlur(light, (31, 31), 0), float))


def _floor(colour: Colour, seed: int) -> Picture:
    dark: Colour = (int(colour[0] * 0.85), int(colour[1] * 0.85), int(colour[2] * 0.85))
    return mottle(FLOOR, colour, dark, seed, 60)


def _lawn(seed: int) -> Picture:
    return grass(FLOOR, (84, 116, 46), (30, 48, 18), seed, 30, 16000)


def _boards(seed: int) -> Picture:
    return wood(FLOOR, (190, 124, 66), (140, 82, 38), seed, 70)


LOOKS: dict[str, Callable[[], Look]] = {
    "001_table_simpler": lambda: Look(
        wood(TOP, (186, 104, 66), (138, 66, 38), 301),
        (156, 84, 52),
        _floor((60, 66, 80), 401),
        _wall((112, 114, 120), 501, 0.12),
        _wall((128, 130, 136), 601, 0.12),
    ),
    "002_blue plastic table_1": lambda: Look(
        _smooth((112, 204, 244), 302),
        (128, 210, 246),
        _floor((150, 150, 144), 402),
        _wall((176, 176, 168), 502),
        glare=0.12,
    ),
    "003_TV cabinet_1": lambda: Look(
        wood(TOP, (50, 50, 53), (36, 36, 39), 303),
        (70, 70, 74),
        _floor((90, 90, 92), 403),
        _wall((214, 214, 216), 503),
        legs=None,
    ),
    "004_picnic table_1": lambda: Look(
        _smooth((186, 188, 212), 304),
        (206, 208, 226),
        bricks(FLOOR, [(150, 134, 118), (132, 120, 108)], (92, 96, 60), (60, 110), 404, 5),
        legs=(190, 190, 200),
    ),
    "005_dest_1": lambda: Look(
        _smooth((226, 200, 164), 305),
        (196, 164, 120),
        _floor((110, 96, 84), 405),
        _wall((34, 104, 122), 505),
        legs=None,
        thick=0.03,
    ),
    "006_table_1": lambda: Look(
        wood(TOP, (230, 194, 148), (204, 156, 104), 306, 170), (44, 42, 46), _boards(406), legs=(150, 88, 42)
    ),
    "007_yellow desk_1": lambda: Look(
        _smooth((252, 208, 36), 307, 0.95),
        (255, 222, 90),
        _floor((96, 110, 50), 407),
        _wall((16, 136, 156), 507),
        legs=None,
        glare=0.1,
    ),
    "008_table_2": lambda: Look(
        _windows(mottle(TOP, (232, 226, 214), (216, 206, 190), 308, 26, 0.03)),
        (178, 130, 56),
        _boards(408),
        legs=(170, 120, 50),
        thick=0.035,
        rim=0.007,
    ),
    "009_table_3": lambda: Look(
        _smooth((150, 150, 152), 309), (170, 170, 172), _floor((92, 92, 94), 409), _wall((72, 72, 76), 509)
    ),
    "010_table_4": lambda: Look(
        _smooth((234, 234, 232), 310, 0.96),
        (240, 240, 240),
        _floor((190, 184, 180), 410),
        _wall((158, 148, 142), 510),
        _wall((222, 222, 220), 610),
        legs=None,
        thick=0.05,
    ),
    "011_table_5": lambda: Look(
        marble(TOP, (242, 242, 242), (140, 142, 146), 311),
        (228, 228, 230),
        _floor((24, 24, 26), 411),
        _wall((30, 30, 32), 511),
    ),
    "012_pink table_1": lambda: Look(
        _smooth((248, 166, 184), 312),
        (250, 186, 200),
        _floor((200, 96, 120), 412),
        _wall((228, 116, 142), 512),
        _wall((214, 100, 128), 612),
        legs=None,
    ),
    "013_table_6": lambda: Look(
        _smooth((74, 74, 78), 313, 0.8),
        (98, 98, 102),
        _floor((150, 150, 152), 413),
        _wall((170, 170, 172), 513),
        glare=0.55,
    ),
    "014_grass table_1": lambda: Look(
        grass(TOP, (136, 196, 88), (62, 128, 44), 314, 14),
        (222, 186, 128),
        mottle(FLOOR, (124, 96, 66), (84, 62, 42), 414, 30, 0.12),
        legs=(206, 166, 104),
        thick=0.035,
        rim=0.006,
    ),
    "015_table_7": lambda: Look(
        wood(TOP, (124, 56, 32), (70, 28, 18), 315),
        (92, 40, 24),
        _floor((214, 208, 202), 415),
        _wall((238, 232, 226), 515),
        legs=(80, 34, 20),
    ),
    "016_coloful desk_1": lambda: Look(
        _rainbow(),
        (200, 120, 160),
        _floor((160, 150, 146), 416),
        _wall((198, 190, 186), 516),
        _wall((206, 200, 198), 616),
        legs=None,
    ),
    "017_glass table_1": lambda: Look(
        _smooth((86, 142, 138), 317, 0.72),
        (150, 204, 200),
        _floor((70, 70, 74), 417),
        _wall((56, 56, 60), 517),
        glare=0.16,
    ),
    "018_green table_1": lambda: Look(_smooth((160, 188, 144), 318), (236, 238, 232), _lawn(418), legs=(190, 192, 188)),
    "019_pink desk_1": lambda: Look(
        _smooth((214, 186, 240), 319),
        (220, 196, 244),
        _floor((150, 88, 48), 419),
        _wall((86, 178, 220), 519),
        _wall((206, 204, 212), 619),
        legs=None,
    ),
    "020_stone table_1": lambda: Look(
        marble(TOP, (226, 222, 214), (196, 190, 180), 320, 90, 0.2),
        (206, 200, 188),
        _floor((140, 142, 144), 420),
        _wall((146, 148, 150), 520),
        legs=(128, 70, 30),
    ),
    "021_dining table_2": lambda: Look(
        wood(TOP, (214, 136, 72), (172, 96, 42), 321, 360),
        (150, 84, 36),
        _floor((190, 190, 190), 421),
        _wall((208, 208, 210), 521),
        legs=(220, 220, 222),
    ),
}
