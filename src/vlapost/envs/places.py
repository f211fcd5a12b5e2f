"""Where bodies start: grids of points, and which of them go together (paper §4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor

Point = tuple[int, int]

GRID_ORIGIN = (-0.235, -0.075)  # world x, y of grid point (0, 0), metres
GRID_SPACING = 0.03  # metres
GRID_CENTRE, GRID_EDGE = (-0.16, 0.0), 0.15  # of the square of 6 x 6 points, metres
SQUARE = tuple(product(range(6), range(6)))
RING = tuple(point for point in product(range(-1, 7), range(-1, 7)) if point not in SQUARE)
FINE_SQUARE = tuple(product(range(-1, 17), range(-1, 17)))  # in steps of 1 cm: the same square and 1 cm around it
CLOSE, FAR = 0.070, 0.150  # metres, exclusive: two bodies keep that distance at least; an object from another one

OBJECT, RECEPTACLE, THIRD = range(3)


@dataclass(frozen=True)
class Places:
    """Where the bodies fall from: the object, the receptacle and, in some setups, a third place.

    points: grid points allowed for each of them, in steps of `spacing` metres. apart: pairs of them that keep a
    distance (metres, exclusive). heights: of their origins, metres. exact: distances are compared in whole steps;
    otherwise in binary fractions, where 20 of the 72 pairs of points that lie exactly `FAR` apart come out as further.
    """

    points: tuple[tuple[Point, ...], ...]
    apart: tuple[tuple[int, int, float], ...]
    heights: tuple[float, ...]
    spacing: float = GRID_SPACING
    exact: bool = True

    @cached_property
    def table(self) -> Tensor:
        """`[P, n, 2]` float32: x and y of the n places of every admissible choice, world frame, metres."""
        choice = np.stack(np.meshgrid(*(np.arange(len(points)) for points in self.points), indexing="ij"), -1)
        choice = choice.reshape(-1, len(self.points))
        steps = np.stack([np.array(points)[choice[:, i]] for i, points in enumerate(self.points)], 1)
        metres = (steps / 5 - 0.5) * GRID_EDGE + np.array(GRID_CENTRE)
        admissible = np.ones(len(steps), dtype=bool)
        for one, other, limit in self.apart:
            if self.exact:  # the limit squared is a whole number of squared steps where it should be one
                distance, least = ((steps[:, one] - steps[:, other]) ** 2).sum(1), round((limit / self.spacing) ** 2, 6)
            else:
                distance, least = np.linalg.norm(metres[:, one] - metres[:, other], axis=1), limit
            admissible &= distance > least
        origin = torch.tensor(GRID_ORIGIN, dtype=torch.float64)
        return (origin + self.spacing * torch.from_numpy(steps[admissible])).float()


@dataclass(frozen=True)
class Listed:
    """Places written out one by one.

    metres: x, y of every body (as in `Places`) of every choice, world frame. heights: of their origins, metres.
    """

    metres: tuple[tuple[tuple[float, float], ...], ...]
    heights: tuple[float, ...]

    @cached_property
    def table(self) -> Tensor:
        """`[P, n, 2]` float32: x and y of the n places of every choice."""
        return torch.tensor(self.metres)


PAIRS = Places((SQUARE, SQUARE), ((OBJECT, RECEPTACLE, CLOSE),), (0.95, 0.95))
# a second object, or where the object is put during the episode
WITH_OBJECT = Places(
    (SQUARE, SQUARE, SQUARE),
    ((OBJECT, RECEPTACLE, CLOSE), (THIRD, RECEPTACLE, CLOSE), (OBJECT, THIRD, FAR)),
    (0.95, 0.92, 1.0),
)
WITH_RECEPTACLE = Places(
    (SQUARE, SQUARE, SQUARE),
    ((OBJECT, RECEPTACLE, CLOSE), (THIRD, RECEPTACLE, FAR), (OBJECT, THIRD, CLOSE)),
    (1.0, 0.92, 0.96),
)
