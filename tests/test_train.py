"""Training for real, small: real simulator, untrained openvla-tiny, one process. Resume is bitwise exact on CPU."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlapost import config, runs, train
from vlapost.algorithms.base import PolicyModule
from vlapost.algorithms.pretrain import Pretrain
from vlapost.build import build_experience, build_module, build_policy, demo_feed
from vlapost.config import ROOT, Config, UserError
from vlapost.contracts import DemoBatch, GroundedBatch, Observation, RolloutBatch
from vlapost.experience.datamodule import DemoFeed
from vlapost.policies.load import load_full_policy
from vlapost.policies.policy import OpenVLAPolicy, save_policy
from vlapost.policies.tiny import write_tiny

PPO = [
    "experience.rounds=1",
    "trainer.devices=1",
    "trainer.accelerator=cpu",
    "trainer.eval_every=0",
    "env.num_envs=2",
    "optim.batch_size=40",
]
SFT = ["trainer.devices=1", "trainer.accelerator=cpu", "trainer.eval_every=0", "experience.demo_steps=2"]


def settings(name: str, words: list[str], tiny: Path, iterations: int) -> Config:
    rank = ["policy.lora_rank=4"] if name != "pretrain" else []
    return config.load(name, [*words, f"policy.checkpoint={tiny}", f"trainer.iterations={iterations}", *rank])


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
        return DemoBatch(Observation(image[index], ("put carrot on plate",) * len(index)), tokens[index])

    return DemoFeed(12 - cfg.demos.held_out, make, cfg.demos.held_out)


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
    assert train.fit(cfg, folder, module, data, train.newest_checkpoint(folder / "checkpoints"))
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.sim
@pytest.mark.usefixtures("lowering_pays")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sft", SFT),
        ("ppo", [*PPO, "policy.train_vision=true"]),
        ("ppo", [*PPO, "policy.train_vision=false"]),
        ("ppo", [*PPO, "experience.schedule=[rollout,demos]", "experience.demo_steps=2"]),
        ("grpo", [*PPO, "experience.same_start=2"]),
        ("tpo", [*PPO, "experience.same_start=2", "optim.accumulate=4"]),
    ],
    ids=["sft", "ppo", "frozen encoders", "alternating", "grpo", "tpo"],
)
def test_resume_equals_uninterrupted_bitwise(name: str, words: list[str], tiny: Path, tmp_path: Path):
    cfg = settings(name, words, tiny, 2)
    start = {f"policy.{n}": p.detach().clone() for n, p in build_policy(cfg).named_parameters()}
    whole = fit(cfg, tmp_path / "whole")
    assert any(not torch.equal(whole[key], start[key]) for key in whole)
    with pytest.raises(PowerCutError):
        fit(cfg, tmp_path / "cut", cut=True)
    assert [p.name for p in (tmp_path / "cut/checkpoints").iterdir()] == ["iteration00000.ckpt"]
    resumed = fit(cfg, tmp_path / "cut")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_an_adapter_is_that_of_the_last_iteration(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed after a longer training's last checkpoint, before its adapter was written: the shorter one's is not it."""

    def without_simulator(cfg, policy, module):
        return build_experience(cfg, policy, module, lambda: noise_feed(cfg, policy))

    monkeypatch.setattr("vlapost.build.build_experience", without_simulator)
    words = [*SFT, "optim.schedule=constant", "trainer.snapshot_every=1"]
    short, long = (settings("sft", words, tiny, count) for count in (1, 2))
    folder = tmp_path / "sft"
    train.train(short, folder)
    with monkeypatch.context() as killed:
        killed.setattr("vlapost.policies.policy.save_policy", lambda *_: None)
        train.train(long, folder)
    weights = folder / "adapter/adapter_model.safetensors"
    before = load_file(weights)
    train.train(long, folder)
    after, whole = load_file(weights), fit(long, tmp_path / "whole")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, tensor in after.items():
        layer = name.removeprefix("base_model.model.").removesuffix(".weight")
        assert torch.equal(tensor, whole[f"policy.network.{layer}.default.weight"])
    stamp = weights.stat().st_mtime_ns
    for count, kept in enumerate((before, after), 1):
        snapshot = load_file(tmp_path / f"whole/snapshots/{count:05d}" / weights.name)
        assert all(torch.equal(snapshot[name], tensor) for name, tensor in kept.items())
    train.train(long, folder)  # finished
    assert weights.stat().st_mtime_ns == stamp


