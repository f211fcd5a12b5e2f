"""Who acts in an evaluation: a policy that samples or decides greedily, chance, or any function of yours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from vlapost.contracts import ACTION_BINS, ACTION_DIM, Actor, Observation, Policy, VectorEnv

# Largest action of the random actor: metres, radians (intrinsic XYZ), gripper; about the range of the demonstrations.
RANDOM_LIMIT = (0.03, 0.035, 0.035, 0.01, 0.01, 0.2, 1.0)


class PolicyActor(Actor):
    """A policy: temperature 0 takes the likeliest tokens, above it samples from the `top_k` likeliest (0: all)."""

    def __init__(self, policy: Policy, temperature: float, top_k: int) -> None:
        self.policy, self.temperature, self.top_k = policy, temperature, top_k

    def session(self) -> AbstractContextManager[None]:
        """For the time in which weights stay as they are."""
        return self.policy.fixed_weights()

    def start(self, env: VectorEnv, episode_ids: Sequence[int], seed: int) -> None:
        """Seed each episode's noise."""
        self.noise = EpisodeNoise(seed, episode_ids) if self.temperature > 0 else None

    def act(self, observation: Observation) -> Tensor:
        """Actions `[E, A]`."""
        observation = self.policy.see(observation)
        if self.noise is None:
            output = self.policy.act(observation, None)
        else:
            output = self.policy.act(observation, self.noise.draw(), self.temperature, self.top_k)
        return self.policy.decode(output.action_tokens)


class RandomActor(Actor):
    """Uniform actions, the same for the same seed and episode whoever shares the batch."""

    looks = False

    def start(self, env: VectorEnv, episode_ids: Sequence[int], seed: int) -> None:
        """Seed each episode."""
        self.generators = [_generator(seed, episode) for episode in episode_ids]

    def act(self, observation: Observation) -> Tensor:
        """Actions `[E, A]`."""
        share = torch.stack([torch.rand(ACTION_DIM, generator=generator) for generator in self.generators])
        return (2 * share - 1) * torch.tensor(RANDOM_LIMIT)


class FunctionActor(Actor):
    """Any function from an observation (see `contracts.Observation`) to actions `[E, A]`."""

    def __init__(self, function: Callable[[Observation], Tensor]) -> None:
        self.function = function

    def start(self, env: VectorEnv, episode_ids: Sequence[int], seed: int) -> None:
        """Nothing to remember."""

    def act(self, observation: Observation) -> Tensor:
        """Actions `[E, A]`."""
        return self.function(observation)


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


def _generator(seed: int, episode: int) -> torch.Generator:
    mixed = np.random.SeedSequence([seed, episode]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
