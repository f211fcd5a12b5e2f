"""Every algorithm learns: an untrained openvla-tiny finds out that it is paid, 10 per metre, for lowering its hand
when it sees red and for lifting it when it sees blue. Actions are uniform at first, at most 3 cm, so that the return is
about 0; at most it is 8 x 0.3 = 2.4. Everything but the simulator is real. Three seeds each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlapost import config, train
from vlapost.build import build_experience, build_module, build_policy
from vlapost.config import Config
from vlapost.contracts import DemoBatch, Metrics, Observation, Rollout, Step
from vlapost.experience.datamodule import DemoFeed

WORDS = [
    "policy.lora_rank=4", "policy.train_vision=false", "env.num_envs=16", "experience.rounds=2", "optim.batch_size=32",
    "trainer.devices=1", "trainer.accelerator=cpu", "trainer.eval_every=0",
]  # fmt: skip
RULES = {
    "ppo": ["optim.lr=3e-3", "algorithm.gamma=0.5"],
    "grpo": ["optim.lr=3e-3", "experience.same_start=8"],
    "tpo": ["optim.lr=3e-3", "experience.same_start=8", "optim.accumulate=1"],
}
RED, BLUE = (200, 0, 0), (0, 0, 200)


class RedOrBlue:
    """16 episodes of 8 steps side by side; even ones are red. It is the simulation of a run and its scenes at once."""

    steps, num_envs = 8, 16

    def make(self) -> RedOrBlue:
        return self

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, 1000, (count,), generator=generator)

    def evaluate(self, env: object, ids: list[int], record: int) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
        raise NotImplementedError

    def reset(self, episode_ids: Tensor) -> Observation:
        self.time, self.red = 0, episode_ids % 2 == 0
        return self.see()

    def see(self) -> Observation:
        colour = torch.where(self.red[:, None], torch.tensor(RED), torch.tensor(BLUE)).to(torch.uint8)
        image = colour[:, None, None].expand(-1, 128, 128, -1).contiguous()
        return Observation(image, ("put carrot on plate",) * len(self.red))

    def step(self, action: Tensor) -> Step:
        self.time += 1
        never = torch.zeros(len(self.red), dtype=torch.bool)
        reward = 10 * action[:, 2] * torch.where(self.red, -1.0, 1.0)
        return Step(self.see(), reward, Metrics(never, never, never, never), self.time == self.steps)

    def close(self) -> None:
        pass


def returns(cfg: Config, folder: Path, feed: DemoFeed | None = None) -> list[float]:
    """Mean return of the rollouts of every iteration, trained on the way."""
    policy = build_policy(cfg)
    module = build_module(cfg, policy)
    data = build_experience(cfg, policy, module, lambda: feed or pytest.fail("no demonstrations"))
    data.simulation = RedOrBlue()  # type: ignore[assignment]
    found: list[float] = []
    rollout_of = data._rollout

    def rollout(generator: torch.Generator) -> Rollout:
        rollout = rollout_of(generator)
        found.append(float(rollout.reward.sum(0).mean()))
        return rollout

    data._rollout = rollout  # type: ignore[method-assign]
    train.fit(cfg, folder, module, data)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", RULES)
def test_rl_earns_more_than_it_did(name: str, seed: int, tiny: Path, tmp_path: Path):
    words = [*WORDS, *RULES[name], f"policy.checkpoint={tiny}", f"seed={seed}", "trainer.iterations=6"]
    found = returns(config.load(name, words), tmp_path)
    print(name, seed, found)
    assert abs(found[0]) < 0.4
    assert found[-1] > found[0] + 0.6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sft_does_what_it_was_shown(seed: int, tiny: Path, tmp_path: Path):
    """Demonstrations of the best action, then one rollout."""
    words = [*WORDS, f"policy.checkpoint={tiny}", f"seed={seed}", "trainer.iterations=2", "optim.lr=3e-3"]
    cfg = config.load("ppo", [*words, "experience.schedule=[demos,rollout]", "experience.demo_steps=20"])
    env = RedOrBlue()
    seen = env.reset(torch.arange(16))
    tokens = torch.full((16, 7), 128)
    tokens[:, 2] = torch.where(env.red, 0, 255)
    (found,) = returns(cfg, tmp_path, DemoFeed(16, lambda index, g: DemoBatch(seen.take(index), tokens[index])))
    print("sft", seed, found)
    assert found > 1.2
