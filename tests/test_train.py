"""Training for real, small: real simulator, untrained openvla-tiny, one process. Resume is bitwise exact on CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlapost import config, train
from vlapost.algorithms.pretrain import Pretrain
from vlapost.build import build_experience, build_module, build_policy, demo_feed
from vlapost.config import ROOT, Config, UserError
from vlapost.contracts import DemoBatch, GroundedBatch, RolloutBatch
from vlapost.experience.datamodule import DemoFeed
from vlapost.policies.policy import load_full_policy

PPO = [
    "experience.rounds=1",
    "trainer.devices=1",
    "trainer.accelerator=cpu",
    "trainer.eval_every=0",
    "env.num_envs=2",
    "optim.batch_size=40",
]
SFT = ["trainer.devices=1", "trainer.accelerator=cpu", "trainer.eval_every=0", "experience.demo_steps=2"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained openvla-tiny whose actions cover a few centimetres."""
    from vlapost.policies.tiny import write_tiny

    folder = tmp_path_factory.mktemp("models") / "openvla-tiny"
    action = {
        "q01": [-0.03] * 3 + [-0.2] * 3 + [-1.0],
        "q99": [0.03] * 3 + [0.2] * 3 + [1.0],
        "mask": [True] * 6 + [False],
    }
    write_tiny(folder, 0, {"world": {"action": action}})
    return folder


@pytest.fixture(autouse=True)
def one_simulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this file share the scenes of the session; a reset rebuilds them, so nothing is carried over."""
    if "sim" in request.keywords:
        env = request.getfixturevalue("env")
        monkeypatch.setattr("vlapost.build.make_env", lambda cfg: env)
        monkeypatch.setattr(env, "close", lambda: None)


def settings(name: str, words: list[str], tiny: Path, iterations: int) -> Config:
    return config.load(
        name, [*words, f"policy.checkpoint={tiny}", f"trainer.iterations={iterations}", "policy.lora_rank=4"]
    )


def test_the_number_printed_is_that_of_the_weights_that_learn(tiny: Path) -> None:
    """Every adapter with the critic; without the encoders' adapters where these stay as they are."""
    cfg = settings("ppo", ["policy.train_vision=true"], tiny, 1)
    policy = build_policy(cfg)
    adapters = {n: t.numel() for n, t in policy.adapter_state().items()}
    critic = 512 * (96 + 1) + 128 * (512 + 1) + 128
    assert train.learning(build_module(cfg, policy)) == sum(adapters.values()) + critic
    cfg = settings("sft", ["policy.train_vision=false"], tiny, 1)
    seeing = sum(count for name, count in adapters.items() if ".vision_backbone." in name)
    assert train.learning(build_module(cfg, build_policy(cfg))) == sum(adapters.values()) - seeing > 0


def noise_feed(cfg: Config, policy) -> DemoFeed:
    """Twelve random pictures with random actions, as a stand-in for a folder of shards."""
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (12, 128, 128, 3), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(0, 256, (12, 7), generator=generator)

    def make(index, generator):
        from vlapost.contracts import Observation

        return DemoBatch(Observation(image[index], ("put carrot on plate",) * len(index)), tokens[index])

    return DemoFeed(12, make)


class PowerCutError(Exception):
    pass


