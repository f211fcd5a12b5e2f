"""The pretraining world: bodies and tables drawn at random, what many robots' data are to a large model.

Every body and table follows from its kind and number alone. None is taken from the benchmark: shapes come from a dozen
families of solids with random proportions, colours and patterns, tables from random materials. Bodies keep to sizes
that the gripper can hold (it opens to 52 mm) and that the benchmark's receptacles have.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from vlapost.assets.procedural.catalogue import Entry
from vlapost.assets.procedural.noise import cells, clouds, mix
from vlapost.assets.procedural.patterns import bricks, grass, marble, mottle, stones, swirl, tartan, tiles, wood
from vlapost.assets.procedural.shapes import (
    Colour,
    Picture,
    Surface,
    arc,
    blob,
    block,
    cylinder,
    disc,
    join,
    lathe,
    paint,
    plate,
    smooth,
    straight,
    tube,
)
from vlapost.assets.procedural.tables import Look

SEED = 2505
OBJECT, RECEPTACLE, TABLE = range(3)  # kinds
PICTURE = (128, 192)  # pixels of a body's picture
TOP, WALL = (540, 1275), (700, 900)  # pixels of a table's materials
HUES = ("red", "orange", "yellow", "green", "green", "teal", "blue", "blue", "purple", "pink", "pink", "red")
Generator = np.random.Generator


def object_(index: int) -> Entry:
    """Something to grasp."""
    rng = np.random.default_rng([SEED, OBJECT, index])
    family = FAMILIES[index % len(FAMILIES)]
    surfaces, size = family.draw(rng)
    colours = [_colour(rng) for _ in range(3)]
    parts = [
        paint(surface, _pattern(rng, colours[i % 3], colours[(i + 1) % 3]), piece=i, shine=rng.uniform(0, 0.5))
        for i, surface in enumerate(surfaces)
    ]
    x, y, z = np.array(size) / 200 * [1, 1, 2]  # half extents, metres, and the height
    if rng.random() < 0.5:  # long things lie along either axis
        x, y = y, x
        parts = [replace(part, surface=part.surface.turn(z=90)) for part in parts]
    name = f"{_name(colours[0])} {family.name}"
    return Entry(f"{index:03d}_{name}", name, rng.uniform(500, 1500), lambda: parts, (-x, -y, -z / 2), (x, y, z / 2))


def receptacle(index: int) -> Entry:
    """Something flat to put it on."""
    rng = np.random.default_rng([SEED, RECEPTACLE, index])
    colour = _colour(rng)
    picture = np.asarray(cv2.resize(_pattern(rng, colour, _colour(rng)), (256, 256)), np.uint8)
    width, depth, thick = rng.uniform(9.5, 12.5), rng.uniform(9.5, 12.5), rng.uniform(0.3, 1.1)
    word = ("plate", "mat", "dish", "board")[index % 4]
    if word in ("plate", "dish"):
        width = depth = rng.uniform(10, 12.5)
        rim = rng.uniform(0.5, 0.8)
        profile = [(0, 0), (rim, 0), (1, 1), (0.97, 1), (rim, 0.35), (0, 0.3)]
        parts = [paint(lathe([(5 * r, z) for r, z in profile], 48), _shift(colour, 0.8)), paint(disc(3, 0.36), picture)]
    else:
        parts = [paint(block(10, 10, 0, 1), _shift(colour, 0.8)), paint(plate(10, 10, 1.004), picture)]
    low, high = (-width / 200, -depth / 200, 0.0), (width / 200, depth / 200, thick / 100)
    name = f"{_name(colour)} {word}"
    return Entry(f"{index:03d}_{name}", name, rng.uniform(1000, 5000), lambda: parts, low, high)


def table(index: int) -> Look:
    """What a table picture shows."""
    rng = np.random.default_rng([SEED, TABLE, index])
    walls = rng.random(2) < (0.75, 0.5)
    return Look(
        top=_material(rng, TOP, index),
        edge=_colour(rng, pale=True),
        floor=_material(rng, WALL, int(rng.integers(11))),
        back=_material(rng, WALL, 0) if walls[0] else None,
        left=_material(rng, WALL, 0) if walls[1] else None,
        legs=_colour(rng) if rng.random() < 0.6 else None,
        thick=rng.uniform(0.012, 0.05),
        glare=rng.uniform(0, 0.4) ** 2,
        rim=max(0.0, rng.uniform(-0.008, 0.008)),
    )


# ---- families of solids: drawn in any unit, stretched to the returned size (x, y, z) in centimetres


@dataclass(frozen=True)
class Family:
    """A kind of solid. draw: random generator -> surfaces, each convex for collision, and size."""

    name: str
    draw: Callable[[Generator], tuple[list[Surface], tuple[float, float, float]]]


Drawn = tuple[list[Surface], tuple[float, float, float]]


def _box(rng: Generator) -> Drawn:
    return [block(1, 1, 0, 1)], (rng.uniform(2.2, 9), rng.uniform(2.2, 4.6), rng.uniform(2, 5.5))


def _ball(rng: Generator) -> Drawn:
    side = rng.uniform(2.6, 4.8)
    return [blob(1, 1, 1, rng.uniform(0.6, 1.0))], (side, side, side)


def _egg(rng: Generator) -> Drawn:
    width = rng.uniform(2.4, 4.6)
    return [blob(1, 1, 1, rng.uniform(0.6, 1.1))], (rng.uniform(1.1, 2.2) * width, width, rng.uniform(0.7, 1) * width)


def _can(rng: Generator) -> Drawn:
    width = rng.uniform(2.4, 4.4)
    return [cylinder(1, 0, 1, top=rng.uniform(0.7, 1.0))], (width, width, rng.uniform(2.5, 7))


def _cup(rng: Generator) -> Drawn:
    foot, width = rng.uniform(0.55, 0.9), rng.uniform(2.6, 4.6)
    return [lathe([(0, 0), (foot, 0), (foot, 0), (1, 2), (0.88, 2), (0, 1.2)])], (width, width, rng.uniform(2.8, 6.5))


def _roll(rng: Generator) -> Drawn:
    width = rng.uniform(2.2, 4)
    return [cylinder(1, 0, 2, top=rng.uniform(0.4, 1)).turn(y=90)], (rng.uniform(4, 11), width, width)


def _bottle(rng: Generator) -> Drawn:
    profile = [(0, 0), (1, 0), *zip(rng.uniform(0.7, 1.1, 3), (0.8, 1.8, 2.8)), (0.4, 3.6), (0.35, 4.4), (0, 4.4)]
    width, length = rng.uniform(2.2, 4), rng.uniform(6, 12)
    surface = lathe(smooth([(float(r), float(z)) for r, z in profile]))
    if rng.random() < 0.5:
        return [surface.turn(y=90)], (length, width, width)
    return [surface], (width, width, min(length, 8.0))


def _stick(rng: Generator) -> Drawn:
    """Bent and tapered, like a root or a fruit."""
    t = np.linspace(0, 1, 24)
    radius = 0.5 * np.sin(np.pi * (0.06 + 0.88 * t)) ** rng.uniform(0.3, 1) * (1 - rng.uniform(0, 0.6) * t)
    path = straight(6, 24, bow=rng.uniform(0, 1.4))
    return [tube(path, radius)], (rng.uniform(7, 13), rng.uniform(2.4, 4.5), rng.uniform(1.8, 3))


def _bun(rng: Generator) -> Drawn:
    width = rng.uniform(3, 5)
    layers = [blob(1, 1, 0.5).move(z=0.5), cylinder(1.05, 0.3, 0.6)]
    return layers, (width, rng.uniform(0.85, 1) * width, rng.uniform(0.6, 0.95) * width)


def _tool(rng: Generator) -> Drawn:
    """A head on a handle."""
    heads = (block(1.6, 2.4, 0, 0.9), blob(1.2, 1, 0.5).move(z=0.5), cylinder(1.1, 0, 0.5))
    head = heads[int(rng.integers(3))].move(x=-2.6)
    handle = tube(straight(5), 0.3 + 0.1 * rng.random()).move(x=0.6, z=0.45)
    return [head, handle], (rng.uniform(8, 14), rng.uniform(2.5, 5), rng.uniform(1.6, 3))


def _doll(rng: Generator) -> Drawn:
    """Balls on top of each other, with arms."""
    arms = [blob(0.3, 0.3, 0.6).move(x=side * 0.95, z=1.2) for side in (-1, 1)]
    head = blob(0.75, 0.75, 0.75).move(z=2.4)
    width = rng.uniform(2.8, 4.6)
    return [blob(1, 0.9, 1).move(z=1), head, join(arms)], (width, rng.uniform(0.8, 1) * width, rng.uniform(4, 7))


def _jug(rng: Generator) -> Drawn:
    """A vessel with a handle."""
    handle = tube(arc(-80, 80, 0.8, 12), 0.16, segments=10).turn(x=90).move(x=0.9, z=1.1)
    width = rng.uniform(2.6, 4)
    return [cylinder(1, 0, 2.2, top=rng.uniform(0.75, 1)), handle], (1.4 * width, width, rng.uniform(3, 6.5))


FAMILIES = (
    Family("box", _box),
    Family("ball", _ball),
    Family("egg", _egg),
    Family("block", _can),
    Family("beaker", _cup),
    Family("roll", _roll),
    Family("flask", _bottle),
    Family("stick", _stick),
    Family("bun", _bun),
    Family("tool", _tool),
    Family("doll", _doll),
    Family("jug", _jug),
)


# ---- looks


def _colour(rng: Generator, pale: bool = False) -> Colour:
    """Any colour; greys too."""
    saturation = rng.beta(1.2, 1.2) * (0.5 if pale else 1.0)
    r, g, b = colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(0.6 if pale else 0.15, 1.0))
    return int(255 * r), int(255 * g), int(255 * b)


def _name(colour: Colour) -> str:
    """The word for a colour."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    if value < 0.25:
        return "black"
    if saturation < 0.2:
        return "white" if value > 0.75 else "grey"
    return "brown" if HUES[int(hue * 12)] == "orange" and value < 0.65 else HUES[int(hue * 12)]


