"""From parts to the two files of a body: a textured GLB to look at, and an OBJ of few convex pieces to collide with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from scipy.spatial import ConvexHull
from trimesh.visual.material import PBRMaterial

from vlapost.assets.procedural.shapes import Floats, Part

Point = tuple[float, float, float]
FOOT = 0.06  # lowest share of a body's height that is pressed flat, so that round things lie still


def fit(parts: Sequence[Part], low: Point, high: Point) -> list[Part]:
    """Stretch and shift the parts together so that their common box is exactly `low`..`high` (metres)."""
    vertices = np.concatenate([part.surface.vertices for part in parts])
    old_low, old_high = vertices.min(0), vertices.max(0)
    factor = (np.array(high) - np.array(low)) / (old_high - old_low)

    def place(points: Floats) -> Floats:
        return np.array(low) + (points - old_low) * factor

    return [replace(part, surface=part.surface.bend(place)) for part in parts]


def write_visual(parts: Sequence[Part], path: Path) -> None:
    """Write the parts as one GLB, each with its picture as base colour."""
    scene = trimesh.Scene()
    for number, part in enumerate(parts):
        if part.picture is None:
            continue
        material = PBRMaterial(
            name=f"look_{number}",
            baseColorTexture=Image.fromarray(part.picture),
            metallicFactor=part.metallic,
            roughnessFactor=part.roughness,
        )
        surface = part.surface
        mesh = trimesh.Trimesh(surface.vertices, surface.faces, process=False)
        mesh.visual = trimesh.visual.TextureVisuals(uv=surface.uv, material=material)
        scene.add_geometry(mesh, node_name=f"part_{number}", geom_name=f"part_{number}")
    path.write_bytes(scene.export(file_type="glb", include_normals=True))


def write_collision(parts: Sequence[Part], path: Path, prism: bool = False) -> None:
    """Write the hull of each collision piece as an object of an OBJ file.

    prism: fill each piece from its lowest to its highest point, so that its top is flat (for things to put on).
    """
    floor = min(part.surface.vertices[:, 2].min() for part in parts)
    height = max(part.surface.vertices[:, 2].max() for part in parts) - floor
    directions = _ring(17) if prism else _sphere(26)
    lines: list[str] = []
    count = 1
    for piece in sorted({part.piece for part in parts if part.piece is not None}):
        points = np.concatenate([part.surface.vertices for part in parts if part.piece == piece])
        if prism:
            points = np.concatenate([points * [1, 1, 0] + [0, 0, z] for z in (points[:, 2].min(), points[:, 2].max())])
        vertices, faces = _hull(points, floor, FOOT * height, directions)
        lines.append(f"o piece_{piece}")
        lines += ["v {:.6f} {:.6f} {:.6f}".format(*vertex) for vertex in vertices]
        lines += ["f {} {} {}".format(*(face + count)) for face in faces]
        count += len(vertices)
    path.write_text("\n".join(lines) + "\n")


def _hull(points: Floats, floor: float, foot: float, directions: Floats) -> tuple[Floats, np.ndarray]:
    """Convex hull `(vertices [V <= 48, 3], faces [F, 3])` of the points that lie farthest in some directions `[D, 3]`.

    Points less than `foot` above `floor` are pressed down to it. The hull touches the points' box on every side.
    """
    points = np.where(points[:, 2:] < floor + foot, points * [1, 1, 0] + [0, 0, floor], points)
    chosen = [_farthest(points, np.concatenate([np.eye(3), -np.eye(3), directions]))]
    bottom = points[points[:, 2] <= floor]
    if len(bottom):
        chosen.append(_farthest(bottom, _ring(8)[:8]))
    vertices = np.unique(np.concatenate(chosen).round(6), axis=0)
    hull = ConvexHull(vertices)
    used = np.unique(hull.simplices)
    vertices, faces = vertices[used], np.searchsorted(used, hull.simplices)
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inwards = np.einsum("ij,ij->i", normal, hull.equations[:, :3]) < 0
    faces[inwards] = faces[inwards][:, ::-1]
    return vertices, faces


def _farthest(points: Floats, directions: Floats) -> Floats:
    return points[np.argmax(points @ directions.T, axis=0)]


def _ring(count: int) -> Floats:
    """Horizontal directions `[2 count, 3]`, first tilted slightly down, then slightly up."""
    angle = 2 * np.pi * (np.arange(count) + 0.5) / count
    ring = np.stack([np.cos(angle), np.sin(angle), np.full(count, -0.01)], -1)
    return np.concatenate([ring, ring * [1, 1, -1]])


def _sphere(count: int) -> Floats:
    """Directions `[count, 3]` spread evenly over the sphere (Fibonacci lattice)."""
    i = np.arange(count) + 0.5
    z = 1 - 2 * i / count
    angle = np.pi * (1 + np.sqrt(5)) * i
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], -1)