def grounded_feed(policy) -> DemoFeed:
    """Random pictures, as `noise_feed`, whose truth is random too."""
    demos = noise_feed(config.load("pretrain"), policy)
    generator = torch.Generator().manual_seed(6)
    position = torch.randn(12, 9, generator=generator)
    labels = torch.randint(0, 4, (12, 128, 128), dtype=torch.uint8, generator=generator)
    return DemoFeed(12, lambda index, g: GroundedBatch(demos.make(index, g), position[index], labels[index], 2))  # type: ignore[arg-type]


def full_policy(folder: Path, frozen: bool) -> OpenVLAPolicy:
    """All weights that are in use learn; frozen: but those of the image encoders."""
    policy = load_full_policy(folder, "world")
    if frozen:
        policy.network.vision_backbone.requires_grad_(False)
    return policy


def pretrain(cfg: Config, folder: Path, frozen: bool) -> dict[str, torch.Tensor]:
    """Pretrain (or continue) and return all weights."""
    policy = full_policy(ROOT / cfg.policy.checkpoint, frozen)
    torch.manual_seed(cfg.seed)
    module = Pretrain(policy, cfg.grounding, cfg.optim, 4, policy.sizes)
    data = build_experience(cfg, policy, module, lambda: grounded_feed(policy))
    assert train.fit(cfg, folder, module, data, train.newest_checkpoint(folder / "checkpoints"))
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_pretraining_learns_no_actions_from_views(tiny: Path):
    cfg = settings("pretrain", [], tiny, 2)
    policy = load_full_policy(ROOT / cfg.policy.checkpoint, cfg.policy.unnorm_key)
    module = Pretrain(policy, cfg.grounding, cfg.optim, 4, policy.sizes)
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    batch = cast(GroundedBatch, grounded_feed(policy).make(torch.arange(4), None))
    tokens = batch.demo.action_tokens.clone()
    tokens[batch.acted :, -1] += 1  # of views; the last token is nobody's input
    other = replace(batch, demo=replace(batch.demo, action_tokens=tokens))
    shown = replace(other, acted=4)
    losses = [float(module.training_step(b, 0).detach()) for b in (batch, other, shown)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("frozen", [False, True], ids=["seeing", "acting"])
def test_pretraining_moves_every_weight_in_use_and_resumes_bitwise(frozen: bool, tiny: Path, tmp_path: Path):
    words = ["trainer.devices=1", "trainer.accelerator=cpu", "trainer.eval_every=0", "experience.demo_steps=2"]
    cfg = settings("pretrain", [*words, "optim.batch_size=4"], tiny, 2)
    whole = pretrain(cfg, tmp_path / "whole", frozen)
    pretrain(replace(cfg, trainer=replace(cfg.trainer, iterations=1)), tmp_path / "cut", frozen)
    resumed = pretrain(cfg, tmp_path / "cut", frozen)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    policy = full_policy(tiny, frozen)
    before = {f"policy.{name}": p for name, p in policy.named_parameters()}
    for name, after in whole.items():
        if name in before:
            assert torch.equal(before[name], after) != before[name].requires_grad, name


@pytest.mark.sim
@pytest.mark.usefixtures("lowering_pays")
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
        ratio = (new.logprob - batch.logprob).sum(-1).exp()
        assert (ratio - 1).abs().max() < 1e-3
        torch.testing.assert_close(new.value, batch.value, atol=1e-3, rtol=0)
    advantage = torch.cat([b.advantage for b in batches])
    assert advantage.mean().abs() < 1e-4
    assert data.env_steps == 160


@pytest.mark.sim
@pytest.mark.usefixtures("lowering_pays")
def test_videos_and_scalars_are_written(tiny: Path, tmp_path: Path):
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


def test_the_critic_learns_to_tell_pictures_apart(tiny: Path):
    """Two kinds of pictures with returns 0 and 1; the policy loss is switched off."""
    words = ["algorithm.policy_coef=0", "algorithm.value_coef=1", "algorithm.value_clip=10", "optim.value_lr=3e-3"]
    cfg = settings("ppo", [*PPO, *words], tiny, 1)
    policy = build_policy(cfg)
    module = build_module(cfg, policy)
    module.log_dict = lambda *a, **k: None  # type: ignore[method-assign,assignment]
    return_, nothing = torch.tensor([0.0, 1.0] * 4), torch.zeros(8)
    image = (60 + 120 * return_).to(torch.uint8).view(8, 1, 1, 1).expand(8, 128, 128, 3)
    batch = RolloutBatch(
        Observation(image, ("put carrot on plate",) * 8), torch.full((8, 7), 9), torch.zeros(8, 7),
        value=nothing, advantage=nothing, return_=return_,
    )  # fmt: skip
    optimizer = module.configure_optimizers()["optimizer"]
    for _ in range(20):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    assert (policy.value(batch.observation).detach() - return_).abs().max() < 0.2


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


def quiet(name: str, tiny: Path) -> tuple[PolicyModule, torch.optim.Optimizer, list[torch.nn.Parameter]]:
    """A learning rule without a trainer, and its optimiser, which has moments already."""
    cfg = settings(name, [] if name == "sft" else PPO, tiny, 1)
    module = build_module(cfg, build_policy(cfg))
    optimizer = module.configure_optimizers()["optimizer"]
    module.log = lambda *a, **k: None  # type: ignore[method-assign,assignment]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    step(module, optimizer, parameters, 1.0)
    return module, optimizer, parameters


def step(module: PolicyModule, optimizer, parameters: list[torch.nn.Parameter], gradient: float) -> bool:
    """One update with that gradient everywhere; whether any weight has changed."""
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    before = [p.detach().clone() for p in (*parameters, *moments)]
    for p in parameters:
        p.grad = torch.full_like(p, gradient)
    module.on_before_optimizer_step(optimizer)
    optimizer.step()
    return not all(torch.equal(a, b) for a, b in zip(before, (*parameters, *moments)))


def test_kl_stop_leaves_the_weights_alone(tiny: Path):
    module, optimizer, parameters = quiet("ppo", tiny)
    module.all_gather = lambda kl: torch.stack([kl, kl / 2])  # type: ignore[method-assign]
    for kl, limit in ((0.3, 0.0), (0.3, 0.4), (math.inf, 0.4), (math.nan, 0.4)):
        module.stop_above(torch.tensor(kl), limit)
        assert step(module, optimizer, parameters, 1.0)
    module.stop_above(torch.tensor(0.5), 0.4)
    assert not step(module, optimizer, parameters, 1.0)
    module.on_train_epoch_start()
    assert step(module, optimizer, parameters, 1.0)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_an_update_that_is_not_wanted_costs_nothing(name: str, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    module, _, parameters = quiet(name, tiny)
    monkeypatch.setattr(module.policy, "evaluate", lambda *_: pytest.fail("looks at the minibatch"))
    module.stopped = True
    for p in parameters:
        p.grad = None
    module.training_step((), 3).backward()
    assert all(p.grad is not None and not p.grad.any() for p in parameters)  # as several processes need it


@pytest.mark.parametrize("gradient", [0.0, float("nan"), float("inf")])
def test_an_empty_or_infinite_gradient_leaves_the_weights_alone(gradient: float, tiny: Path):
    module, optimizer, parameters = quiet("sft", tiny)
    module.newest_batch = DemoBatch(Observation(torch.zeros(1, 2, 2, 3), ("do",)), torch.zeros(1, 7))
    assert not step(module, optimizer, parameters, gradient)
    assert step(module, optimizer, parameters, 1.0)


@pytest.mark.parametrize("wrong", ["advantage", "logprob"])
def test_a_minibatch_that_is_not_finite_is_skipped_and_counted(wrong: str, tiny: Path):
    module, optimizer, parameters = quiet("ppo", tiny)
    logged: dict[str, float] = {}
    module.log = lambda name, value, **k: logged.update({name: float(value)})  # type: ignore[method-assign,assignment]
    module.log_dict = lambda values, **k: None  # type: ignore[method-assign,assignment]
    image = torch.zeros(2, 128, 128, 3, dtype=torch.uint8)
    advantage, logprob = torch.tensor([1.0, 2.0]), torch.full((2, 7), -5.5)
    {"advantage": advantage, "logprob": logprob}[wrong][1] = math.nan
    batch = RolloutBatch(
        Observation(image, ("do", "do")), torch.zeros(2, 7, dtype=torch.int64), logprob, torch.zeros(2), advantage,
        torch.ones(2),
    )  # fmt: skip
    before = [p.detach().clone() for p in parameters]
    optimizer.zero_grad()
    module.training_step(batch, 0).backward()
    module.on_before_optimizer_step(optimizer)
    optimizer.step()
    assert logged["train/skipped_steps"] == module.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, parameters))


