"""Table pictures as the benchmark camera sees them: ray casting of a table top, legs, floor and walls.

Every picture shows the same table, so bodies stand on it the same way: its top lies at z = 0.87 m and covers
x = -0.347..0.005 m, y > -0.295 m of the world. Camera: 640x480, fx = fy = 623.588, cx = 319.501, cy = 239.545 pixels,
beside the robot base as in the paper's environment, or as at SimplerEnv's sink.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vlapost.assets.procedural.noise import shade
from vlapost.assets.procedural.shapes import Colour, Floats, Picture

SIZE = (480, 640)
FOCAL, CENTRE = 623.588, (319.501, 239.545)
BASE = Rotation.from_euler("z", 180, degrees=True)  # of the robot base in the world

TOP, FRONT, BACK, LEFT = 0.87, 0.005, -0.347, -0.295  # the table top, metres
WALL_X, WALL_Y = -0.40, -0.33  # walls, where there are any

Test = Callable[[Floats, Floats, Floats], NDArray[np.bool_]]  # of x, y, z in the world, each `[N]`
Paint = Callable[[Floats, Floats, Floats], Floats]  # of the same, to colours `[N, 3]`


@dataclass(frozen=True)
class View:
    """Where the camera is.

    eye: position, metres, world. axes: quaternion x, y, z, w of its axes (x forward, y left, z up) in the base's frame.
    """

    eye: tuple[float, float, float]
    axes: tuple[float, float, float, float]


BESIDE = View((0.147, 0.188, 1.230), (-0.09263245, 0.35892478, 0.23209205, 0.8992917))
SINK = View((0.130, 0.270, 1.240), (0.0782, -0.36434, -0.194741, -0.907313))


@dataclass(frozen=True)
class Look:
    """What one table picture shows.

    top, floor, back, left: materials of table top, floor and walls (None: no such wall).
    edge, legs: colours; legs None stands for a closed cabinet in the edge colour.
    thick: height of the slab in metres. glare: strength of a reflected lamp. rim: width of a border in metres.
    view: from where.
    """

    top: Picture
    edge: Colour
    floor: Picture
    back: Picture | None = None
    left: Picture | None = None
    legs: Colour | None = (40, 40, 42)
    thick: float = 0.02
    glare: float = 0.06
    rim: float = 0.0
    view: View = BESIDE


def photograph(look: Look, seed: int) -> Picture:
    """The picture `[480, 640, 3]` RGB of a table; twice the size is drawn, then halved to smooth the edges."""
    rays, eye = _rays(look.view), np.array(look.view.eye, np.float32)
    colour = np.zeros_like(rays)
    free = np.arange(len(rays))  # pixels whose surface is not found yet

    def fill(axis: int, place: float, inside: Test, paint: Paint) -> None:
        """Show the plane where coordinate `axis` is `place`, inside its outline, where nothing stands before it."""
        nonlocal free
        hit = (place - eye[axis]) / rays[free, axis]
        point = eye + rays[free] * hit[:, None]
        shown = (hit > 0) & inside(*point.T)
        colour[free[shown]] = paint(*point[shown].T)
        free = free[~shown]

    # from the nearest surface to the farthest: top, front of the slab, legs or cabinet, walls, floor
    fill(2, TOP, lambda x, y, z: (x > BACK) & (x < FRONT) & (y > LEFT), lambda x, y, z: _top(look, x, y))
    below = TOP - look.thick
    edge, legs = np.array(look.edge), np.array(look.legs or look.edge)
    fill(0, FRONT, lambda x, y, z: (z < TOP) & (z > below) & (y > LEFT), lambda x, y, z: _plain(0.8 * edge, x))
    left, right = (LEFT + 0.02, 9.0) if look.legs is None else (LEFT + 0.014, LEFT + 0.046)
    dim = 0.3 if look.legs is None else 1.0
    fill(
        *(0, FRONT - 0.02),
        lambda x, y, z: (z < below) & (z > 0) & (y > left) & (y < right),
        lambda x, y, z: legs * (dim + 0.4 * (1 - dim) * np.clip((z - 0.3) / 0.6, 0, 1))[:, None],
    )
    corner = -9.0 if look.left is None else WALL_Y
    if look.back is not None:
        back = look.back
        fill(0, WALL_X, lambda x, y, z: (z > 0) & (y > corner), lambda x, y, z: _wall(back, y, z))
    if look.left is not None:
        side = look.left
        fill(1, WALL_Y, lambda x, y, z: (z > 0) & (x > WALL_X), lambda x, y, z: _wall(side, x, z))
    fill(2, 0.0, lambda x, y, z: x < 99, lambda x, y, z: _floor(look, x, y))
    return _develop(colour.reshape(2 * SIZE[0], 2 * SIZE[1], 3), seed)


def _top(look: Look, x: Floats, y: Floats) -> Floats:
    """Material, lit from the front, with a border and the reflection of a lamp."""
    lit = 1.04 - 0.16 * np.clip((FRONT - x) / 0.35, 0, 1) - 0.10 * np.abs(y)
    colour = _material(look.top, x - BACK, y - LEFT, 1500) * lit[:, None]
    margin = np.minimum(np.minimum(x - BACK, FRONT - x), y - LEFT)
    colour[margin < max(look.rim, 0.0022)] = np.array(look.edge) * 1.05
    glare = look.glare * np.exp(-(((x + 0.07) / 0.11) ** 2) - ((y - 0.17) / 0.14) ** 2)
    return colour + 255 * glare[:, None]


def _plain(colour: Floats, x: Floats) -> Floats:
    """One colour for each of the points."""
    return np.broadcast_to(colour, (len(x), 3))


def _wall(picture: Picture, along: Floats, z: Floats) -> Floats:
    """A wall, darker just above the height of the table."""
    return _material(picture, along, z, 900) * (0.62 + 0.38 * np.clip((z - TOP) / 0.18, 0, 1))[:, None]


def _floor(look: Look, x: Floats, y: Floats) -> Floats:
    """The floor, darker under and near the table."""
    away = np.maximum(np.maximum(BACK - x, x - FRONT), LEFT - y)
    return _material(look.floor, x, y, 500) * (0.45 + 0.5 * np.clip(away / 0.5 + 0.3, 0, 1))[:, None]


def _material(picture: Picture, x: Floats, y: Floats, density: float) -> Floats:
    """Colours `[N, 3]` of a picture laid over (x, y) metres, its columns along y, mirrored where it ends.

    density: pixels per metre.
    """
    height, width = picture.shape[:2]
    row = (x * density).astype(np.int64) % (2 * height)
    column = (y * density).astype(np.int64) % (2 * width)
    row, column = np.minimum(row, 2 * height - 1 - row), np.minimum(column, 2 * width - 1 - column)
    return picture[row, column].astype(np.float32)


@cache
def _rays(view: View) -> Floats:
    """World directions `[N, 3]` through the pixel centres of a picture of twice the size, row by row."""
    v, u = np.mgrid[: 2 * SIZE[0], : 2 * SIZE[1]]
    right = (u / 2 - 0.25 - CENTRE[0]) / FOCAL
    down = (v / 2 - 0.25 - CENTRE[1]) / FOCAL
    directions = np.stack([np.ones_like(right), -right, -down], -1).reshape(-1, 3)
    return (directions @ (BASE * Rotation.from_quat(view.axes)).as_matrix().T).astype(np.float32)


def _develop(colour: Floats, seed: int) -> Picture:
    """Halve the size, darken the corners, add grain."""
    picture = cv2.resize(np.clip(colour, 0, 255).astype(np.uint8), SIZE[::-1], interpolation=cv2.INTER_AREA)
    y, x = np.meshgrid(np.linspace(-1, 1, SIZE[0]), np.linspace(-1, 1, SIZE[1]), indexing="ij")
    grain = np.random.default_rng(seed).normal(1, 0.008, SIZE)
    return shade(np.asarray(picture, np.uint8), (1.02 - 0.09 * (x**2 + y**2)) * grain)
