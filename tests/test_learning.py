"""All four algorithms learn, three seeds each: openvla-tiny, paid for lowering its hand, lowers it.

SFT starts from random weights, whose bins are uniform. The others start from what SFT has taught: a hand that half of
the time goes up and half of the time down, 3 cm per step, and does nothing else. On the average it stays where it is.
The return is 10 per metre of command: -24 to 24 in 80 steps.
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
from vlapost.policies.policy import OpenVLAPolicy

LOWEST, HIGHEST, STILL = 0, 255, 128
WORDS = [
    "policy.lora_rank=4", "policy.train_vision=false", "env.num_envs=2", "experience.rounds=2", "optim.lr=3e-2",
    "optim.batch_size=40", "trainer.devices=1", "trainer.accelerator=cpu", "trainer.eval_every=0",
]  # fmt: skip


def shown(heights: list[int], seed: int) -> DemoFeed:
    """Demonstrations on random pictures: tokens of z from `heights` in turn, all others without motion."""
    image = torch.randint(0, 256, (40, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    tokens = torch.full((40, 7), STILL)
    tokens[:, 2] = torch.tensor(heights).repeat(40 // len(heights))
    return DemoFeed(40, lambda i, g: DemoBatch(Observation(image[i], ("put carrot on plate",) * len(i)), tokens[i]))


def returns(cfg: Config, policy: OpenVLAPolicy, folder: Path, feed: DemoFeed | None = None) -> list[float]:
    """Mean return of the rollouts of every iteration, trained on the way."""
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
def test_sft_does_what_it_was_shown(seed: int, tiny: Path, tmp_path: Path):
    words = [*WORDS, f"policy.checkpoint={tiny}", f"seed={seed}", "trainer.iterations=2"]
    cfg = config.load("ppo", [*words, "experience.schedule=[demos,rollout]", "experience.demo_steps=60"])
    (found,) = returns(cfg, build_policy(cfg), tmp_path, shown([LOWEST], seed))
    assert found > 1.6  # two standard errors of chance


@pytest.mark.sim
@pytest.mark.usefixtures("lowering_pays")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ppo", ["optim.lr=1e-3"]),
        ("grpo", ["optim.lr=1e-3", "experience.same_start=4"]),
        ("tpo", ["optim.lr=1e-3", "experience.same_start=4", "optim.accumulate=8"]),
    ],
)
def test_rl_learns_what_pays(name: str, words: list[str], seed: int, tiny: Path, tmp_path: Path):
    words = [*WORDS, f"policy.checkpoint={tiny}", f"seed={seed}", *words]
    cfg = config.load(name, [*words, "trainer.iterations=4"])
    policy = build_policy(cfg)
    teach = config.load("sft", [*WORDS, f"policy.checkpoint={tiny}", f"seed={seed}", "trainer.iterations=1"])
    returns(teach, policy, tmp_path / "sft", shown([LOWEST, HIGHEST], seed))
    found = returns(cfg, policy, tmp_path / name)
    print(name, seed, found)
    assert abs(found[0]) < 6
    assert found[-1] > found[0] + 6
