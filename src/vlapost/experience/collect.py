"""Online rollouts: the policy acts, the simulator answers, everything is kept. Knows no learning rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from time import perf_counter

import torch
from torch import Tensor

from vlapost.contracts import ACTION_BINS, ACTION_DIM, Metrics, Policy, Rollout, VectorEnv

MEASURES = [field.name for field in fields(Metrics)]


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
    another: Callable[[int], Tensor] | None = None,
    success_steps: int = 1,
) -> Rollout:
    """Run the episodes `episode_ids` `[rounds * E]`, E at a time, and stack them along the E axis.

    Args:
        on_step: hears how many control steps were done.
        another: gives that many episode ids. If there is one, an episode ends at success and another begins in its
            place; what is not finished after as many steps as an episode may have is cut.
        success_steps: for how many steps in a row success has to last for that, 1 or more. Success that is not paid,
            of an object never grasped, does not count: the episode goes on, for it to be grasped.
    """
    with policy.fixed_weights():
        rounds = [_episodes(env, policy, ids, generator, temperature, watch, on_step, another, success_steps)
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
    another: Callable[[int], Tensor] | None,
    success_steps: int,
) -> Rollout:
    with watch("simulation"):
        observation = env.reset(episode_ids)
    steps: dict[str, list[Tensor]] = defaultdict(list)
    instruction: list[tuple[str, ...]] = []
    finished: list[Metrics] = []
    age = torch.zeros(len(episode_ids), dtype=torch.int64)
    lasted = torch.zeros_like(age)  # steps of success in a row
    for t in range(1, env.steps + 1):
        with watch("inference"):
            observation = policy.see(observation)
            output = policy.act(observation, gumbel_noise(len(observation), generator), temperature)
            action = policy.decode(output.action_tokens)
            if action.is_cuda:
                torch.cuda.synchronize()  # who waits for the actions is not simulating
        steps["image"].append(observation.image)
        instruction.append(observation.instruction)
        for name in ("patches", "state"):
            if (extra := getattr(observation, name)) is not None:
                steps[name].append(extra)
        with watch("simulation"):
            step = env.step(action)
        age += 1
        done = age >= env.steps
        if another is not None:
            paid = step.metrics.success & step.metrics.grasp
            lasted = torch.where(paid.cpu(), lasted + 1, 0)
            done = done | (lasted >= success_steps)
        ends = torch.ones_like(done) if t == env.steps else done
        if bool(ends.any()):
            finished.append(Metrics(*(getattr(step.metrics, name).cpu()[ends] for name in MEASURES)))
        observation = step.observation
        if another is not None and t < env.steps and bool(done.any()):
            which = done.nonzero()[:, 0]
            with watch("simulation"):
                observation = env.restart(which, another(len(which)))
            age[which] = lasted[which] = 0
        device = output.value.device
        for name, value in (
            ("action_tokens", output.action_tokens),
            ("logprob", output.logprob),
            ("value", output.value),
            ("reward", step.reward.to(device)),
            ("done", done.to(device)),
        ):
            steps[name].append(value)
        on_step(len(observation))
    with watch("inference"):
        last_value = policy.value(policy.see(observation))
    return Rollout(
        **{name: torch.stack(values) for name, values in steps.items()},
        instruction=tuple(instruction),
        last_value=last_value,
        metrics=_join(finished),
    )


def _concatenate(rounds: list[Rollout]) -> Rollout:
    def join(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(r, name) for r in rounds], dim)

    along_e = ("image", "action_tokens", "logprob", "value", "reward", "done")
    return Rollout(
        **{name: join(name, 1) for name in along_e},
        **{name: join(name, 1) for name in ("patches", "state") if getattr(rounds[0], name) is not None},
        instruction=tuple(sum(at_t, ()) for at_t in zip(*(r.instruction for r in rounds))),
        last_value=join("last_value", 0),
        metrics=_join([r.metrics for r in rounds]),
    )


def _join(parts: list[Metrics]) -> Metrics:
    return Metrics(*(torch.cat([getattr(part, name) for part in parts]) for name in MEASURES))
