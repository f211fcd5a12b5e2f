"""Run given episodes with a policy and keep what the study reports about each (paper §5, Appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vlapost.contracts import ACTION_BINS, ACTION_DIM, Policy, VectorEnv


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode.

    success_end: the object stands on the receptacle at the last step, the study's measure. success_once: at any step.
    grasp, consecutive_grasp: held at any step, held five steps in a row.
    first_success_step: actions until the first success, None without one. return_: undiscounted sum of rewards.
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
    frames: np.ndarray | None = field(default=None, compare=False, repr=False)


class EpisodeNoise:
    """Gumbel noise whose numbers depend on (seed, episode, step) alone, not on which episodes share a batch."""

    def __init__(self, seed: int, episode_ids: Sequence[int]) -> None:
        self.generators = [_generator(seed, episode) for episode in episode_ids]

    def draw(self) -> Tensor:
        """Noise of the next step, `[E, A, V]` float32."""
        noise = torch.empty(len(self.generators), ACTION_DIM, ACTION_BINS)
        for row, generator in zip(noise, self.generators):
            row.exponential_(generator=generator)
        return -noise.clamp_min(torch.finfo(noise.dtype).tiny).log()


def run_episodes(
    policy: Policy,
    env: VectorEnv,
    episode_ids: Sequence[int],
    temperature: float,
    seed: int,
    record: int = 0,
) -> list[EpisodeResult]:
    """Run episodes, `env.num_envs` at a time, to their end; results in the order of `episode_ids`.

    Args:
        policy: chooses the actions; greedily at temperature 0.
        env: fresh or used; every episode starts with a reset.
        episode_ids: ids of the environment's index space; the last batch is filled with repeats, which are dropped.
        temperature: 0 takes the most likely token, above 0 samples.
        seed: with the episode's id, seeds its sampling noise.
        record: keep the frames of the first `record` episodes.
    """
    results: list[EpisodeResult] = []
    with policy.fixed_weights():
        for start in range(0, len(episode_ids), env.num_envs):
            ids = list(episode_ids[start : start + env.num_envs])
            filled = ids + [ids[-1]] * (env.num_envs - len(ids))
            frames = min(max(record - start, 0), len(ids))
            results += _run_batch(policy, env, filled, temperature, seed, frames)[: len(ids)]
    return results


@torch.no_grad()
def _run_batch(
    policy: Policy, env: VectorEnv, ids: list[int], temperature: float, seed: int, record: int
) -> list[EpisodeResult]:
    noise = EpisodeNoise(seed, ids) if temperature > 0 else None
    observation = env.reset(torch.tensor(ids))
    frames_TEHWC = [observation.image[:record].cpu()]
    return_E = torch.zeros(len(ids))
    success_TE: list[Tensor] = []
    truncated = False
    while not truncated:
        output = policy.act(observation, noise.draw() if noise else None, temperature if noise else 1.0)
        step = env.step(policy.decode(output.action_tokens))
        observation, truncated = step.observation, step.truncated
        return_E += step.reward.cpu()
        success_TE.append(step.metrics.success.cpu())
        if record:
            frames_TEHWC.append(observation.image[:record].cpu())
    succeeded = torch.stack(success_TE)
    film = torch.stack(frames_TEHWC).numpy()
    last = step.metrics
    return [
        EpisodeResult(
            episode_id=episode,
            instruction=observation.instruction[e],
            success_end=bool(last.success[e]),
            success_once=bool(last.success_once[e]),
            grasp=bool(last.grasp[e]),
            consecutive_grasp=bool(last.consecutive_grasp[e]),
            first_success_step=int(succeeded[:, e].int().argmax()) + 1 if succeeded[:, e].any() else None,
            return_=round(float(return_E[e]), 6),
            frames=film[:, e] if e < record else None,
        )
        for e, episode in enumerate(ids)
    ]


def _generator(seed: int, episode: int) -> torch.Generator:
    mixed = np.random.SeedSequence([seed, episode]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
