"""Which setups the study has, and how they differ: read `declare` from top to bottom (paper §4.1 and Appendix A).

Protocol `v2` is what the study means to measure; protocol `paper` repeats what the authors' code does where that is
something else (docs/benchmark.md lists the differences).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

from vlapost.assets.pack import COUNTS, WORLD
from vlapost.config import EnvConfig, UserError
from vlapost.envs import tasks
from vlapost.envs.places import FINE_SQUARE, PAIRS, RING, WITH_OBJECT, WITH_RECEPTACLE
from vlapost.envs.rules import Rule
from vlapost.envs.setup import QUARTERS, Blend, Setup, Task

PROTOCOLS = ("v2", "paper")

RING_YAWS = (-math.pi / 8, -3 * math.pi / 8, -5 * math.pi / 8, -7 * math.pi / 8)

# Offsets of the arm's six joints, radians; large bends of shoulder and elbow in the same direction are left out.
BENDS, TURNS = (-0.15, -0.08, 0.0, 0.08, 0.15), (-0.6, -0.3, 0.0, 0.3, 0.6)
ARM_OFFSETS = tuple(o for o in product(*[BENDS] * 5, TURNS) if abs(o[1] + o[2]) <= 0.25)

TEMPLATES = (
    "put {object} on {receptacle}",  # of training
    "Place the {object} on the {receptacle}",
    "set {object} on {receptacle}",
    "move the {object} to the {receptacle}",
    "Take the {object} and put it on the {receptacle}",
    "pick up {object} and set it down on {receptacle}",
    "please put the {object} on the {receptacle}",
    "Put {object} onto {receptacle}.",
    "place the {object} onto the {receptacle} surface",
    "Make sure {object} is on {receptacle}.",
    "on the {receptacle}, put the {object}",
    "put the {object} where the {receptacle} is",
    "Move the {object} from the table to the {receptacle}",
    "Move {object} so it\N{RIGHT SINGLE QUOTATION MARK}s on {receptacle}.",
    "Can you put {object} on {receptacle}?",
    "{object} on the {receptacle}, please.",
    "the {object} should be placed on the {receptacle}.",
)


PUT_ON = Task(TEMPLATES, ("procedural", "paper", "world"), Rule())


def _split(name: str) -> tuple[range, range]:
    count, trained = COUNTS[name]
    return range(trained), range(trained, count)


SEEN_OBJECTS, UNSEEN_OBJECTS = _split("objects")
PLATE, UNSEEN_RECEPTACLES = _split("receptacles")
SEEN_TABLES, UNSEEN_TABLES = _split("tables")
ALL_OBJECTS, ALL_TABLES = range(COUNTS["objects"][0]), range(COUNTS["tables"][0])
FEW_OBJECTS = range(4, 8)  # what the small policy learns in minutes


@dataclass(frozen=True)
class Evaluated:
    """A setup that the study reports: what it is called there, to which group it belongs, and where it is declared."""

    title: str
    group: str
    env_id: str
    obj_set: str


def _evaluated(group: str, *rows: tuple[str, str, str, str]) -> dict[str, Evaluated]:
    return {key: Evaluated(title, group, f"{PREFIX}{name}", obj_set) for key, title, name, obj_set in rows}


PREFIX = "PutOnPlateInScene25"
# the 16 setups of the study's Tables 1 to 3, in their order
EVALUATED = (
    _evaluated("training", ("ind", "IND", "Carrot-v1", "train"))
    | _evaluated(
        "vision",
        ("table", "Table", "VisionImage-v1", "test"),
        ("texture-w", "Texture-w", "VisionTexture03-v1", "test"),
        ("texture-s", "Texture-s", "VisionTexture05-v1", "test"),
        ("noise-w", "Noise-w", "VisionWhole03-v1", "test"),
        ("noise-s", "Noise-s", "VisionWhole05-v1", "test"),
    )
    | _evaluated(
        "semantics",
        ("object", "Obj.", "Carrot-v1", "test"),
        ("receptacle", "Recep.", "Plate-v1", "test"),
        ("instruct", "Instruct", "Instruct-v1", "test"),
        ("multi-object", "M-Obj. (IND)", "MultiCarrot-v1", "train"),
        ("multi-unseen-object", "M-Obj. (OOD)", "MultiCarrot-v1", "test"),
        ("disturb-receptacle", "Disturb Recep.", "MultiPlate-v1", "train"),
        ("multi-receptacle", "M-Recep.", "MultiPlate-v1", "test"),
    )
    | _evaluated(
        "execution",
        ("position", "Obj. Pos.", "Position-v1", "test"),
        ("robot-pose", "Robot Pose", "EEPose-v1", "test"),
        ("reposition", "Obj. Rep.", "PositionChangeTo-v1", "test"),
    )
)
# SimplerEnv's and ManiSkill's, as a report of their own
TASKS = {
    key: Evaluated(title, "tasks", f"WidowX{name}-v1", "test")
    for key, title, name in (
        ("carrot", "Carrot on plate", "CarrotOnPlate"),
        ("spoon", "Spoon on towel", "SpoonOnTowel"),
        ("blocks", "Green on yellow block", "StackBlocks"),
        ("eggplant", "Eggplant in basket", "EggplantInBasket"),
        ("stack-cube", "StackCube", "StackCube"),
    )
}


def evaluated(assets: str) -> dict[str, Evaluated]:
    """The setups of a report on an asset pack, by name: the study's, or with the pack "tasks" the five tasks."""
    return TASKS if assets == "tasks" else EVALUATED


