"""Five more tasks for the same robot: SimplerEnv's four (arXiv 2405.05941) and ManiSkill's StackCube.

Numbers are those of ManiSkill 3.0.1 (`bridge_dataset_eval/put_on_in_scene.py`, `base_env.py`, `tabletop/stack_cube.py`);
bodies, table and sink are drawn here (`assets/procedural/tasks.py`). With `test` an episode of SimplerEnv's tasks has
its number there, and the 24 that SimplerEnv evaluates are held out. With `train` bodies start elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations, product

from vlapost.envs.places import CLOSE, OBJECT, RECEPTACLE, SQUARE, Listed, Places
from vlapost.envs.rules import Rule
from vlapost.envs.setup import Setup, Task
from vlapost.envs.stations import SINK

PACK = ("tasks",)
EVALUATED = 24  # episodes of each SimplerEnv task
CARROT, SPOON, GREEN_BLOCK, EGGPLANT, RED_CUBE = (range(i, i + 1) for i in range(5))
PLATE, TOWEL, YELLOW_BLOCK, BASKET, GREEN_CUBE, SINK_BODY = (range(i, i + 1) for i in range(6))
TABLE, COUNTER = range(1), range(1, 2)

HALF_DIAGONAL = Rule(diagonal=True, beyond=0.003, high=0.02, contact=0.05)  # SimplerEnv's
ANY_SIXTEENTH = tuple(i * math.pi / 8 for i in range(16))
OF_A_CUBE = tuple(math.radians(degrees) for degrees in range(0, 90, 15))  # it looks the same after 90 degrees

CENTRE = (-0.16, 0.0)  # world x, y, metres, of the squares below
CORNERS = tuple(point for point in SQUARE if set(point) <= {0, 5})  # the square's points where SimplerEnv's bodies start
BETWEEN = tuple(product((1, 3, 5, 7, 9), repeat=2))  # in steps of half its spacing
MEAL, BLOCKS = (0.90, 0.88), (0.90, 0.90)  # metres, world: from where object and receptacle fall

# the eggplant's place, and those of basket and sink
SINK_PLACES = (-0.125, 0.025), (-0.16, 0.13)
EGGPLANT_AT = (-0.105, 0.206)
SINK_HEIGHTS = (0.933, 0.886, 0.8696)


def corners(*halves: float) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Ordered pairs of different corners of each square of half edge `halves` metres, in SimplerEnv's order."""
    squares = [
        [(CENTRE[0] + x * half, CENTRE[1] + y * half) for x, y in product((-1, 1), repeat=2)] for half in halves
    ]
    return tuple(pair for square in squares for pair in permutations(square, 2))


def in_sink(xs: tuple[float, ...], ys: tuple[float, ...], heights: tuple[float, ...] = SINK_HEIGHTS) -> Listed:
    """The eggplant moved by every (x, y) metres, with basket and sink where they are."""
    x, y = EGGPLANT_AT
    return Listed(tuple(((x + dx, y + dy), *SINK_PLACES) for dx, dy in product(xs, ys)), heights)


def declare() -> dict[str, dict[str, Setup]]:
    """Environment id -> `env.obj_set` -> setup."""
    grid = Places((SQUARE, SQUARE), ((OBJECT, RECEPTACLE, CLOSE),), MEAL)
    inner = tuple(point for point in SQUARE if point not in CORNERS)
    elsewhere, cubes = replace(grid, points=(inner, inner)), replace(grid, heights=BLOCKS)

    carrot = Setup(
        Task(("put {object} on {receptacle}",), PACK, HALF_DIAGONAL, steps=60, friction=0.5, release=0.013),
        *(CARROT, PLATE, TABLE, elsewhere, ANY_SIXTEENTH),
    )
    spoon = Setup(
        Task(
            ("put the {object} on the {receptacle}",), PACK, replace(HALF_DIAGONAL, contact=None),
            steps=60, friction=0.5, release=0.015,
        ),
        *(SPOON, TOWEL, TABLE, elsewhere, ANY_SIXTEENTH),
    )  # fmt: skip
    blocks = Setup(
        Task(
            ("stack the {object} on the {receptacle}",), PACK, HALF_DIAGONAL,
            steps=60, friction=0.5, release=0.019, over=0.03,
        ),
        *(GREEN_BLOCK, YELLOW_BLOCK, TABLE, cubes, OF_A_CUBE),
    )  # fmt: skip
    eggplant = Setup(
        Task(
            ("put {object} into {receptacle}",), PACK, replace(HALF_DIAGONAL, high=0.06, contact=None),
            steps=120, friction=0.5, station=SINK, over=0.08,
        ),
        *(EGGPLANT, BASKET, COUNTER, in_sink(*[tuple(0.004 * i for i in range(-7, 8))] * 2), ANY_SIXTEENTH),
        other_receptacles=SINK_BODY,  # too heavy to move
    )  # fmt: skip
    # within 5 mm of standing on the other cube, at rest and let go; ManiSkill's default friction
    stacked = Rule(diagonal=True, beyond=0.005, low=-0.005, high=0.005, contact=None, let_go=True)
    stack = Setup(
        Task(("stack the {object} on the {receptacle}",), PACK, stacked, friction=0.3, release=0.024, over=0.03),
        *(RED_CUBE, GREEN_CUBE, TABLE, cubes, OF_A_CUBE, OF_A_CUBE),
    )
    between = replace(cubes, points=(BETWEEN, BETWEEN), spacing=0.015)
    unseen = tuple(yaw + math.radians(7.5) for yaw in OF_A_CUBE)

    def simpler(task: Setup, places: Listed, *yaws: int) -> dict[str, Setup]:
        test = replace(task, places=places, yaws=tuple(math.radians(yaw) for yaw in yaws), held_out=EVALUATED)
        return {"train": task, "test": test}

    return {
        "WidowXCarrotOnPlate-v1": simpler(carrot, Listed(corners(0.075), MEAL), 180, -90),
        "WidowXSpoonOnTowel-v1": simpler(spoon, Listed(corners(0.075), MEAL), 0, 90),
        "WidowXStackBlocks-v1": simpler(blocks, Listed(corners(0.05, 0.1), BLOCKS), 0),
        # SimplerEnv gives these eight turns as quaternions that also lay its mesh down
        "WidowXEggplantInBasket-v1": simpler(
            eggplant, in_sink((-0.01, 0.01), (-0.015, -0.005, 0.005, 0.015)), -45, 0, 45, 90, 135, 180, 225, 270
        ),
        "WidowXStackCube-v1": {
            "train": stack,
            "test": replace(stack, places=between, yaws=unseen, receptacle_yaws=unseen),
        },
    }
