"""Where settings become parts: the only file in which simulator, policy, experience and algorithms meet."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vlapost.algorithms.base import PolicyModule
from vlapost.algorithms.grpo import GRPO
from vlapost.algorithms.ppo import PPO
from vlapost.algorithms.sft import SFT
from vlapost.algorithms.tpo import TPO
from vlapost.cli import console
from vlapost.config import ROOT, Config, UserError
from vlapost.contracts import Actor, DemoBatch, Observation, VectorEnv
from vlapost.drivers import gpus
from vlapost.envs import episodes
from vlapost.envs.setups import setup_of
from vlapost.envs.vector import make_env
from vlapost.evaluation.actors import FunctionActor, PolicyActor, RandomActor
from vlapost.evaluation.episodes import run_episodes
from vlapost.evaluation.summary import METRICS
from vlapost.experience.augment import augment
from vlapost.experience.buffer import Cut, paired, shuffled
from vlapost.experience.datamodule import DemoFeed, ExperienceModule
from vlapost.experience.demos import DemoDataset
from vlapost.experience.sizes import samples
from vlapost.planner.actor import PlannerActor
from vlapost.policies.hub import locate
from vlapost.policies.load import load_policy
from vlapost.policies.policy import OpenVLAPolicy


def build_policy(config: Config, device: str = "cpu") -> OpenVLAPolicy:
    """The policy with its adapter; relative paths in the settings are relative to the repository."""
    p = config.policy
    torch.manual_seed(config.seed)  # of new adapters and critics
    dtype = torch.bfloat16 if config.trainer.precision.startswith("bf16") else torch.float32
    statistics, adapter = (str(ROOT / place) if place else "" for place in (p.statistics, p.adapter))
    located = replace(p, checkpoint=str(locate(p.checkpoint, ROOT)), statistics=statistics, adapter=adapter)
    return load_policy(located, device, dtype)


def build_actor(config: Config) -> Actor:
    """Who acts in an evaluation, as `evaluation.actor` says: also a function or a `contracts.Actor` class of yours.

    Raises:
        UserError: what cannot be imported or called, a class that is no Actor or needs arguments, or what building the
            policy raises.
    """
    e = config.evaluation
    if e.actor == "random":
        return RandomActor()
    if e.actor == "planner":
        return PlannerActor()
    if e.actor == "policy":
        device = "cuda" if gpus(config.trainer.accelerator) else "cpu"
        acting = replace(config, policy=replace(config.policy, critic="none"))  # nobody asks for values
        return PolicyActor(build_policy(acting, device), e.temperature, e.top_k)
    module, _, function = e.actor.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"evaluation.actor is '{e.actor}', which cannot be imported: {error}.") from None
    if not callable(found):
        raise UserError(f"evaluation.actor is '{e.actor}', which is neither a function nor a class.")
    if not isinstance(found, type):
        return FunctionActor(found)
    if Actor not in found.__mro__:
        raise UserError(
            f"evaluation.actor is '{e.actor}', a class that does not inherit vlapost.contracts.Actor; let it, or name "
            "a function."
        )
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"evaluation.actor is '{e.actor}', a class that cannot be made without arguments: {error}; name a function "
            "or a class that can."
        ) from None
    return found()


def build_module(config: Config, policy: OpenVLAPolicy) -> PolicyModule:
    """The learning rule named by `algorithm.name`."""
    a, optim, steps = config.algorithm, config.optim, total_steps(config)
    if a.name == "sft":
        return SFT(policy, a, optim, steps)
    if a.name == "ppo":
        return PPO(policy, a, config.experience, optim, steps)
    if a.name == "grpo":
        return GRPO(policy, a, config.experience, optim, steps)
    if a.name == "tpo":
        return TPO(policy, a, config.experience, optim, steps)
    raise UserError(f"algorithm.name is '{a.name}'; it must be sft, ppo, grpo or tpo.")


def build_cut(config: Config, module: PolicyModule) -> Cut | None:
    """How a rollout becomes minibatches: of shuffled steps, or of pairs of episodes; None without rollouts."""
    batch, passes = config.optim.batch_size, config.experience.passes
    if isinstance(module, PPO | GRPO):
        return partial(shuffled, advantage=module.advantage, batch_size=batch, passes=passes)
    if isinstance(module, TPO):
        return partial(
            paired, pairs=module.pairs, weigh=module.weigh,
            batch_size=batch, accumulate=config.optim.accumulate, passes=passes,
        )  # fmt: skip
    return None


def total_steps(config: Config) -> int:
    """Optimiser steps of the whole run."""
    e, batch = config.experience, config.optim.batch_size
    batches = {"demos": e.demo_steps, "rollout": e.passes * samples(config, setup_of(config.env).task.steps) // batch}
    sources = [e.schedule[i % len(e.schedule)] for i in range(config.trainer.iterations)]
    return sum(-(-batches[source] // config.optim.accumulate) for source in sources)


def build_experience(
    config: Config, policy: OpenVLAPolicy, module: PolicyModule, feed: Callable[[], DemoFeed] | None = None
) -> ExperienceModule:
    """Rollouts of this policy, judged by this module, and the stored demonstrations (as `feed` makes them)."""
    simulation = PlaceOnPlate(config, policy)
    return ExperienceModule(
        config,
        policy,
        build_cut(config, module),
        simulation,
        feed or (lambda: demo_feed(config, policy)),
        simulation.held_out,
    )


def demo_feed(config: Config, policy: OpenVLAPolicy) -> DemoFeed:
    """Minibatches of the stored demonstrations."""
    demos = open_demos(config)
    tokens = policy.encode(demos.actions)
    if os.environ.get("LOCAL_RANK", "0") == "0" and (lost := policy.actions.lost(demos.actions)):
        console.print(
            f"{config.demos.path}: many actions lie outside of the 1 to 99 % range of policy.unnorm_key="
            f"{config.policy.unnorm_key} and are cut to it ({lost}); docs/exchange.md says how to learn with their own."
        )

    def make(index: Tensor, generator: torch.Generator | None) -> DemoBatch:
        observation = Observation(*demos.observation(index))
        if config.experience.augment and generator is not None:
            observation = replace(observation, image=augment(observation.image, generator))
        return DemoBatch(observation, tokens[index])

    size = int((demos.episode < config.demos.episodes).sum())
    return DemoFeed(size, make, len(demos) - size)


def open_demos(config: Config) -> DemoDataset:
    """The stored demonstrations, filtered as the settings say."""
    d = config.demos
    wanted = d.episodes + d.held_out
    data = DemoDataset(ROOT / d.path, d.filter, d.min_translation, d.min_rotation, wanted, d.skip_corrupt)
    if data.meta.views != d.views:
        raise UserError(
            f"demos.path={d.path} holds {'views' if data.meta.views else 'demonstrations'}, where "
            f"demos.views={d.views} asks for {'views' if d.views else 'demonstrations'}; name another folder."
        )
    if data.skipped:
        names = ", ".join(file.path.name for file in data.skipped)
        attempts = sum(file.end - file.begin for file in data.skipped)
        console.print(f"{d.path}: {len(data.skipped)} damaged shards are left out, {attempts} attempts: {names}.")
    return data


class PlaceOnPlate:
    """The benchmark's scenes for one process: training starts that are never held out, and held-out episodes."""

    def __init__(self, config: Config, policy: OpenVLAPolicy):
        self.config, self.policy = config, policy
        named = config.env.id, config.env.obj_set, config.env.protocol
        self.setup = setup_of(config.env)
        self.steps = self.setup.task.steps
        self.held_out = episodes.held_out(*named)
        self.reserved = episodes.reserved(*named)

    def make(self) -> VectorEnv:
        """Build the scenes."""
        env = make_env(self.config.env)
        env.approach_reward = self.config.experience.approach_reward
        env.tells_state = self.config.policy.critic == "state"
        return env

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform training episode ids `[count]`."""
        return episodes.draw(self.setup, count, generator, self.reserved)

    def evaluate(self, env: VectorEnv, ids: list[int], record: int) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
        """Run `ids`, `env.num_envs` at a time."""
        e = self.config.evaluation
        actor = PolicyActor(self.policy, e.temperature, e.top_k)
        for start in range(0, len(ids), env.num_envs):
            group = ids[start : start + env.num_envs]
            results = run_episodes(actor, env, group, self.config.seed, max(0, record - start))
            metrics = {name: torch.tensor([getattr(r, name) for r in results]) for name in METRICS}
            yield metrics, [torch.from_numpy(r.frames) for r in results if r.frames is not None]