def test_three_infinite_gradients_in_a_row_stop_the_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    module, optimizer, parameters = quiet("ppo", tiny)
    module._trainer = SimpleNamespace(log_dir=None, global_step=7, global_rank=0)  # type: ignore[assignment]
    zeros = torch.zeros(2)
    observation = Observation(torch.zeros(2, 2, 2, 3, dtype=torch.uint8), ("do", "do"))
    batch = RolloutBatch(
        observation, torch.zeros(2, 7), torch.zeros(2, 7), zeros, torch.tensor([1.0, torch.nan]), zeros
    )
    module.on_train_batch_start(batch, 0)
    for _ in range(2):
        assert not step(module, optimizer, parameters, float("nan"))
    assert step(module, optimizer, parameters, 1.0)  # a good one in between: counted from the start again
    for _ in range(2):
        assert not step(module, optimizer, parameters, float("nan"))
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(UserError, match=r"3 updates in a row .* step 7 \(not finite in its minibatch: advantage\)"):
        step(module, optimizer, parameters, float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters))
    written = load_file(tmp_path / "not-finite-0.safetensors")
    assert written["advantage"][0] == 1
    assert written["advantage"][1].isnan()
    assert written["image"].shape == (2, 2, 2, 3)


@pytest.mark.sim
@pytest.mark.usefixtures("lowering_pays")
@pytest.mark.parametrize("critic", ["hn", "all", "separate", "state"])
def test_every_place_of_the_critic_trains(critic: str, tiny: Path, tmp_path: Path):
    cfg = settings("ppo", [*PPO, f"policy.critic={critic}"], tiny, 1)
    start = {n: p.detach().clone() for n, p in build_policy(cfg).named_parameters() if p.requires_grad}
    end = fit(cfg, tmp_path / critic)
    assert {name.removeprefix("policy.") for name in end} == set(start)
    moved = {n for n, p in start.items() if not torch.equal(p, end[f"policy.{n}"])}
    assert not any("lm_head" in n for n in start if n.startswith("critic_network"))
    assert any(n.startswith("value_head") for n in moved)
    assert any(n.startswith("network") for n in moved)
    assert any(n.startswith("critic_network") for n in moved) is (critic == "separate")


