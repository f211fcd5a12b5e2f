"""What a task is, and what its episodes are drawn from; `setups.py` and `tasks.py` declare which there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from vlapost.envs.places import PAIRS, Listed, Places
from vlapost.envs.rules import Rule
from vlapost.envs.stations import TABLE, Station

QUARTERS = (0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4)


@dataclass(frozen=True)
class Task:
    """What is to be done, how it is judged, and where; the same in all setups of an environment.

    sentences: what the robot is told, with {object} and {receptacle}. packs: asset packs that have the bodies, the
    first by default. rule: when the object counts as placed. steps: control steps of an episode. friction: of every
    loose body. station: where robot and camera stand. release, over: what the planner is told: height of the object's
    bottom above the receptacle's origin at which it lets go, and how far above that it comes first (0: straight to it).
    """

    sentences: tuple[str, ...]
    packs: tuple[str, ...]
    rule: Rule
    steps: int = 80
    friction: float = 1.0
    station: Station = TABLE
    release: float = 0.01
    over: float = 0.0


@dataclass(frozen=True)
class Blend:
    """A texture over the picture: of which share it is, and whether over everything or over the bodies alone."""

    ratio: float
    everything: bool


@dataclass(frozen=True)
class Setup:
    """What an environment draws an episode from; indices are those of the asset pack.

    objects, receptacles, tables: what is grasped, where it is put, which picture is behind. places: where they start.
    yaws, receptacle_yaws: turns about z, radians. other_objects, other_receptacles: a second one at the third place,
    never the same as the first, nor turned if it is a receptacle. textures: tables whose texture is blended over the
    picture as `blend` says. templates: of the task's sentences. arm_offsets: added to the arm's initial joints,
    radians. reposition: control step after which the object is put at the third place; 0: never. held_out: so many
    episodes, counted from the first, are those of evaluations; 0: a list drawn by `episodes.make_held_out`. paper: what
    the authors' code does otherwise with the same numbers (`episodes.decode`, and the scene's textures, settling and
    table).
    """

    task: Task
    objects: range
    receptacles: range
    tables: range
    places: Places | Listed = PAIRS
    yaws: tuple[float, ...] = QUARTERS
    receptacle_yaws: tuple[float, ...] = (0.0,)
    other_objects: range = range(0)
    other_receptacles: range = range(0)
    textures: range = range(0)
    blend: Blend | None = None
    templates: range = range(1)
    arm_offsets: tuple[tuple[float, ...], ...] = ((0.0,) * 6,)
    reposition: int = 0
    held_out: int = 0
    paper: bool = False

    @cached_property
    def radix(self) -> dict[str, int]:
        """Digits of an episode id, most significant first, and how many values each has."""
        return {
            "object": len(self.objects),
            "other_object": max(1, len(self.other_objects) - (self.other_objects == self.objects)),
            "texture": max(1, len(self.textures)),
            "template": len(self.templates),
            "arm_offset": len(self.arm_offsets),
            "receptacle": len(self.receptacles),
            "other_receptacle": max(1, len(self.other_receptacles) - (self.other_receptacles == self.receptacles)),
            "table": len(self.tables),
            "receptacle_yaw": len(self.receptacle_yaws),
            "place": len(self.places.table),
            "yaw": len(self.yaws),
        }

    @cached_property
    def total(self) -> int:
        """Number of different episodes."""
        return math.prod(self.radix.values())
