"""Run given episodes and keep what the study reports about each (paper §5, Appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vlapost.contracts import Actor, VectorEnv


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode.

    success_end: the object stands on the receptacle at the last step, the study's measure. success_once: at any step.
    grasp, consecutive_grasp: held at any step, held five steps in a row.
    first_success_step: actions until the first success, None without one. return_: undiscounted sum of rewards.
    steps: success, grasp and consecutive_grasp after every action, as digits 0 and 1.
    gripper: x, y, z (m) and turn about z (rad) of the gripper in the base frame, before every action.
    video: file in the folder of the results, None without one.
    frames: `[T + 1, H, W, 3]` uint8, every image from reset to end, where the episode was recorded.
    """

    episode_id: int
    instruction: str
    success_end: bool
    success_once: bool
    grasp: bool
    consecutive_grasp: bool
    first_success_step: int | None
    return_: float
    steps: dict[str, str] = field(default_factory=dict)
    gripper: list[list[float]] = field(default_factory=list, repr=False)
    video: str | None = None
    frames: np.ndarray | None = field(default=None, compare=False, repr=False)


def run_episodes(
    actor: Actor, env: VectorEnv, episode_ids: Sequence[int], seed: int, record: int = 0
) -> list[EpisodeResult]:
    """Run episodes, `env.num_envs` at a time, to their end; results in the order of `episode_ids`.

    Args:
        actor: chooses the actions.
        env: fresh or used; every episode starts with a reset.
        episode_ids: ids of the environment's index space; the last batch is filled with repeats, which are dropped.
        seed: with an episode's id, decides what the actor draws.
        record: keep the frames of the first `record` episodes.
    """
    results: list[EpisodeResult] = []
    with actor.session():
        for start in range(0, len(episode_ids), env.num_envs):
            ids = list(episode_ids[start : start + env.num_envs])
            filled = ids + [ids[-1]] * (env.num_envs - len(ids))
            frames = min(max(record - start, 0), len(ids))
            results += _run_batch(actor, env, filled, seed, frames)[: len(ids)]
    return results


@torch.no_grad()
def _run_batch(actor: Actor, env: VectorEnv, ids: list[int], seed: int, record: int) -> list[EpisodeResult]:
    observation = env.reset(torch.tensor(ids))
    actor.start(env, ids, seed)
    frames_TEHWC = [observation.image[:record].cpu()]
    gripper_TE4: list[Tensor] = []
    metrics_TE: dict[str, list[Tensor]] = {"success": [], "grasp": [], "consecutive_grasp": []}
    return_E = torch.zeros(len(ids))
    truncated = False
    while not truncated:
        gripper_TE4.append(position_and_turn(env.gripper_pose().cpu()))
        step = env.step(actor.act(observation), look=actor.looks or bool(record))
        observation, truncated = step.observation, step.truncated
        return_E += step.reward.cpu()
        for name, values in metrics_TE.items():
            values.append(getattr(step.metrics, name).cpu())
        if record:
            frames_TEHWC.append(observation.image[:record].cpu())
    film, path = torch.stack(frames_TEHWC).numpy(), torch.stack(gripper_TE4)
    courses = {name: torch.stack(values).int() for name, values in metrics_TE.items()}
    last, success = step.metrics, courses["success"]
    return [
        EpisodeResult(
            episode_id=episode,
            instruction=observation.instruction[e],
            success_end=bool(last.success[e]),
            success_once=bool(last.success_once[e]),
            grasp=bool(last.grasp[e]),
            consecutive_grasp=bool(last.consecutive_grasp[e]),
            first_success_step=int(success[:, e].argmax()) + 1 if success[:, e].any() else None,
            return_=round(float(return_E[e]), 6),
            steps={name: "".join(map(str, course[:, e].tolist())) for name, course in courses.items()},
            gripper=[[round(value, 3) for value in row] for row in path[:, e].tolist()],
            frames=film[:, e] if e < record else None,
        )
        for e, episode in enumerate(ids)
    ]


def position_and_turn(pose: Tensor) -> Tensor:
    """Poses `[E, 7]` (metres, quaternion w, x, y, z) to `[E, 4]`: position and the turn of the y axis about z."""
    w, x, y, z = pose[:, 3:].unbind(-1)
    turn = torch.atan2(1 - 2 * (x * x + z * z), 2 * (x * y - w * z))
    return torch.cat([pose[:, :3], turn.unsqueeze(-1)], dim=-1)