@cache
def declare(protocol: str) -> dict[str, dict[str, Setup]]:
    """Environment id -> `env.obj_set` -> setup."""
    paper = protocol == "paper"
    training = Setup(PUT_ON, SEEN_OBJECTS, PLATE, SEEN_TABLES, paper=paper)
    pair, object_, receptacle = (replace(p, exact=not paper) for p in (PAIRS, WITH_OBJECT, WITH_RECEPTACLE))
    ring = replace(pair, points=(RING, RING))
    # the authors' code draws from all tables where there are two receptacles, and turns objects anew on the ring
    tables, ring_yaws = (ALL_TABLES, RING_YAWS) if paper else (SEEN_TABLES, QUARTERS)
    two_objects = replace(training, places=object_, other_objects=SEEN_OBJECTS)
    two_receptacles = replace(training, places=receptacle, tables=tables, other_receptacles=UNSEEN_RECEPTACLES)

    def textured(ratio: float, everything: bool) -> dict[str, Setup]:
        return {"train": training, "test": replace(training, textures=range(1, 17), blend=Blend(ratio, everything))}

    setups: dict[str, dict[str, Setup]] = {
        # training
        "Main-v3": {
            "few": replace(training, objects=FEW_OBJECTS),
            "train": training,
            "test": replace(training, objects=UNSEEN_OBJECTS, tables=UNSEEN_TABLES),
            "all": replace(training, objects=ALL_OBJECTS, tables=ALL_TABLES),
        },
        "Single-v1": {"train": replace(training, objects=range(1), tables=range(1))},
        "MainCarrot-v3": {
            "train": replace(training, tables=range(1)),
            "test": replace(training, tables=range(1), objects=UNSEEN_OBJECTS),
        },
        "MainImage-v3": {
            "train": replace(training, objects=range(1)),
            "test": replace(training, objects=range(1), tables=UNSEEN_TABLES),
        },
        # vision
        "VisionImage-v1": {"train": training, "test": replace(training, tables=UNSEEN_TABLES)},
        "VisionTexture03-v1": textured(0.3, everything=False),
        "VisionTexture05-v1": textured(0.5, everything=False),
        "VisionWhole03-v1": textured(0.3, everything=True),
        "VisionWhole05-v1": textured(0.5, everything=True),
        # semantics
        "Carrot-v1": {"train": training, "test": replace(training, objects=UNSEEN_OBJECTS)},
        "Plate-v1": {"train": training, "test": replace(training, receptacles=UNSEEN_RECEPTACLES)},
        "Instruct-v1": {"train": training, "test": replace(training, templates=range(1, len(TEMPLATES)))},
        "MultiCarrot-v1": {
            "train": two_objects,
            "test": replace(two_objects, objects=UNSEEN_OBJECTS, other_objects=UNSEEN_OBJECTS),
        },
        "MultiPlate-v1": {
            "train": two_receptacles,
            "test": replace(two_receptacles, receptacles=UNSEEN_RECEPTACLES),
        },
        # execution
        "Position-v1": {"train": training, "test": replace(training, places=ring, yaws=ring_yaws)},
        "EEPose-v1": {"train": training, "test": replace(training, arm_offsets=ARM_OFFSETS)},
        "PositionChangeTo-v1": {
            "train": replace(training, places=object_),
            "test": replace(training, places=object_, reposition=5),
        },
    }
    declared = {f"{PREFIX}{name}": sets for name, sets in setups.items()}
    # pretraining, with the assets "world": every body and table is drawn at random
    declared["PutOnReceptacleInWorld-v1"] = {
        "train": Setup(
            replace(PUT_ON, packs=("world",)),
            objects=range(WORLD["objects"]),
            receptacles=range(WORLD["receptacles"]),
            tables=range(WORLD["tables"]),
            places=replace(PAIRS, points=(FINE_SQUARE, FINE_SQUARE), spacing=0.01),
            yaws=tuple(i * math.pi / 8 for i in range(8)),
        )
    }
    return declared if paper else declared | tasks.declare()


def find_setup(env_id: str, obj_set: str, protocol: str = "v2", assets: str = "") -> Setup:
    """The declared setup, drawn with the asset pack `assets` if that is given.

    Raises:
        UserError: unknown protocol, environment id or object set; a pack that lacks the bodies.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"env.protocol is '{protocol}'; it must be one of: {', '.join(PROTOCOLS)}.")
    setups = declare(protocol)
    if env_id not in setups and env_id in declare("v2"):
        raise UserError(f"env.protocol is '{protocol}', which has no {env_id}; set env.protocol=v2.")
    if env_id not in setups:
        raise UserError(f"env.id is '{env_id}'; it must be one of: {', '.join(setups)}.")
    if obj_set not in setups[env_id]:
        raise UserError(f"env.obj_set is '{obj_set}'; with {env_id} it must be one of: {', '.join(setups[env_id])}.")
    setup = setups[env_id][obj_set]
    if assets and assets not in setup.task.packs:
        raise UserError(f"env.assets is '{assets}'; with {env_id} it must be {' or '.join(setup.task.packs)}.")
    return setup


def setup_of(cfg: EnvConfig) -> Setup:
    """The setup of a configuration; raises what `find_setup` raises."""
    return find_setup(cfg.id, cfg.obj_set, cfg.protocol, cfg.assets)