def test_a_run_keeps_its_settings(tiny: Path, tmp_path: Path):
    runs.claim(tmp_path, settings("ppo", PPO, tiny, 1))
    runs.claim(tmp_path, settings("ppo", PPO, tiny, 5))  # more iterations may be asked for
    with pytest.raises(UserError, match=r"other settings \(optim.lr: was 0.0001, now 0.5"):
        runs.claim(tmp_path, settings("ppo", [*PPO, "optim.lr=0.5"], tiny, 1))
    falling = [*PPO, "optim.schedule=cosine"]
    runs.claim(tmp_path / "falling", settings("ppo", falling, tiny, 4))
    with pytest.raises(UserError, match=r"trainer\.iterations: was 4, now 5"):  # the rate would be another one
        runs.claim(tmp_path / "falling", settings("ppo", falling, tiny, 5))


def test_a_run_keeps_its_base(tiny: Path, tmp_path: Path):
    """Weights that another pretraining put in the same folder would load, and mean nothing to the run's adapters."""
    base, words = tmp_path / "base", [*PPO, "policy.adapter=not/made/yet"]
    shutil.copytree(tiny, base)
    runs.claim(tmp_path / "run", settings("ppo", words, base, 1))
    runs.claim(tmp_path / "run", settings("ppo", words, base, 1))
    shutil.rmtree(base)
    write_tiny(base, 1, json.loads((tiny / "dataset_statistics.json").read_text()))
    with pytest.raises(UserError, match=f"when policy.checkpoint={base} held other weights; choose another name"):
        runs.claim(tmp_path / "run", settings("ppo", words, base, 1))