def fit(cfg: Config, folder: Path, cut: bool = False) -> dict[str, torch.Tensor]:
    """Train (or continue) and return the trainable weights; `cut` ends it in the middle of the second iteration."""
    policy = build_policy(cfg)
    module = build_module(cfg, policy)
    data = build_experience(cfg, policy, module, lambda: noise_feed(cfg, policy))
    if cut:
        step = module.training_step

        def until_the_cut(batch, batch_idx):
            if module.current_epoch == 1 and batch_idx == 1:
                raise PowerCutError
            return step(batch, batch_idx)

        module.training_step = until_the_cut  # type: ignore[method-assign]
    assert train.fit(cfg, folder, module, data)
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.sim
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sft", SFT),
        ("ppo", [*PPO, "policy.train_vision=true"]),
        ("ppo", [*PPO, "policy.train_vision=false"]),
        ("ppo", [*PPO, "experience.schedule=[rollout,demos]", "experience.demo_steps=2"]),
    ],
    ids=["sft", "ppo", "frozen encoders", "alternating"],
)
def test_resume_equals_uninterrupted_bitwise(name: str, words: list[str], tiny: Path, tmp_path: Path):
    cfg = settings(name, words, tiny, 2)
    whole = fit(cfg, tmp_path / "whole")
    with pytest.raises(PowerCutError):
        fit(cfg, tmp_path / "cut", cut=True)
    assert [p.name for p in (tmp_path / "cut/checkpoints").iterdir()] == ["iteration00000.ckpt"]
    resumed = fit(cfg, tmp_path / "cut")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def grounded_feed(policy) -> DemoFeed:
    """Random pictures, as `noise_feed`, whose truth is random too."""
    demos = noise_feed(config.load("pretrain"), policy)
    generator = torch.Generator().manual_seed(6)
    position = torch.randn(12, 9, generator=generator)
    labels = torch.randint(0, 4, (12, 128, 128), dtype=torch.uint8, generator=generator)
    return DemoFeed(12, lambda index, g: GroundedBatch(demos.make(index, g), position[index], labels[index]))  # type: ignore[arg-type]


def pretrain(cfg: Config, folder: Path) -> dict[str, torch.Tensor]:
    """Pretrain (or continue) and return all weights."""
    policy = load_full_policy(ROOT / cfg.policy.checkpoint, cfg.policy.unnorm_key)
    torch.manual_seed(cfg.seed)
    module = Pretrain(policy, cfg.grounding, cfg.optim, 4, policy.sizes)
    data = build_experience(cfg, policy, module, lambda: grounded_feed(policy))
    assert train.fit(cfg, folder, module, data)
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_pretraining_moves_every_weight_in_use_and_resumes_bitwise(tiny: Path, tmp_path: Path):
    words = ["trainer.devices=1", "trainer.accelerator=cpu", "trainer.eval_every=0", "experience.demo_steps=2"]
    cfg = settings("pretrain", [*words, "optim.batch_size=4"], tiny, 2)
    whole = pretrain(cfg, tmp_path / "whole")
    pretrain(replace(cfg, trainer=replace(cfg.trainer, iterations=1)), tmp_path / "cut")
    resumed = pretrain(cfg, tmp_path / "cut")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    policy = load_full_policy(tiny, "world")
    before = {f"policy.{name}": p for name, p in policy.named_parameters()}
    for name, after in whole.items():
        if name in before:
            assert torch.equal(before[name], after) != before[name].requires_grad, name


@pytest.mark.sim
def test_first_minibatch_has_ratio_one(tiny: Path):
    """The rollout's cached decoding and the learner's teacher-forced forward agree on log-probabilities and values."""
    cfg = settings("ppo", PPO, tiny, 1)
    policy = build_policy(cfg)
    with torch.no_grad():  # an adapter that does something
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
    module = build_module(cfg, policy)
    data = build_experience(cfg, policy, module)
    data.trainer = type("T", (), {"current_epoch": 0, "global_rank": 0, "world_size": 1})()  # type: ignore[assignment]
    data.setup("fit")
    try:
        batches: list[RolloutBatch] = list(data.train_dataloader())  # type: ignore[arg-type]
    finally:
        data.teardown("fit")
    assert sum(len(b) for b in batches) == 160
    for batch in batches:
        with torch.no_grad():
            new = policy.evaluate(batch.observation, batch.action_tokens)
        ratio = (new.logprob.sum(-1) - batch.logprob).exp()
        assert (ratio - 1).abs().max() < 1e-3
        torch.testing.assert_close(new.value, batch.value, atol=1e-3, rtol=0)
    advantage = torch.cat([b.advantage for b in batches])
    assert advantage.mean().abs() < 1e-4
    assert data.env_steps == 160


