"""An episode as another program recorded it, and its actions turned into our conventions.

Ours: translation in metres in the robot's base frame (x forward, z up); rotation in radians as intrinsic XYZ Euler
angles, R = Rx Ry Rz, multiplied from the left in that frame; gripper +1 open, -1 closed. What the source's conventions
are is never guessed: the settings `exchange.*` declare it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vlapost.config import ExchangeConfig, UserError
from vlapost.contracts import ACTION_DIM

UNKNOWN = -1  # the episode id of what did not begin in our simulator
SLACK = 0.05  # of the way from closed to open that a gripper's value may lie outside it


@dataclass(frozen=True)
class Trajectory:
    """One episode of T steps in the source's conventions; step t was seen before `action[t]` was applied.

    where: file and place in it, for sentences. image: T pictures `[H, W, 3]` uint8 RGB. action: `[T, 7]`.
    instruction: empty where there is none, or more than one. success: `[T]` bool after each step, None where the
    source does not say. episode_id: the start in our simulator, `UNKNOWN` elsewhere.
    """

    where: str
    image: Sequence[NDArray[np.uint8]]
    action: NDArray[np.floating]
    instruction: str
    success: NDArray[np.bool_] | None = None
    episode_id: int = UNKNOWN

    def __post_init__(self) -> None:
        """What every source must give.

        Raises:
            UserError: actions of another width or not numbers, numbers of things that do not agree, mixed pictures.
        """
        action = np.asarray(self.action)
        if action.ndim != 2 or action.shape[1] != ACTION_DIM:
            wide = f"{action.shape[-1]} numbers" if action.ndim == 2 else f"the shape {action.shape[1:]}"
            raise UserError(
                f"An action of {self.where} has {wide}; {ACTION_DIM} are needed: translation, rotation and gripper."
            )
        if len(action) == 0:
            raise UserError(f"{self.where} holds no step; delete it from the source.")
        if len(self.image) != len(action) or (self.success is not None and len(self.success) != len(action)):
            raise UserError(
                f"{self.where} holds {len(self.image)} pictures for {len(action)} actions; each action needs the one "
                "picture seen before it."
            )
        if not np.isfinite(action).all():
            raise UserError(f"An action of {self.where} is not a finite number; leave that episode out of the source.")
        sizes = {picture.shape for picture in self.image}
        if len(sizes) > 1:
            raise UserError(f"{self.where} mixes pictures of the sizes {_list(sizes)}; one camera has one size.")
        if any(len(size) != 3 or size[2] != 3 for size in sizes) or any(p.dtype != np.uint8 for p in self.image):
            raise UserError(
                f"The pictures of {self.where} are not [height, width, 3] of uint8, which RGB pictures are."
            )


def to_ours(action: NDArray[np.floating], declared: ExchangeConfig, where: str) -> NDArray[np.float32]:
    """Actions `[T, 7]` of a source whose conventions are declared, as our controller takes them.

    Raises:
        UserError: a gripper value outside of what is declared.
    """
    opened, closed = declared.gripper
    share = (action[:, 6].astype(np.float64) - closed) / (opened - closed)
    if share.min() < -SLACK or share.max() > 1 + SLACK:
        raise UserError(
            f"The gripper values of {where} go from {action[:, 6].min():g} to {action[:, 6].max():g}, but "
            f"exchange.gripper says {opened:g} for open and {closed:g} for closed; give the source's [open, closed]."
        )
    angles = action[:, 3:6].astype(np.float64) * declared.radians
    if declared.rotation == "axis_angle":
        rotation = Rotation.from_rotvec(angles)
    else:
        rotation = Rotation.from_euler(declared.rotation, angles)
    turn = Rotation.from_euler("z", declared.turn, degrees=True)
    translation = turn.apply(action[:, :3].astype(np.float64) * declared.metres)
    euler = (turn * rotation * turn.inv()).as_euler("XYZ")
    return np.column_stack([translation, euler, np.where(share > 0.5, 1.0, -1.0)]).astype(np.float32)


def sentence(text: str) -> str:
    """An instruction without line ends, doubled blanks and the full stop; its capitals stay."""
    return " ".join(text.split()).removesuffix(".").rstrip()


def single(instructions: Iterable[str]) -> str:
    """The instruction of an episode from those of its steps; empty where they differ."""
    distinct = set(instructions)
    return distinct.pop() if len(distinct) == 1 else ""


def choose(cameras: Sequence[str], wanted: str, where: object) -> str:
    """The camera to read.

    Raises:
        UserError: the one that is wanted is not there; several are there and none is named; there is none.
    """
    if not cameras:
        raise UserError(f"{where} holds no pictures of a camera; record it again with them.")
    if wanted and wanted not in cameras:
        raise UserError(f"exchange.camera is '{wanted}', but {where} has: {', '.join(cameras)}.")
    if not wanted and len(cameras) > 1:
        raise UserError(f"{where} has several cameras: {', '.join(cameras)}; choose one with exchange.camera=...")
    return wanted or cameras[0]


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A file of JSON that a source must have; `what` says of which source it is a part.

    Raises:
        UserError: it is not there, not JSON, or no object with keys.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; SOURCE must be {what}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); get the source again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object with keys; SOURCE must be {what}.")
    return content


def need(content: Any, key: str, where: object) -> Any:
    """The value of a key in what `where` says.

    Raises:
        UserError: the content has no such key, or no keys at all.
    """
    there = content if isinstance(content, Mapping) else {}
    if key not in there:
        raise UserError(f"{where} has no '{key}'; it has: {', '.join(map(str, there)) or 'nothing by name'}.")
    return there[key]


def decode(data: bytes, where: str) -> NDArray[np.uint8]:
    """PNG, JPEG or WebP to `[H, W, 3]` RGB.

    Raises:
        UserError: none of these.
    """
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise UserError(f"A picture of {where} cannot be decoded; get the source again.")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _list(sizes: Iterable[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, size[:2])) for size in sorted(sizes))
