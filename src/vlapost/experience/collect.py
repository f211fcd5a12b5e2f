"""Online rollouts: the policy acts, the simulator answers, everything is kept. Knows no learning rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import Tensor

from vlapost.contracts import ACTION_BINS, ACTION_DIM, Metrics, Policy, Rollout, VectorEnv


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time inside the `with` block to `stage`."""
        start = perf_counter()
        yield
        self.seconds[stage] += perf_counter() - start


def gumbel_noise(batch: int, generator: torch.Generator) -> Tensor:
    """Gumbel(0, 1) noise `[B, A, V]` float32: argmax(logits / T + noise) draws from softmax(logits / T)."""
    exponential = torch.empty(batch, ACTION_DIM, ACTION_BINS).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()


@torch.no_grad()
def collect(
    env: VectorEnv,
    policy: Policy,
    episode_ids: Tensor,
    generator: torch.Generator,
    temperature: float,
    watch: Stopwatch,
    on_step: Callable[[int], None] = lambda steps: None,
) -> Rollout:
    """Run the episodes `episode_ids` `[rounds * E]` to their end, E at a time, and stack them along the E axis."""
    with policy.fixed_weights():
        rounds = [_episodes(env, policy, ids, generator, temperature, watch, on_step)
                  for ids in episode_ids.split(env.num_envs)]  # fmt: skip
    return rounds[0] if len(rounds) == 1 else _concatenate(rounds)


def _episodes(
    env: VectorEnv,
    policy: Policy,
    episode_ids: Tensor,
    generator: torch.Generator,
    temperature: float,
    watch: Stopwatch,
    on_step: Callable[[int], None],
) -> Rollout:
    with watch("simulation"):
        observation = env.reset(episode_ids)
    steps: dict[str, list[Tensor]] = defaultdict(list)
    truncated = False
    while not truncated:
        with watch("inference"):
            observation = policy.see(observation)
            output = policy.act(observation, gumbel_noise(len(observation), generator), temperature)
            action = policy.decode(output.action_tokens)
        steps["image"].append(observation.image)
        for name in ("patches", "state"):
            if (extra := getattr(observation, name)) is not None:
                steps[name].append(extra)
        with watch("simulation"):
            step = env.step(action)
        observation, truncated = step.observation, step.truncated
        for name, value in (
            ("action_tokens", output.action_tokens),
            ("logprob", output.logprob),
            ("value", output.value),
            ("reward", step.reward.to(output.value.device)),
        ):
            steps[name].append(value)
        on_step(len(observation))
    with watch("inference"):
        last_value = policy.value(policy.see(observation))
    return Rollout(
        **{name: torch.stack(values) for name, values in steps.items()},
        instruction=observation.instruction,
        last_value=last_value,
        metrics=step.metrics,
        episode_id=episode_ids,
    )


def _concatenate(rounds: list[Rollout]) -> Rollout:
    def join(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(r, name) for r in rounds], dim)

    along_e = ("image", "action_tokens", "logprob", "value", "reward")
    measures = ("success", "success_once", "grasp", "consecutive_grasp")
    return Rollout(
        **{name: join(name, 1) for name in along_e},
        **{name: join(name, 1) for name in ("patches", "state") if getattr(rounds[0], name) is not None},
        instruction=tuple(sentence for r in rounds for sentence in r.instruction),
        last_value=join("last_value", 0),
        metrics=Metrics(*[torch.cat([getattr(r.metrics, m) for r in rounds]) for m in measures]),
        episode_id=join("episode_id", 0),
    )