@pytest.mark.sim
def test_critic_learns_and_videos_and_scalars_are_written(tiny: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = [*PPO, "trainer.eval_every=1", "trainer.eval_episodes=2", "trainer.video_episodes=1"]
    fit(settings("ppo", words, tiny, 1), tmp_path / "ppo")
    events = EventAccumulator(str(tmp_path / "ppo")).Reload()
    tags = set(events.Tags()["scalars"])
    expected = {
        "train/policy_loss", "train/value_loss", "train/kl", "train/entropy", "train/clip_fraction", "train/grad_norm",
        "rollout/success_end", "rollout/success_once", "rollout/grasp", "rollout/return", "rollout/env_steps",
        "val/success_end", "val/success_once", "val/grasp", "time/simulation_s", "time/inference_s", "time/learning_s",
        "time/env_steps_per_s", "time/learner_samples_per_s", "memory/host_gib",
    }  # fmt: skip
    assert expected <= tags
    assert events.Scalars("train/ratio_first")[0].value == pytest.approx(1.0, abs=1e-3)
    assert "val/episodes" in events.Tags()["images"]
    assert len(list((tmp_path / "ppo/videos").glob("*.mp4"))) == 1


def test_sft_lowers_its_loss_and_changes_only_the_adapter(tiny: Path):
    cfg = settings("sft", [*SFT, "optim.lr=1e-2"], tiny, 1)
    policy = build_policy(cfg)
    module = build_module(cfg, policy)
    module.log = lambda *a, **k: None  # type: ignore[method-assign,assignment]
    frozen = {n: p.detach().clone() for n, p in policy.named_parameters() if not p.requires_grad}
    batch = noise_feed(cfg, policy).make(torch.arange(12), torch.Generator())
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(8):
        loss = module.training_step(batch, 0)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(p, frozen[n]) for n, p in policy.named_parameters() if n in frozen)


def test_kl_stop_leaves_the_weights_alone(tiny: Path):
    cfg = settings("ppo", PPO, tiny, 1)
    module = build_module(cfg, build_policy(cfg))
    optimizer = module.configure_optimizers()["optimizer"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    module.log = lambda *a, **k: None  # type: ignore[method-assign,assignment]
    for stopped in (False, True):
        before = [p.detach().clone() for p in parameters]
        for p in parameters:
            p.grad = torch.ones_like(p)
        module.stopped = stopped
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before, parameters)) is stopped


def test_a_run_keeps_its_settings(tiny: Path, tmp_path: Path):
    train.claim(tmp_path, settings("ppo", PPO, tiny, 1))
    train.claim(tmp_path, settings("ppo", PPO, tiny, 5))  # more iterations may be asked for
    with pytest.raises(UserError, match=r"other settings \(optim.lr: was 0.0001, now 0.5"):
        train.claim(tmp_path, settings("ppo", [*PPO, "optim.lr=0.5"], tiny, 1))


def test_truncated_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path):
    assert train.newest_checkpoint(tmp_path) is None
    for number in (3, 4):
        torch.save({"weight": torch.zeros(1000)}, tmp_path / f"iteration{number:05d}.ckpt")
    newest = tmp_path / "iteration00004.ckpt"
    assert train.newest_checkpoint(tmp_path) == newest
    newest.write_bytes(newest.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"iteration00004.ckpt is truncated .* continues from .*iteration00003"):
        train.newest_checkpoint(tmp_path)
    newest.unlink()
    assert train.newest_checkpoint(tmp_path) == tmp_path / "iteration00003.ckpt"


def test_unknown_algorithm(tiny: Path):
    cfg = settings("ppo", PPO, tiny, 1)
    wrong = replace(cfg, algorithm=replace(cfg.algorithm, name="dqn"))
    with pytest.raises(UserError, match="'dqn'; it must be sft or ppo"):
        build_module(wrong, build_policy(cfg))


def test_missing_demonstrations(tiny: Path, tmp_path: Path):
    cfg = settings("sft", [*SFT, f"demos.path={tmp_path / 'nothing'}"], tiny, 1)
    with pytest.raises(UserError, match="make demos"):
        demo_feed(cfg, build_policy(cfg))
