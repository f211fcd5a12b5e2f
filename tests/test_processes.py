"""What two processes work out together, without a simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from vlapost.algorithms.ppo import PPO


def advantage(reward: Tensor) -> Tensor:
    """PPO's, normalised, of a critic that says 0."""
    rules = SimpleNamespace(
        gamma=0.9, gae_lambda=0.8, value_lambda=0.8, bootstrap_truncation=False, normalise_advantage=True
    )
    nothing, done = torch.zeros_like(reward), torch.zeros_like(reward, dtype=torch.bool)
    done[-1] = True
    rollout = SimpleNamespace(reward=reward, value=nothing, last_value=nothing[0], done=done)
    return PPO.advantage(SimpleNamespace(algorithm=rules), rollout)[0]  # type: ignore[arg-type]


def rewards(rank: int) -> Tensor:
    """`[4, 3]`, those of the second process ten times as large."""
    return torch.rand(4, 3, generator=torch.Generator().manual_seed(rank)) * 10**rank


def one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.save(advantage(rewards(rank)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_advantages_are_normalised_over_the_buffers_of_all_processes(tmp_path: Path):
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    both = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)], 1)
    torch.testing.assert_close(both, advantage(torch.cat([rewards(0), rewards(1)], 1)))


TRAIN = """
import sys
from pathlib import Path

from test_train import build_experience, build_module, build_policy, noise_feed, settings, train
from vlapost.policies.policy import save_policy

name, tiny, folder, *words = sys.argv[1:]
cfg = settings(name, words, Path(tiny), 1)
policy = build_policy(cfg)
module = build_module(cfg, policy)
data = build_experience(cfg, policy, module, lambda: noise_feed(cfg, policy))
if train.fit(cfg, Path(folder), module, data, None):
    save_policy(policy, Path(folder) / "adapter")
"""


def fit(name: str, tiny: Path, folder: Path, words: list[str]) -> None:
    """Train one iteration on random pictures in as many processes as the words say."""
    (folder.parent / "fit.py").write_text(TRAIN)
    child = subprocess.run(
        [sys.executable, folder.parent / "fit.py", name, tiny, folder, "trainer.accelerator=cpu", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_two_processes_learn_what_one_does_with_minibatches_twice_as_large(name: str, tiny: Path, tmp_path: Path):
    """PPO's imitation, which gives the critic no gradient but zeros."""
    words = ["trainer.eval_every=0", "experience.schedule=[demos]", "experience.demo_steps=3", "optim.lr=1e-2"]
    words += ["experience.rounds=1", "policy.train_vision=true"]
    for devices, batch in ((1, 4), (2, 2)):
        sizes = [f"trainer.devices={devices}", f"optim.batch_size={batch}"]
        fit(name, tiny, tmp_path / str(devices), [*words, *sizes])
    one, two = (load_file(tmp_path / f"{devices}/adapter/adapter_model.safetensors") for devices in (1, 2))
    assert all(tensor.any() for tensor in one.values())  # B began at zero: everything has moved
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=2e-4, rtol=1e-3)


def test_processes_may_have_unequally_many_minibatches_to_look_at(tiny: Path, tmp_path: Path):
    """Three held-out samples, two in the first process and one in the other; at rate 0 their loss is known."""
    from test_train import build_policy, noise_feed, settings
    from vlapost.algorithms.base import token_cross_entropy

    words = ["trainer.devices=2", "optim.batch_size=1", "experience.demo_steps=2"]
    words = [*words, "demos.held_out=3", "trainer.eval_every=1", "trainer.eval_episodes=0", "optim.lr=0"]
    fit("sft", tiny, tmp_path / "sft", words)
    cfg = settings("sft", words, tiny, 1)
    policy = build_policy(cfg)
    batch = noise_feed(cfg, policy).make(torch.arange(9, 12), None)
    with torch.no_grad():
        loss = token_cross_entropy(policy.action_logits(batch.observation, batch.action_tokens), batch.action_tokens)  # type: ignore[union-attr]
    events = EventAccumulator(str(tmp_path / "sft")).Reload()
    assert events.Scalars("val/demo_loss")[0].value == pytest.approx(float(loss), rel=1e-5)