def _shift(colour: Colour, factor: float) -> Colour:
    r, g, b = (min(255, int(c * factor)) for c in colour)
    return r, g, b


def _pattern(rng: Generator, first: Colour, second: Colour) -> Picture:
    """What a body is painted with."""
    kind, seed = int(rng.integers(10)), int(rng.integers(1 << 30))
    h, w = PICTURE
    y, x = np.mgrid[:h, :w]
    if kind < 3:
        return mix(first, _shift(first, 0.8), clouds(PICTURE, (60, 60), seed))
    if kind < 5:
        return mix(first, second, clouds(PICTURE, (24, 24), seed))
    if kind == 5:
        return mix(first, second, (y // int(rng.integers(8, 40)) % 2).astype(float))
    if kind == 6:
        return mix(first, second, (x // int(rng.integers(8, 40)) % 2).astype(float))
    if kind == 7:
        middle = np.abs(y / h - rng.uniform(0.3, 0.7)) < rng.uniform(0.08, 0.3)
        return mix(first, second, middle.astype(float))
    if kind == 8:
        return mix(first, second, (cells(PICTURE, 40, seed)[0] < 3).astype(float))
    return mix(first, second, (np.hypot(x % 24 - 12, y % 24 - 12) < 7).astype(float))


def _material(rng: Generator, shape: tuple[int, int], kind: int) -> Picture:
    """A surface; `kind` modulo 11 chooses the material."""
    seed, pale = int(rng.integers(1 << 30)), bool(rng.random() < 0.5)
    a, b, c = (_colour(rng, pale) for _ in range(3))
    size = float(rng.uniform(30, 300))
    makers: Sequence[Callable[[], Picture]] = (
        lambda: mottle(shape, a, _shift(a, 0.85), seed, 400, rng.uniform(0, 0.04)),
        lambda: wood(shape, a, _shift(a, 0.65), seed, int(rng.integers(0, 3)) * 120),
        lambda: mottle(shape, a, b, seed, size),
        lambda: marble(shape, a, b, seed, size),
        lambda: mottle(shape, a, _shift(a, 0.93), seed, 500, 0.012),
        lambda: tiles(shape, [a, b], c, int(rng.integers(40, 160)), int(rng.integers(0, 6)), seed),
        lambda: stones(shape, [a, b], c, int(rng.integers(60, 400)), seed),
        lambda: bricks(shape, [a, b], c, (int(rng.integers(30, 90)), int(rng.integers(60, 200))), seed),
        lambda: swirl(shape, [a, b, c], seed),
        lambda: tartan(shape, a, [(0.1, 0.3, b), (0.6, 0.7, c)], int(rng.integers(120, 400))),
        lambda: grass(shape, a, _shift(a, 0.6), seed, float(rng.uniform(8, 24)), 20000),
    )
    return makers[kind % len(makers)]()
