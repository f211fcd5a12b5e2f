"""Small actions: merged into the next one, dropped as the paper does, or left alone.

Many steps of a planned path are tiny. The paper discards them *with their motion* (arXiv 2505.19789, appendix on data
collection), so the remaining commands no longer add up to the demonstrated path. Merging accumulates them until the
sum is worth an action; the sum of all commands, which the virtual-target controller follows, stays exact.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

FloatArray = NDArray[np.floating]

GRIPPER = 6


def filter_actions(
    actions: FloatArray, mode: str, min_translation: float, min_rotation: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Choose which steps of one episode become training samples.

    Args:
        actions: `[T, 7]` translation (m), rotation (rad, intrinsic XYZ Euler), gripper (+1 open, -1 closed).
        mode: "merge": consecutive small steps become one action, emitted as soon as it is large and at the end; a step
            that toggles the gripper and the one behind it stay alone, as fingers take two steps to close.
            "drop": only large steps and toggles stay. "none": all stay.
        min_translation: a step is large when the norm of its translation exceeds this (m) ...
        min_rotation: ... or the norm of its Euler angles exceeds this (rad).

    Returns:
        `[K]` int64, the step whose observation each action answers (the first of its group);
        `[K, 7]` float32, the actions.
    """
    steps = len(actions)
    toggle = np.diff(actions[:, GRIPPER], prepend=actions[:1, GRIPPER]) != 0

    def large(action: FloatArray) -> NDArray[np.bool_]:
        translation, rotation = np.linalg.norm(action[..., :3], axis=-1), np.linalg.norm(action[..., 3:6], axis=-1)
        return (translation > min_translation) | (rotation > min_rotation)

    enough = large(actions)
    if mode == "none":
        return np.arange(steps), actions.astype(np.float32)
    if mode == "drop":
        kept = np.flatnonzero(toggle | enough)
        return kept, actions[kept].astype(np.float32)
    groups: list[tuple[int, int]] = []
    begin = 0
    alone = toggle.copy()
    alone[1:] |= toggle[:-1]
    for t in range(steps):
        if alone[t] and begin < t:
            groups.append((begin, t))
            begin = t
        if alone[t] or t == steps - 1 or (large(compose(actions[begin : t + 1])) if begin < t else enough[t]):
            groups.append((begin, t + 1))
            begin = t + 1
    merged = [compose(actions[a:b]) if b - a > 1 else actions[a] for a, b in groups]
    return np.array([a for a, _ in groups], dtype=np.int64), np.stack(merged).astype(np.float32)


def steps_to_draw(actions: FloatArray, min_translation: float, min_rotation: float) -> NDArray[np.bool_]:
    """Which steps `[T]` of one episode are answered by an action, by the filter "merge" or by "drop"."""
    drawn = np.zeros(len(actions), np.bool_)
    for mode in ("merge", "drop"):
        drawn[filter_actions(actions, mode, min_translation, min_rotation)[0]] = True
    return drawn


def compose(actions: FloatArray) -> NDArray[np.float64]:
    """One action `[7]` with the effect of `[T, 7]` actions in turn; the gripper is the last one's.

    Translations add in the base frame; each rotation multiplies from the left, as the controller applies it.
    """
    rotation = reduce(lambda total, turn: turn * total, Rotation.from_euler("XYZ", actions[:, 3:6]))
    translation = actions[:, :3].sum(axis=0, dtype=np.float64)
    return np.concatenate([translation, rotation.as_euler("XYZ"), actions[-1:, GRIPPER]])
