"""PPO and SFT learn: an untrained openvla-tiny, paid for lowering its hand, lowers it. Three seeds each.

Bins are uniform at first, so that the hand moves 0 on average and the return is 0 +- 1 (10 per metre, 80 steps of at
most 3 cm).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlapost import config, train
from vlapost.build import build_experience, build_module, build_policy
from vlapost.config import Config
from vlapost.contracts import DemoBatch, Observation, Rollout
from vlapost.experience.datamodule import DemoFeed

WORDS = [
    "policy.lora_rank=4", "policy.train_vision=false", "env.num_envs=2", "experience.rounds=2", "optim.lr=1e-2",
    "optim.batch_size=40", "trainer.devices=1", "trainer.accelerator=cpu", "trainer.eval_every=0",
]  # fmt: skip


def returns(cfg: Config, folder: Path, feed: DemoFeed | None = None) -> list[float]:
    """Mean return of the rollouts of every iteration, trained on the way."""
    policy = build_policy(cfg)
    module = build_module(cfg, policy)
    data = build_experience(cfg, policy, module, lambda: feed or pytest.fail("no demonstrations"))
    found: list[float] = []
    rollout_of = data._rollout

    def rollout(generator: torch.Generator) -> Rollout:
        rollout = rollout_of(generator)
        found.append(float(rollout.reward.sum(0).mean()))
        return rollout

    data._rollout = rollout  # type: ignore[method-assign]
    train.fit(cfg, folder, module, data)
    return found


@pytest.mark.sim
@pytest.mark.usefixtures("lowering_pays")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_earns_more_than_it_did(seed: int, tiny: Path, tmp_path: Path):
    words = [*WORDS, "algorithm.gamma=0.9", f"policy.checkpoint={tiny}", f"seed={seed}", "trainer.iterations=4"]
    found = returns(config.load("ppo", words), tmp_path)
    assert abs(found[0]) < 2
    assert found[-1] > found[0] + 2


@pytest.mark.sim
@pytest.mark.usefixtures("lowering_pays")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sft_does_what_it_was_shown(seed: int, tiny: Path, tmp_path: Path):
    """Demonstrations of the lowest bin of z on random pictures, then one rollout."""
    words = [*WORDS, f"policy.checkpoint={tiny}", f"seed={seed}", "trainer.iterations=2", "optim.lr=3e-2"]
    cfg = config.load("ppo", [*words, "experience.schedule=[demos,rollout]", "experience.demo_steps=60"])
    image = torch.randint(0, 256, (40, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    tokens = torch.full((40, 7), 128)
    tokens[:, 2] = 0
    demos = DemoFeed(40, lambda i, g: DemoBatch(Observation(image[i], ("put carrot on plate",) * len(i)), tokens[i]))
    (found,) = returns(cfg, tmp_path, demos)
    assert found > 1.6  # two standard errors of chance; 80 steps of 3 cm are 24