def test_a_run_keeps_its_adapter(tiny: Path, tmp_path: Path):
    """Encoders that stay as they are, and what TPO compares with, come from it at every start."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    words = [*PPO, f"policy.adapter={adapter}"]
    for content in (b"one", b"two"):
        (adapter / "adapter_model.safetensors").write_bytes(content)
        if content == b"one":
            runs.claim(tmp_path / "run", settings("ppo", words, tiny, 1))
            runs.claim(tmp_path / "run", settings("ppo", words, tiny, 1))
    with pytest.raises(UserError, match=f"when policy.adapter={adapter} held other weights; choose another name"):
        runs.claim(tmp_path / "run", settings("ppo", words, tiny, 1))


def test_a_stage_keeps_its_processes(tmp_path: Path):
    one, two = (config.load("ppo", [f"trainer.devices={n}"]) for n in (1, 2))
    runs.keep_processes(two, tmp_path, continues=False)
    runs.keep_processes(two, tmp_path, continues=True)
    with pytest.raises(UserError, match=r"begun with 2 processes and would go on with 1, .* set trainer\.devices=2"):
        runs.keep_processes(one, tmp_path, continues=True)
    runs.keep_processes(one, tmp_path, continues=False)  # nothing learned yet
    runs.keep_processes(one, tmp_path, continues=True)


def test_statistics_that_are_not_there_burn_no_name(tiny: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"policy\.unnorm_key 'bridge' is not in .*; there are: world"):
        runs.claim(tmp_path / "run", settings("ppo", [*PPO, "policy.unnorm_key=bridge"], tiny, 1))
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_does_not_fit_burns_no_name(tiny: Path, tmp_path: Path):
    words = [*PPO, f"policy.adapter={tmp_path}/adapter"]
    with pytest.raises(UserError, match=r"no adapter folder .*adapter \(policy\.adapter\)"):
        train.train(settings("ppo", words, tiny, 1), tmp_path / "ppo")
    save_policy(build_policy(settings("sft", SFT, tiny, 1)), tmp_path / "adapter")
    cfg = settings("ppo", words, tiny, 1)
    with pytest.raises(UserError, match=r"has rank 4 and alpha 16, .*set policy\.lora_rank=4 policy\.lora_alpha=16"):
        train.train(replace(cfg, policy=replace(cfg.policy, lora_rank=8)), tmp_path / "ppo")
    assert not (tmp_path / "ppo").exists()


def test_a_stage_told_to_end_earlier_has_what_it_has(tmp_path: Path):
    cfg = config.load("sft", ["trainer.iterations=6"])
    assert train.last_iteration(cfg, None) == 6
    assert train.last_iteration(cfg, Path("iteration00002.ckpt")) == 6
    assert train.last_iteration(cfg, Path("iteration00008.ckpt")) == 9


def test_statistics_of_ones_own_stay_with_the_adapter(tiny: Path, tmp_path: Path):
    ranges = {"action": {"q01": [-0.5] * 7, "q99": [0.5] * 7, "mask": [True] * 6 + [False]}}
    own = [*SFT, f"policy.statistics={tmp_path}", "policy.unnorm_key=theirs"]
    with pytest.raises(UserError, match=r"policy\.statistics=.* holds no dataset_statistics\.json"):
        runs.known_key(settings("sft", own, tiny, 1))
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"theirs": ranges}))
    cfg = settings("sft", own, tiny, 1)
    runs.known_key(cfg)
    policy = build_policy(cfg)
    assert policy.decode(torch.full((1, 7), 254))[0, 3] == pytest.approx(0.5, abs=0.01)
    save_policy(policy, tmp_path / "adapter")
    later = settings("sft", [*SFT, "policy.unnorm_key=theirs", f"policy.adapter={tmp_path}/adapter"], tiny, 1)
    runs.known_key(later)
    assert build_policy(later).decode(torch.full((1, 7), 254))[0, 3] == pytest.approx(0.5, abs=0.01)


def test_actions_that_the_base_cannot_say_are_told(tiny: Path):
    """The small model's range is 3 cm and 0.2 rad; the gripper has none."""
    actions = torch.zeros(10, 7)
    actions[:2, 0], actions[:1, 1], actions[:9, 5], actions[:, 6] = 0.05, -0.05, -0.4, 5.0
    ranges = build_policy(settings("sft", SFT, tiny, 1)).actions
    assert ranges.lost(actions) == "x 20%, yaw 90%"
    assert ranges.lost(actions[9:]) == ""


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tiny: Path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"There are 2 GPU\(s\), but PyTorch .* cannot use them with this"):
        runs.check(config.load("ppo"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = config.load("ppo", ["trainer.devices=3"])
    with pytest.raises(UserError, match=r"trainer\.devices is 3, but here are 2 GPU\(s\)"):
        runs.check(cfg)
    runs.check(config.load("ppo", ["trainer.devices=2"]))
    assert (
        runs.amount(config.load("ppo", ["trainer.devices=2"])) == "2 processes, 64 episodes, 5,120 steps an iteration"
    )
    assert runs.amount(config.load("sft", ["trainer.devices=1"])) == "1 process, 1,280 samples an iteration"


def test_a_process_builds_its_policy_where_it_trains(monkeypatch: pytest.MonkeyPatch, tiny: Path):
    cfg = settings("ppo", PPO, tiny, 1)
    on_gpus = replace(cfg, trainer=replace(cfg.trainer, accelerator="auto"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [runs.place(c) for c in (cfg, on_gpus)] == ["cpu", "cuda:0"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [runs.place(c) for c in (cfg, on_gpus)] == ["cpu", "cuda:1"]


def test_in_a_job_of_slurm_we_start_the_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name, value in {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    cfg = config.load("sft", ["trainer.devices=2", "trainer.accelerator=cpu"])
    strategy = cast(DDPStrategy, train.build_trainer(cfg, tmp_path / "sft", 1).strategy)
    assert strategy.cluster_environment is not None and not strategy.cluster_environment.creates_processes_externally


def test_sizes_that_do_not_fit_are_said_before_a_run_is_claimed(tiny: Path, tmp_path: Path):
    for words in (["optim.batch_size=100"], ["trainer.eval_every=1", "trainer.eval_episodes=1", "trainer.devices=2"]):
        with pytest.raises(UserError, match=r"must divide it|trainer\.eval_episodes of ppo is 1; 2 processes"):
            train.train(settings("ppo", [*PPO, *words], tiny, 1), tmp_path / "ppo")
    assert not list(tmp_path.iterdir())


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


@pytest.mark.sim
@pytest.mark.usefixtures("lowering_pays")
@pytest.mark.parametrize("episodes", [1, 0])
def test_sft_stops_when_held_out_demonstrations_get_no_better(
    tiny: Path, tmp_path: Path, episodes: int, monkeypatch: pytest.MonkeyPatch
):
    """Random actions cannot be foretold: the loss on the held-out ones rises, and the second time is the last."""
    if not episodes:
        monkeypatch.setattr("vlapost.build.make_env", lambda cfg: pytest.fail("nobody needs a simulator"))
    words = [*SFT[:2], "experience.demo_steps=4", "optim.lr=1e-1", "optim.schedule=constant", "optim.batch_size=8"]
    watching = ["trainer.eval_every=1", f"trainer.eval_episodes={episodes}", "trainer.video_episodes=0"]
    watching = [*watching, "env.num_envs=2"]
    cfg = settings("sft", [*words, *watching, "demos.held_out=4", "trainer.patience=1"], tiny, 8)
    fit(cfg, tmp_path / "sft")
    newest = train.newest_checkpoint(tmp_path / "sft/checkpoints")
    assert newest is not None
    assert 2 <= train.iterations(newest) < 8
    fit(cfg, tmp_path / "sft")  # killed before the adapter was written: nothing is trained again
    assert train.newest_checkpoint(tmp_path / "sft/checkpoints") == newest
    (tmp_path / "sft/adapter").mkdir()
    train.train(cfg, tmp_path / "sft")  # nor where it is finished
    assert train.newest_checkpoint(tmp_path / "sft/checkpoints") == newest
    patient = replace(cfg, trainer=replace(cfg.trainer, patience=2))  # as if it had been its last iteration
    assert train.last_iteration(patient, newest) == 8


def test_unknown_algorithm(tiny: Path):
    cfg = settings("ppo", PPO, tiny, 1)
    wrong = replace(cfg, algorithm=replace(cfg.algorithm, name="dqn"))
    with pytest.raises(UserError, match="'dqn'; it must be sft, ppo, grpo or tpo"):
        build_module(wrong, build_policy(cfg))


def test_missing_demonstrations(tiny: Path, tmp_path: Path):
    cfg = settings("sft", [*SFT, f"demos.path={tmp_path / 'nothing'}"], tiny, 1)
    with pytest.raises(UserError, match="make demos"):
        demo_feed(cfg, build_policy(cfg))
