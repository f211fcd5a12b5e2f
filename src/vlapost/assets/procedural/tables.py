"""Table pictures as the benchmark camera sees them: ray casting of a table top, legs, floor and walls.

Every picture shows the same table, so bodies stand on it the same way: its top lies at z = 0.87 m and covers
x = -0.347..0.005 m, y > -0.295 m of the world. Camera: 640x480, fx = fy = 623.588, cx = 319.501, cy = 239.545 pixels,
beside the robot base at (0.147, 0.188, 1.230) m (paper's environment).
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
EYE = np.array([0.147, 0.188, 1.230], np.float32)
# camera axes (x forward, y left, z up) in the robot base frame, which is turned by 180 degrees about z in the world
CAMERA = Rotation.from_quat([-0.09263245, 0.35892478, 0.23209205, 0.8992917])
BASE = Rotation.from_euler("z", 180, degrees=True)

TOP, FRONT, BACK, LEFT, RIGHT = 0.87, 0.005, -0.347, -0.295, 1.0  # the table top, metres
WALL_X, WALL_Y = -0.40, -0.33  # walls, where there are any


@dataclass(frozen=True)
class Look:
    """What one table picture shows.

    top, floor, back, left: materials of table top, floor and walls (None: no such wall).
    edge, legs: colours; legs None stands for a closed cabinet in the edge colour.
    thick: height of the slab in metres. glare: strength of a reflected lamp. rim: width of a border in metres.
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


def photograph(look: Look, seed: int) -> Picture:
    """The picture `[480, 640, 3]` RGB of a table; twice the size is drawn, then halved to smooth the edges."""
    shape = (2 * SIZE[0], 2 * SIZE[1])
    rays = _rays(shape)
    colour = np.zeros((*shape, 3), np.float32)
    depth = np.full(shape, np.inf, np.float32)

    def put(hit: Floats, where: NDArray[np.bool_], paint: Floats) -> None:
        nearer = where & (hit > 0) & (hit < depth)
        depth[nearer] = hit[nearer]
        colour[nearer] = paint[nearer]

    # floor, darker under and near the table
    hit = -EYE[2] / rays[..., 2]
    x, y, _ = _at(rays, hit)
    beside = np.maximum(np.maximum(BACK - x, x - FRONT), LEFT - y)
    put(hit, hit > 0, _material(look.floor, x, y, 500) * (0.45 + 0.5 * np.clip(beside / 0.5 + 0.3, 0, 1))[..., None])

    for wall, axis, place in ((look.back, 0, WALL_X), (look.left, 1, WALL_Y)):
        if wall is not None:
            hit = (place - EYE[axis]) / rays[..., axis]
            point = _at(rays, hit)
            shadow = 0.62 + 0.38 * np.clip((point[2] - TOP) / 0.18, 0, 1)
            inside = (point[0] >= WALL_X - 1e-9) & (point[2] > 0)
            if look.left is not None:
                inside &= point[1] >= WALL_Y - 1e-9
            put(hit, inside, _material(wall, point[1 - axis], point[2], 900) * shadow[..., None])

    _put_under_table(look, rays, put)

    # front of the slab, then its top
    hit = (FRONT - EYE[0]) / rays[..., 0]
    x, y, z = _at(rays, hit)
    inside = (z < TOP) & (z > TOP - look.thick) & (y > LEFT) & (y < RIGHT)
    put(hit, inside, np.broadcast_to(np.array(look.edge) * 0.8, colour.shape))
    hit = (TOP - EYE[2]) / rays[..., 2]
    x, y, _ = _at(rays, hit)
    margin = np.minimum(np.minimum(x - BACK, FRONT - x), y - LEFT)
    lit = 1.04 - 0.16 * np.clip((FRONT - x) / 0.35, 0, 1) - 0.10 * np.abs(y)
    material = _material(look.top, x - BACK, y - LEFT, 1500) * lit[..., None]
    material[margin < max(look.rim, 0.0022)] = np.array(look.edge) * 1.05
    glare = look.glare * np.exp(-(((x + 0.07) / 0.11) ** 2) - ((y - 0.17) / 0.14) ** 2)
    put(hit, (margin > 0) & (y < RIGHT), material + 255 * glare[..., None])
    return _develop(colour, seed)


def _put_under_table(look: Look, rays: Floats, put: Callable[..., None]) -> None:
    """Legs at the front corners, or the front of a closed cabinet."""
    hit = (FRONT - 0.02 - EYE[0]) / rays[..., 0]
    _, y, z = _at(rays, hit)
    below = (z < TOP - look.thick) & (z > 0) & (y < RIGHT)
    if look.legs is None:
        fade = 0.28 + 0.4 * np.clip((z - 0.3) / 0.6, 0, 1)
        put(hit, below & (y > LEFT + 0.02), np.array(look.edge) * fade[..., None])
        return
    leg = below & (np.abs(y - LEFT - 0.03) < 0.016)
    put(hit, leg, np.broadcast_to(np.array(look.legs, float), rays.shape))


@cache
def _rays(shape: tuple[int, int]) -> Floats:
    """World directions `[h, w, 3]` through the pixel centres, of length 1 along the optical axis."""
    step = SIZE[0] / shape[0]
    v, u = np.mgrid[: shape[0], : shape[1]]
    right = ((u + 0.5) * step - 0.5 - CENTRE[0]) / FOCAL
    down = ((v + 0.5) * step - 0.5 - CENTRE[1]) / FOCAL
    directions = np.stack([np.ones(shape), -right, -down], -1)
    return (directions @ (BASE * CAMERA).as_matrix().T).astype(np.float32)


def _at(rays: Floats, hit: Floats) -> tuple[Floats, Floats, Floats]:
    """World coordinates of the points at distance `hit` along the rays."""
    point = EYE + rays * hit[..., None]
    return point[..., 0], point[..., 1], point[..., 2]


def _material(picture: Picture, x: Floats, y: Floats, density: float) -> Floats:
    """Colours of a picture laid over (x, y) metres, mirrored where it ends; `density` is in pixels per metre.

    The picture's columns run along y.
    """
    rows = np.clip(x * density, -30000, 30000).astype(np.float32)
    columns = np.clip(y * density, -30000, 30000).astype(np.float32)
    return cv2.remap(picture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT).astype(np.float32)


def _develop(colour: Floats, seed: int) -> Picture:
    """Halve the size, darken the corners, add grain."""
    picture = cv2.resize(np.clip(colour, 0, 255).astype(np.uint8), SIZE[::-1], interpolation=cv2.INTER_AREA)
    y, x = np.meshgrid(np.linspace(-1, 1, SIZE[0]), np.linspace(-1, 1, SIZE[1]), indexing="ij")
    grain = np.random.default_rng(seed).normal(1, 0.008, SIZE)
    return shade(np.asarray(picture, np.uint8), (1.02 - 0.09 * (x**2 + y**2)) * grain)
