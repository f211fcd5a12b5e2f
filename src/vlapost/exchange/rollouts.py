"""Successful episodes of a policy in our simulator as demonstrations (paper appendix on the warm-up data)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from vlapost.config import UserError
from vlapost.contracts import Actor, VectorEnv
from vlapost.exchange.trajectory import Trajectory

HOLD = 6  # successful steps in a row after which an episode is cut, as in the paper
HOPELESS = 200  # episodes without any success


def roll_out(
    actor: Actor, env: VectorEnv, episode_of: Callable[[int], int], seed: int, first: int
) -> Iterator[Trajectory]:
    """Attempts `first`, `first` + 1, ... without end; each is cut after `HOLD` successful steps in a row.

    Args:
        actor: chooses the actions.
        env: the scenes.
        episode_of: the episode id of an attempt.
        seed: with an episode's id, decides what the actor draws.
        first: number of the first attempt.

    Raises:
        UserError: none of the first attempts succeeds.
    """
    solved = first > 0
    with torch.no_grad(), actor.session():
        for begin in count(first, env.num_envs):
            if begin >= HOPELESS and not solved:
                raise UserError(f"The actor solved none of its first {begin} episodes; there is nothing to learn from.")
            ids = [episode_of(begin + e) for e in range(env.num_envs)]
            for trajectory in _run(actor, env, ids, seed):
                assert trajectory.success is not None
                solved = solved or bool(trajectory.success[-1])
                yield trajectory


def _run(actor: Actor, env: VectorEnv, ids: list[int], seed: int) -> list[Trajectory]:
    observation = env.reset(torch.tensor(ids))
    actor.start(env, ids, seed)
    images, actions, successes = [], [], []
    truncated = False
    while not truncated:
        action = actor.act(observation)
        images.append(observation.image.cpu().numpy())
        actions.append(action.cpu().float().numpy())
        step = env.step(action)
        successes.append(step.metrics.success.cpu().numpy())
        observation, truncated = step.observation, step.truncated
    found = []
    for e, episode in enumerate(ids):
        success = np.array([row[e] for row in successes])
        steps = length(success)
        found.append(
            Trajectory(
                where=f"episode {episode} of the actor",
                image=[picture[e] for picture in images[:steps]],
                action=np.stack([row[e] for row in actions[:steps]]),
                instruction=observation.instruction[e],
                success=success[:steps],
                episode_id=episode,
            )
        )
    return found


def length(success: NDArray[np.bool_]) -> int:
    """Steps of an episode that are kept: up to the first `HOLD` successes `[T]` in a row, or all."""
    row = 0
    for step, good in enumerate(success.tolist(), 1):
        row = row + 1 if good else 0
        if row == HOLD:
            return step
    return len(success)
