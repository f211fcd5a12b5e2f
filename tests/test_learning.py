"""All four algorithms learn, three seeds each, on a task for seconds: eight looks at one picture, no simulator, paid
for lowering the hand, 10 per metre.

openvla-tiny first learns by SFT to go all the way up or all the way down, either half of the time, which earns nothing
on the average; PPO, GRPO and TPO have to find out which of the two pays. SFT itself is shown the way down.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlapost import config, train
from vlapost.build import build_experience, build_module, build_policy
from vlapost.config import Config
from vlapost.contracts import DemoBatch, Metrics, Observation, Rollout, Step
from vlapost.experience.buffer import seeded
from vlapost.experience.collect import Stopwatch, collect
from vlapost.experience.datamodule import DemoFeed
from vlapost.policies.policy import OpenVLAPolicy

LOWEST, HIGHEST, STILL = 0, 255, 128
WORDS = [
    "policy.lora_rank=4", "policy.train_vision=false", "trainer.devices=1", "trainer.accelerator=cpu",
    "trainer.eval_every=0", "env.num_envs=16", "optim.batch_size=32",
]  # fmt: skip
RL = ["experience.rounds=2", "experience.same_start=8", "optim.lr=2e-4"]
SFT = ["optim.lr=3e-3", "optim.warmup_steps=0", "experience.demo_steps=60", "trainer.iterations=1"]


class EightLooks:
    """16 episodes side by side that all look alike; paid for lowering the hand, 10 per metre."""

    steps, num_envs = 8, 16

    def reset(self, episode_ids: Tensor) -> Observation:
        self.time = 0
        return self.look()

    def look(self) -> Observation:
        return Observation(torch.full((16, 128, 128, 3), 100, dtype=torch.uint8), ("put carrot on plate",) * 16)

    def step(self, action: Tensor) -> Step:
        self.time += 1
        never = torch.zeros(16, dtype=torch.bool)
        return Step(self.look(), -10 * action[:, 2], Metrics(never, never, never, never), self.time == self.steps)

    def close(self) -> None:
        pass


def shown(heights: list[int]) -> DemoFeed:
    """Demonstrations on that picture: tokens of z from `heights` in turn, all others without motion."""
    look = EightLooks().look()
    tokens = torch.full((40, 7), STILL)
    tokens[:, 2] = torch.tensor(heights).repeat(40 // len(heights))
    return DemoFeed(
        40, lambda i, g: DemoBatch(Observation(look.image[i % 16], look.instruction[:1] * len(i)), tokens[i])
    )


def share(rollout: Rollout, policy: OpenVLAPolicy) -> float:
    """Mean return as a share of what can be earned."""
    most = -10 * EightLooks.steps * float(policy.decode(torch.full((1, 7), LOWEST))[0, 2])
    return float(rollout.reward.sum(0).mean()) / most


def returns(cfg: Config, policy: OpenVLAPolicy, folder: Path, feed: DemoFeed | None = None) -> list[float]:
    """Those of the rollouts of every iteration, trained on the way."""
    module = build_module(cfg, policy)
    data = build_experience(cfg, policy, module, lambda: feed or pytest.fail("no demonstrations"))
    data.simulation.steps = EightLooks.steps
    found: list[float] = []
    rollout_of: Callable[[torch.Generator], Rollout] = data._rollout

    def rollout(generator: torch.Generator) -> Rollout:
        rollout = rollout_of(generator)
        found.append(share(rollout, policy))
        return rollout

    data._rollout = rollout  # type: ignore[method-assign]
    train.fit(cfg, folder, module, data, None)
    return found


@pytest.fixture(autouse=True)
def eight_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlapost.build.make_env", lambda cfg: EightLooks())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ppo", ["algorithm.gamma=0.5", "trainer.iterations=3"]),
        ("grpo", ["trainer.iterations=6"]),
        ("tpo", ["optim.accumulate=4", "trainer.iterations=4"]),
    ],
)
def test_rl_finds_out_what_pays(name: str, words: list[str], seed: int, tmp_path: Path):
    shared = [*WORDS, f"seed={seed}"]
    cfg = config.load(name, [*shared, *RL, *words])
    policy = build_policy(cfg)
    returns(config.load("sft", [*shared, *SFT]), policy, tmp_path / "sft", shown([LOWEST, HIGHEST]))
    found = returns(cfg, policy, tmp_path / name)
    assert abs(found[0]) < 0.3
    assert found[-1] > 0.6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sft_does_what_it_was_shown(seed: int, tmp_path: Path):
    def rollout() -> float:
        return share(collect(EightLooks(), policy, torch.arange(32), seeded(seed), 1.0, Stopwatch()), policy)  # type: ignore[arg-type]

    cfg = config.load("sft", [*WORDS, *SFT, f"seed={seed}"])
    policy = build_policy(cfg)
    before = rollout()
    assert returns(cfg, policy, tmp_path, shown([LOWEST])) == []  # nothing but demonstrations
    assert before < 0.5
    assert rollout() > 0.9
