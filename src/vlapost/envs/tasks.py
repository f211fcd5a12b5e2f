"""Five more tasks for the same robot: SimplerEnv's four (arXiv 2405.05941) and ManiSkill's StackCube.

Numbers are those of ManiSkill 3.0.1 (`put_on_in_scene.py` and `base_env.py` of its BridgeData tasks, `stack_cube.py`);
bodies, table and sink are drawn here (`assets/procedural/tasks.py`). In a set `test` an episode of SimplerEnv has its
number there, and the 24 that SimplerEnv evaluates are held out. In a set `train` bodies start elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations, product

from vlapost.envs.places import CLOSE, GRID_CENTRE, OBJECT, RECEPTACLE, SQUARE, Listed, Places
from vlapost.envs.rules import Rule
from vlapost.envs.setup import Setup, Task
from vlapost.envs.stations import SINK

# indices into the pack
PACK = ("tasks",)
CARROT, SPOON, GREEN_BLOCK, EGGPLANT, RED_CUBE = (range(i, i + 1) for i in range(5))
PLATE, TOWEL, YELLOW_BLOCK, BASKET, GREEN_CUBE, SINK_BODY = (range(i, i + 1) for i in range(6))
TABLE, COUNTER = range(1), range(1, 2)

# what is asked for; spoon and eggplant need not touch what they lie on
ON = Rule(diagonal=True, beyond=0.003, high=0.02, contact=0.05)
NEAR, INTO = replace(ON, contact=None), replace(ON, high=0.06, contact=None)
STACKED = Rule(diagonal=True, beyond=0.005, low=-0.005, high=0.005, contact=None, let_go=True)
PUT_CARROT = Task(("put {object} on {receptacle}",), PACK, ON, steps=60, friction=0.5, release=0.013)
PUT_SPOON = Task(("put the {object} on the {receptacle}",), PACK, NEAR, steps=60, friction=0.5, release=0.015)
STACK = ("stack the {object} on the {receptacle}",)
STACK_BLOCKS = Task(STACK, PACK, ON, steps=60, friction=0.5, release=0.019, over=0.03)
PUT_EGGPLANT = Task(("put {object} into {receptacle}",), PACK, INTO, steps=120, friction=0.5, station=SINK, over=0.08)
STACK_CUBE = Task(STACK, PACK, STACKED, friction=0.3, release=0.024, over=0.03)

# where and how bodies start; metres, world frame
EVALUATED = 24  # episodes of each of SimplerEnv's tasks
INNER = tuple(point for point in SQUARE if not set(point) <= {0, 5})  # the benchmark's points but SimplerEnv's corners
BETWEEN = tuple((x, y) for x in range(1, 10, 2) for y in range(1, 10, 2))  # in half steps of the benchmark's grid
FLAT, BLOCKS = (0.90, 0.88), (0.90, 0.90)  # heights from which object and receptacle fall
IN_SINK = (0.902, 0.886, 0.8696)
EGGPLANT_AT, BASKET_AT, SINK_AT = (-0.105, 0.206), (-0.125, 0.025), (-0.16, 0.13)
AROUND = tuple(0.004 * i for i in range(-7, 8))
ANY = tuple(i * math.pi / 8 for i in range(16))
OF_A_CUBE = tuple(math.radians(degrees) for degrees in range(0, 90, 15))  # it looks the same after 90 degrees
TURNED = tuple(yaw + math.radians(7.5) for yaw in OF_A_CUBE)


def declare() -> dict[str, dict[str, Setup]]:
    """Environment id -> `env.obj_set` -> setup."""
    grid = Places((INNER, INNER), ((OBJECT, RECEPTACLE, CLOSE),), FLAT)
    blocks = replace(grid, points=(SQUARE, SQUARE), heights=BLOCKS)
    between = replace(blocks, points=(BETWEEN, BETWEEN), spacing=0.015)
    carrot = Setup(PUT_CARROT, CARROT, PLATE, TABLE, grid, ANY)
    spoon = Setup(PUT_SPOON, SPOON, TOWEL, TABLE, grid, ANY)
    stack = Setup(STACK_BLOCKS, GREEN_BLOCK, YELLOW_BLOCK, TABLE, blocks, OF_A_CUBE)
    eggplant = Setup(PUT_EGGPLANT, EGGPLANT, BASKET, COUNTER, _in_sink(AROUND, AROUND), ANY)
    eggplant = replace(eggplant, other_receptacles=SINK_BODY)  # too heavy to move
    cubes = Setup(STACK_CUBE, RED_CUBE, GREEN_CUBE, TABLE, blocks, OF_A_CUBE, OF_A_CUBE)

    corners = Listed(_corners(0.075), FLAT)
    in_sink = _in_sink((-0.01, 0.01), (-0.015, -0.005, 0.005, 0.015))
    # SimplerEnv gives the eggplant's turns as quaternions, which also lay its mesh down
    around = tuple(range(-45, 271, 45))
    return {
        "WidowXCarrotOnPlate-v1": _simpler(carrot, corners, 180, -90),
        "WidowXSpoonOnTowel-v1": _simpler(spoon, corners, 0, 90),
        "WidowXStackBlocks-v1": _simpler(stack, Listed(_corners(0.05, 0.1), BLOCKS), 0),
        "WidowXEggplantInBasket-v1": _simpler(eggplant, in_sink, *around),
        "WidowXStackCube-v1": {
            "train": cubes,
            "test": replace(cubes, places=between, yaws=TURNED, receptacle_yaws=TURNED),
        },
    }


def _simpler(train: Setup, places: Listed, *degrees: int) -> dict[str, Setup]:
    """The sets of a SimplerEnv task: `test` has its places and turns."""
    yaws = tuple(math.radians(yaw) for yaw in degrees)
    return {"train": train, "test": replace(train, places=places, yaws=yaws, held_out=EVALUATED)}


def _corners(*halves: float) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Ordered pairs of different corners of each square of half edge `halves` metres, in SimplerEnv's order."""
    signs = tuple(product((-1, 1), repeat=2))
    squares = [[(GRID_CENTRE[0] + x * half, GRID_CENTRE[1] + y * half) for x, y in signs] for half in halves]
    return tuple(pair for square in squares for pair in permutations(square, 2))


def _in_sink(xs: tuple[float, ...], ys: tuple[float, ...]) -> Listed:
    """The eggplant moved by every (x, y) metres, basket and sink where they are."""
    (x, y), others = EGGPLANT_AT, (BASKET_AT, SINK_AT)
    return Listed(tuple(((x + dx, y + dy), *others) for dx, dy in product(xs, ys)), IN_SINK)
