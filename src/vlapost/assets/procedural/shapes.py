"""Surfaces and parts that bodies are put together from.

Units are free while a body is drawn: `body.fit` stretches the finished body to the benchmark's box. z points up.
A surface carries texture coordinates; a part is a surface with a picture on it (SAPIEN shows no vertex colours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimesh.transformations import euler_matrix

Floats = NDArray[np.floating[Any]]
Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Surface:
    """A triangle mesh: vertices `[V, 3]`, faces `[F, 3]`, texture coordinates `[V, 2]` in 0..1 (v up)."""

    vertices: Floats
    faces: NDArray[np.int64]
    uv: Floats

    def move(self, x: float = 0, y: float = 0, z: float = 0) -> Surface:
        """Shifted."""
        return replace(self, vertices=self.vertices + np.array([x, y, z]))

    def scale(self, x: float = 1, y: float = 1, z: float = 1) -> Surface:
        """Stretched along the axes."""
        return replace(self, vertices=self.vertices * np.array([x, y, z]))

    def turn(self, x: float = 0, y: float = 0, z: float = 0) -> Surface:
        """Rotated by degrees about the fixed axes x, then y, then z."""
        rotation = euler_matrix(*np.radians([x, y, z]))[:3, :3]
        return replace(self, vertices=self.vertices @ rotation.T)

    def bend(self, shape: Callable[[Floats], Floats]) -> Surface:
        """Every vertex moved by a function of all vertices `[V, 3]`."""
        return replace(self, vertices=shape(self.vertices))


@dataclass(frozen=True)
class Part:
    """A surface with its look.

    picture: `[h, w, 3]` uint8; None makes the part invisible, it only collides.
    piece: number of the convex collision piece its hull belongs to; None for none.
    """

    surface: Surface
    picture: Picture | None
    piece: int | None = 0
    roughness: float = 0.8
    metallic: float = 0.0


def plain(colour: Colour) -> Picture:
    """A picture of one colour."""
    return np.full((4, 4, 3), colour, np.uint8)


def paint(surface: Surface, look: Colour | Picture | None, piece: int | None = 0, shine: float = 0.2) -> Part:
    """A part from a surface and a colour or picture; `shine` 0 is matt, 1 a mirror."""
    picture = plain(look) if isinstance(look, tuple) else look
    return Part(surface, picture, piece, roughness=1.0 - shine)


def grid(points: Floats, wrap: bool = False) -> Surface:
    """Surface through points `[rows, columns, 3]`; `wrap` tells that the last column repeats the first.

    u runs along the columns, v along the rows.
    """
    rows, columns, _ = points.shape
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    return Surface(points.reshape(-1, 3), faces, np.stack([u, v], -1).reshape(-1, 2))


def join(surfaces: Sequence[Surface]) -> Surface:
    """Several surfaces as one."""
    starts = np.cumsum([0] + [len(surface.vertices) for surface in surfaces[:-1]])
    return Surface(
        np.concatenate([surface.vertices for surface in surfaces]),
        np.concatenate([surface.faces + start for surface, start in zip(surfaces, starts)]),
        np.concatenate([surface.uv for surface in surfaces]),
    )


def from_above(surface: Surface) -> Surface:
    """The same surface with the picture projected down onto it (u along x, v along y)."""
    xy = surface.vertices[:, :2]
    low, high = xy.min(0), xy.max(0)
    return replace(surface, uv=(xy - low) / (high - low))


def lathe(profile: Sequence[tuple[float, float]], segments: int = 32) -> Surface:
    """Surface of revolution about z through (radius, z) points from bottom to top; u runs round, v along.

    A repeated point makes a sharp edge.
    """
    points = np.array(profile, float)
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    ring = np.stack([np.cos(angle), np.sin(angle)], -1)
    xy = points[:, None, :1] * ring
    z = np.broadcast_to(points[:, None, 1:], (*xy.shape[:2], 1))
    return grid(np.concatenate([xy, z], -1))


def cylinder(radius: float, low: float, high: float, top: float | None = None, segments: int = 32) -> Surface:
    """Closed cylinder about z, or a frustum if the top has another radius."""
    r = radius if top is None else top
    return lathe([(0, low), (radius, low), (radius, low), (r, high), (r, high), (0, high)], segments)


def disc(radius: float, z: float, segments: int = 32) -> Surface:
    """Flat disc that faces up; the picture lies on it as seen from above (u along x, v along y)."""
    surface = lathe([(radius, z), (0, z)], segments)
    return replace(surface, uv=surface.vertices[:, :2] / (2 * radius) + 0.5)


def plate(width: float, depth: float, z: float) -> Surface:
    """Flat rectangle that faces up, centred; the picture lies on it as seen from above."""
    x, y = np.meshgrid([-width / 2, width / 2], [-depth / 2, depth / 2])
    return grid(np.stack([x, y, np.full_like(x, z)], -1))


def block(width: float, depth: float, low: float, high: float) -> Surface:
    """Box with sharp edges, centred in x and y; every face shows the whole picture."""
    top = plate(2, 2, 1)
    faces = [top, top.turn(x=90), top.turn(x=180), top.turn(x=270), top.turn(y=90), top.turn(y=270)]
    return join(faces).scale(width / 2, depth / 2, (high - low) / 2).move(z=(low + high) / 2)


def blob(x: float, y: float, z: float, square: float = 1.0, segments: int = 32) -> Surface:
    """Ellipsoid with half axes x, y, z; `square` below 1 makes it boxier, above 1 pinched."""
    latitude = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)[:, None]
    longitude = np.linspace(-np.pi, np.pi, segments + 1)[None, :]

    def power(values: Floats) -> Floats:
        return np.sign(values) * np.abs(values) ** square

    wide = power(np.cos(latitude))
    points = np.stack(
        [
            x * wide * power(np.cos(longitude)),
            y * wide * power(np.sin(longitude)),
            z * power(np.sin(latitude)) * np.ones_like(longitude),
        ],
        -1,
    )
    return grid(points)


def tube(path: Floats, radius: Floats | float, flat: float = 1.0, segments: int = 20) -> Surface:
    """Tube along a path `[N, 3]` with a radius per point and round ends; `flat` squeezes it along z."""
    radius = np.broadcast_to(np.asarray(radius, float), len(path))
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    up = np.array([0.0, 0.0, 1.0]) if np.abs(tangent[:, 2]).max() < 0.9 else np.array([0.0, 1.0, 0.0])
    side = np.cross(up, tangent)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(tangent, side)
    angle = np.linspace(0, 2 * np.pi, segments + 1)[None, :, None]
    ring = np.cos(angle) * side[:, None] + np.sin(angle) * other[:, None] * flat
    body = path[:, None] + radius[:, None, None] * ring
    ends = [np.repeat(p[None, None], segments + 1, axis=1) for p in (path[0], path[-1])]
    return grid(np.concatenate([ends[0], body, ends[1]]))


def arc(start: float, stop: float, radius: float, count: int = 12) -> Floats:
    """Points `[count, 3]` on a circle about z between two angles in degrees."""
    angle = np.radians(np.linspace(start, stop, count))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(count)], -1)


def straight(length: float, count: int = 24, bow: float = 0.0) -> Floats:
    """Points `[count, 3]` along x, centred, bowed towards +y by `bow`."""
    t = np.linspace(-1, 1, count)
    return np.stack([t * length / 2, bow * (1 - t**2), np.zeros(count)], -1)


def lying(path: Floats, radius: Floats) -> Floats:
    """The path of a tube, raised so that the tube touches z = 0 along its whole length."""
    return np.concatenate([path[:, :2], radius[:, None]], axis=1)


def smooth(profile: Sequence[tuple[float, float]], count: int = 24) -> list[tuple[float, float]]:
    """A lathe profile on a Catmull-Rom spline through the given points."""
    points = np.array([profile[0], *profile, profile[-1]], float)
    result = []
    for s in np.linspace(0, len(profile) - 1 - 1e-9, count):
        i, t = int(s), s - int(s)
        a, b, c, d = points[i : i + 4]
        p = b + (c - a) * t / 2 + (2 * a - 5 * b + 4 * c - d) * t**2 / 2 + (3 * b - a - 3 * c + d) * t**3 / 2
        result.append((max(float(p[0]), 0.0), float(p[1])))
    return result


def above(z: float) -> Callable[[Floats], Floats]:
    """For `Surface.bend`: everything below z is pressed up to it."""
    return lambda points: np.maximum(points, [-np.inf, -np.inf, z])


def frill(depth: float, lobes: int) -> Callable[[Floats], Floats]:
    """For `Surface.bend`: the radius swells by up to `depth` (relative) in so many lobes round the z axis."""

    def wave(points: Floats) -> Floats:
        angle = np.arctan2(points[:, 1], points[:, 0])
        factor = 1 + depth * np.abs(np.cos(lobes / 2 * angle)) - depth / 2
        return points * np.stack([factor, factor, np.ones_like(factor)], -1)

    return wave
