"""Which episodes there are: one integer names the object, the plate, the table, where they lie and how they are turned.

An id is a number in mixed radix, most significant digit first: object, receptacle, table, position, yaw. The position
digit counts the admissible ordered pairs (object point, receptacle point) of a grid. All grid arithmetic is done in
whole grid steps, so that no pair is admitted or refused by a rounding error (paper §4.1; distances in metres).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import product

import numpy as np
import torch
from torch import Tensor

from vlapost.assets.pack import WORLD
from vlapost.config import UserError

GRID_ORIGIN = (-0.235, -0.075)  # world x, y of grid point (0, 0), metres
GRID_SPACING = 0.03  # metres
MIN_DISTANCE = 0.070  # metres between object and receptacle, exclusive
HELD_OUT_COUNT = 1024
HELD_OUT_SEED = 18  # one with which no id comes twice

Point = tuple[int, int]


@dataclass(frozen=True)
class Setup:
    """The pools an environment draws from; declaring one is all a task variant of this family needs.

    objects, receptacles, tables: indices into the asset pack. object_points, receptacle_points: grid points, in grid
    steps of `spacing` metres. yaws: turns of the object about z, radians; the receptacle is never turned.
    """

    objects: range
    receptacles: range
    tables: range
    object_points: tuple[Point, ...]
    receptacle_points: tuple[Point, ...]
    yaws: tuple[float, ...]
    spacing: float = GRID_SPACING

    @cached_property
    def positions(self) -> Tensor:
        """`[P, 4]` float32: x, y of the object and x, y of the receptacle, world frame, metres."""
        squared_limit = round((MIN_DISTANCE / self.spacing) ** 2, 6)  # a whole number where it should be one
        pairs = [
            (*a, *b)
            for a, b in product(self.object_points, self.receptacle_points)
            if (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 > squared_limit
        ]
        origin = torch.tensor(GRID_ORIGIN * 2, dtype=torch.float64)
        return (origin + self.spacing * torch.tensor(pairs, dtype=torch.float64)).float()

    @cached_property
    def radix(self) -> tuple[int, int, int, int, int]:
        """How many objects, receptacles, tables, positions and yaws there are."""
        return (
            len(self.objects),
            len(self.receptacles),
            len(self.tables),
            len(self.positions),
            len(self.yaws),
        )

    @cached_property
    def total(self) -> int:
        """Number of different episodes."""
        return math.prod(self.radix)


@dataclass(frozen=True)
class EpisodeSpec:
    """Decoded episodes.

    object, receptacle, table: `[E]` int64 indices into the asset pack. object_xy, receptacle_xy: `[E, 2]` float32,
    world frame, metres. yaw: `[E]` float32, turn of the object about z, radians.
    """

    object: Tensor
    receptacle: Tensor
    table: Tensor
    object_xy: Tensor
    receptacle_xy: Tensor
    yaw: Tensor

    def __len__(self) -> int:
        return len(self.object)


SQUARE = tuple(product(range(6), range(6)))
FINE_SQUARE = tuple(product(range(-1, 17), range(-1, 17)))  # in steps of 1 cm: the same square and 1 cm around it
QUARTERS = (0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4)


def _on_the_plate(objects: range, tables: range) -> Setup:
    return Setup(objects, range(1), tables, SQUARE, SQUARE, QUARTERS)


# environment id -> obj_set -> setup
SETUPS: dict[str, dict[str, Setup]] = {
    "PutOnPlateInScene25Main-v3": {
        "few": _on_the_plate(range(4, 8), range(16)),  # what the small policy learns in minutes
        "train": _on_the_plate(range(16), range(16)),
        "test": _on_the_plate(range(16, 25), range(16, 21)),
        "all": _on_the_plate(range(25), range(21)),
    },
    # Pretraining, with the assets "world": every body and table is drawn at random
    "PutOnReceptacleInWorld-v1": {
        "train": Setup(
            objects=range(WORLD["objects"]),
            receptacles=range(WORLD["receptacles"]),
            tables=range(WORLD["tables"]),
            object_points=FINE_SQUARE,
            receptacle_points=FINE_SQUARE,
            yaws=tuple(i * math.pi / 8 for i in range(8)),
            spacing=0.01,
        ),
    },
}


def find_setup(env_id: str, obj_set: str) -> Setup:
    """The declared setup.

    Raises:
        UserError: unknown environment id or object set.
    """
    if env_id not in SETUPS:
        raise UserError(f"env.id is '{env_id}'; it must be one of: {', '.join(SETUPS)}.")
    if obj_set not in SETUPS[env_id]:
        raise UserError(f"env.obj_set is '{obj_set}'; it must be one of: {', '.join(SETUPS[env_id])}.")
    return SETUPS[env_id][obj_set]


def decode(setup: Setup, ids: Tensor) -> EpisodeSpec:
    """Digits of `[E]` int64 ids, taken modulo the number of episodes."""
    rest = ids % setup.total
    digits = []
    for base in reversed(setup.radix):
        digits.append(rest % base)
        rest = rest // base
    yaw, position, table, receptacle, object_ = digits
    places = setup.positions.to(ids.device)[position]
    return EpisodeSpec(
        object=object_ + setup.objects.start,
        receptacle=receptacle + setup.receptacles.start,
        table=table + setup.tables.start,
        object_xy=places[:, :2],
        receptacle_xy=places[:, 2:],
        yaw=torch.tensor(setup.yaws, device=ids.device)[yaw],
    )


def encode(setup: Setup, digits: Tensor) -> Tensor:
    """Ids `[E]` of digits `[E, 5]` (object, receptacle, table, position, yaw), each counted from 0."""
    ids = torch.zeros(len(digits), dtype=torch.int64)
    for base, digit in zip(setup.radix, digits.unbind(1)):
        ids = ids * base + digit
    return ids


def instruction(object_name: str, receptacle_name: str) -> str:
    """The sentence the policy is given."""
    return f"put {object_name} on {receptacle_name}"


def draw(setup: Setup, count: int, generator: torch.Generator, exclude: Tensor) -> Tensor:
    """`[count]` ids, uniform over all episodes but those in `exclude` (the held-out list)."""
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        more = torch.randint(setup.total, (count - len(drawn),), generator=generator)
        drawn = torch.cat([drawn, more[~torch.isin(more, exclude)]])
    return drawn


def held_out(env_id: str, obj_set: str) -> Tensor:
    """The committed `[1024]` int64 ids that training never starts from; evaluation takes the first N of them."""
    find_setup(env_id, obj_set)
    text = files(__package__).joinpath("held_out", f"{env_id}_{obj_set}.json").read_text()
    return torch.tensor(json.loads(text), dtype=torch.int64)


def make_held_out(setup: Setup) -> Tensor:
    """The list that was committed: balanced so that a prefix of 200 or more is close to balanced too.

    Objects come in permutations of all objects, positions in permutations of all pairs. Receptacle, table and yaw are
    each time the one that this object has met least often, and of those the one that occurred least often at all.
    """
    rng = np.random.default_rng(HELD_OUT_SEED)
    objects, receptacles, tables, positions, yaws = setup.radix
    met = [np.zeros((objects, count), dtype=int) for count in (receptacles, tables, yaws)]
    digits = []
    for object_, position in zip(_permutations(rng, objects), _permutations(rng, positions)):
        chosen = []
        for counts in met:
            order = np.lexsort((rng.random(counts.shape[1]), counts.sum(axis=0), counts[object_]))
            counts[object_, order[0]] += 1
            chosen.append(order[0])
        receptacle, table, yaw = chosen
        digits.append((object_, receptacle, table, position, yaw))
    return encode(setup, torch.tensor(np.array(digits)))


def _permutations(rng: np.random.Generator, count: int) -> np.ndarray:
    """`[1024]` numbers below `count`, one permutation of all of them after another."""
    rounds = -(-HELD_OUT_COUNT // count)
    return np.concatenate([rng.permutation(count) for _ in range(rounds)])[:HELD_OUT_COUNT]


if __name__ == "__main__":  # python -m vlapost.envs.episodes: write the lists again
    for name, sets in SETUPS.items():
        for set_name, declared in sets.items():
            target = files(__package__).joinpath("held_out", f"{name}_{set_name}.json")
            with open(str(target), "w") as file:
                file.write(json.dumps(make_held_out(declared).tolist()) + "\n")
