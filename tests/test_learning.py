"""All four algorithms learn, three seeds each.

PPO and SFT in the simulator: an untrained openvla-tiny, paid for lowering its hand, lowers it. Bins are uniform at
first, so that the hand moves 0 on average and the return is 0 +- 1 (10 per metre, 80 steps of at most 3 cm).

GRPO and TPO, which only compare whole episodes, get a simpler task: eight looks at one picture, no simulator, the same
pay, from the pretrained openvla-tiny that SFT has taught to go all the way up or down, either half of the time.
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
from vlapost.experience.datamodule import DemoFeed
from vlapost.policies.policy import OpenVLAPolicy

LOWEST, HIGHEST, STILL = 0, 255, 128
ALONE = ["policy.lora_rank=4", "policy.train_vision=false", "trainer.devices=1", "trainer.accelerator=cpu"]
WORDS = [
    *ALONE, "env.num_envs=2", "experience.rounds=2", "optim.lr=1e-2", "optim.batch_size=40", "trainer.eval_every=0",
]  # fmt: skip
COMPARING = [
    *ALONE, "env.num_envs=16", "experience.rounds=2", "experience.same_start=8", "optim.lr=1e-3",
    "optim.warmup_steps=0", "optim.batch_size=40", "trainer.iterations=3", "trainer.eval_every=0",
]  # fmt: skip


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


def shown(image: Tensor, heights: list[int]) -> DemoFeed:
    """Demonstrations on 40 pictures: tokens of z from `heights` in turn, all others without motion."""
    tokens = torch.full((40, 7), STILL)
    tokens[:, 2] = torch.tensor(heights).repeat(40 // len(heights))
    return DemoFeed(40, lambda i, g: DemoBatch(Observation(image[i], ("put carrot on plate",) * len(i)), tokens[i]))


def returns(cfg: Config, policy: OpenVLAPolicy, folder: Path, feed: DemoFeed | None = None) -> list[float]:
    """Mean return of the rollouts of every iteration, trained on the way."""
    module = build_module(cfg, policy)
    data = build_experience(cfg, policy, module, lambda: feed or pytest.fail("no demonstrations"))
    found: list[float] = []
    rollout_of: Callable[[torch.Generator], Rollout] = data._rollout

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
    cfg = config.load("ppo", words)
    found = returns(cfg, build_policy(cfg), tmp_path)
    assert abs(found[0]) < 2
    assert found[-1] > found[0] + 2


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "words"), [("grpo", []), ("tpo", ["optim.accumulate=4"])])
def test_comparing_episodes_is_enough(
    name: str, words: list[str], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vlapost.build.make_env", lambda cfg: EightLooks())
    shared = [*COMPARING, f"seed={seed}"]
    cfg = config.load(name, [*shared, *words])
    policy = build_policy(cfg)
    teach = config.load("sft", [*shared, "optim.lr=3e-3", "experience.demo_steps=60", "trainer.iterations=1"])
    picture = EightLooks().look().image[:1].expand(40, -1, -1, -1)
    returns(teach, policy, tmp_path / "sft", shown(picture, [LOWEST, HIGHEST]))
    found = returns(cfg, policy, tmp_path / name)
    assert abs(found[0]) < 0.8
    assert found[-1] > found[0] + 1.2


@pytest.mark.sim
@pytest.mark.usefixtures("lowering_pays")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sft_does_what_it_was_shown(seed: int, tiny: Path, tmp_path: Path):
    """Demonstrations of the lowest bin of z on random pictures, then one rollout."""
    words = [*WORDS, f"policy.checkpoint={tiny}", f"seed={seed}", "trainer.iterations=2", "optim.lr=3e-2"]
    cfg = config.load("ppo", [*words, "experience.schedule=[demos,rollout]", "experience.demo_steps=60"])
    image = torch.randint(0, 256, (40, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    (found,) = returns(cfg, build_policy(cfg), tmp_path, shown(image, [LOWEST]))
    assert found > 1.6  # two standard errors of chance; 80 steps of 3 cm are 24
