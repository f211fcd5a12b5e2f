"""Settings: what loads, and the sentence for what does not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlapost import config
from vlapost.config import CONF, ROOT, UserError

NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_file_loads(name: str) -> None:
    assert config.load(name).algorithm.name


def test_overrides_come_last_and_are_typed() -> None:
    c = config.load("ppo", ["env.num_envs=3", "optim.lr=1e-3", "env.image_size=[64,96]", "policy.critic=hn"])
    assert (c.env.num_envs, c.optim.lr, c.env.image_size, c.policy.critic) == (3, 1e-3, [64, 96], "hn")


@pytest.mark.parametrize(
    ("name", "words", "parts"),
    [
        ("bse", [], ["conf/bse.yaml", "base"]),
        ("base", ["optim.learning_rate=1"], ["'optim.learning_rate'", "override", "did you mean"]),
        ("base", ["env.num_env=1"], ["'env.num_env'", "'env.num_envs'"]),
        ("base", ["env.num_envs=many"], ["env.num_envs", "many"]),
        ("base", ["optim.lr=fast"], ["optim.lr", "fast"]),
        ("base", ["env.num_envs"], ["'env.num_envs'", "key=value"]),
        ("base", ["demos.filter=sharpen"], ["demos.filter", "sharpen", "merge, drop or none"]),
        ("base", ["env.image_size=[8,8]"], ["env.image_size", "16"]),
        ("base", ["experience.schedule=[dreams]"], ["experience.schedule", "dreams", "demos"]),
        ("base", ["experience.schedule=[]"], ["experience.schedule", "empty"]),
        ("base", ["env.image_size=[64"], ["override", "cannot be read"]),
        ("base", ["run=${"], ["override", "cannot be read"]),
        ("base", ["env=3"], ["'env'", "section", "env.NAME=VALUE"]),
        ("ppo", ["optim={lr: 3e-4}"], ["'optim'", "section", "optim.NAME=VALUE"]),
        ("base", ["seed=[1]"], ["seed", "could not be converted"]),
        ("ppo", ["experience.schedule=rollout"], ["experience.schedule", "list, [A,B]"]),
        ("base", ["env.num_envs=0"], ["env.num_envs is 0", "1 or more"]),
        ("base", ["algorithm.name=pp"], ["'pp'", "sft, ppo, grpo, tpo"]),
        ("base", ["trainer.precision=16-true"], ["trainer.precision", "bf16-true"]),
        ("sft", ["policy.critic=h0"], ["policy.critic", "SFT"]),
        ("ppo", ["policy.critic=none"], ["policy.critic", "h0, hn, all, separate or state"]),
        ("grpo", ["algorithm.advantage=mean"], ["algorithm.advantage", "group, valid or whole"]),
        ("tpo", ["experience.schedule=[rollout,demos]"], ["experience.schedule", "TPO"]),
        ("ppo", ["experience.augment=true"], ["experience.augment", "sft.experience.augment"]),
        ("grpo", ["algorithm.soft_targets=2"], ["algorithm.soft_targets", "sft.algorithm.soft_targets"]),
        ("grpo", ["experience.success_steps=6"], ["experience.success_steps", "PPO"]),
        ("ppo", ["experience.success_steps=6", "algorithm.bootstrap_truncation=true"], ["bootstrap_truncation"]),
        ("ppo", ["experience.success_steps=6", "experience.same_start=2"], ["same_start"]),
        ("grpo", ["experience.schedule=[rollout,demos]"], ["experience.schedule", "GRPO"]),
        ("sft", ["experience.schedule=[rollout]"], ["experience.schedule", "demonstrations"]),
        ("tpo", ["experience.rejudge=true"], ["experience.rejudge", "TPO"]),
        ("tpo", ["algorithm.entropy_coef=0.01"], ["algorithm.entropy_coef is 0.01", "TPO"]),
        ("tpo", ["algorithm.target_kl=0.1"], ["algorithm.target_kl is 0.1", "TPO"]),
        ("grpo", ["algorithm.gamma=0.9"], ["algorithm.gamma is 0.9", "GRPO does not use; leave it 0.99"]),
        ("ppo", ["algorithm.beta=0.2"], ["algorithm.beta is 0.2", "PPO"]),
        ("ppo", ["algorithm.imitation_coef=0.5"], ["imitation_coef is 0.5", "no demonstrations; leave it 1.0"]),
        ("grpo", ["optim.value_lr=1e-4"], ["optim.value_lr is 0.0001", "GRPO does not use"]),
        ("pretrain", ["policy.adapter=x"], ["policy.adapter is x", "PRETRAIN does not use; leave it ''"]),
        ("pretrain", ["trainer.precision=bf16-true"], ["trainer.precision", "PRETRAIN", "leave it 32-true"]),
        ("base", ["evaluation.actor=planner", "env.backend=gpu"], ["evaluation.actor", "set env.backend=cpu"]),
        ("ppo", ["env.shader=defualt"], ["env.shader is 'defualt'", "minimal or default"]),
        ("ppo", ["env.sim_freq=499"], ["env.sim_freq is 499", "multiple of 5"]),
        ("sft", ["algorithm.clip=0.1"], ["algorithm.clip is 0.1", "SFT"]),
        ("sft", ["experience.rounds=2"], ["experience.rounds is 2", "names no rollouts; leave it 1"]),
        (
            "ppo",
            ["experience.demo_steps=2"],
            ["experience.demo_steps is 2", "no demonstrations", "sft.experience.demo_"],
        ),
        ("ppo", ["policy.critic=separate", "policy.quantize=int8"], ["policy.critic", "int8"]),
        ("tpo", ["algorithm.beta=0"], ["algorithm.beta", "above 0"]),
        ("sft", ["algorithm.soft_targets=-1"], ["algorithm.soft_targets", "0 or more"]),
        ("sft", ["trainer.patience=2"], ["trainer.patience", "demos.held_out"]),
        ("sft", ["trainer.eval_episodes=0"], ["trainer.eval_episodes", "demos.held_out"]),
        ("base", ["demos.frames=merge"], ["demos.frames", "'merge'", "kept or all"]),
        ("base", ["demos.part=1"], ["demos.part is 1", "0 to 0"]),
        ("pretrain", ["demos.held_out=2"], ["demos.held_out", "pretraining"]),
        ("base", ["policy.quantize=nf3"], ["policy.quantize", "nf3", "none, nf4 or int8"]),
        ("base", ["policy.recompute=all"], ["policy.recompute", "all", "none, mlp or blocks"]),
        ("ppo", ["optim.lr=-1"], ["optim.lr is -1", "0 or more"]),
        ("ppo", ["optim.lr=.nan"], ["optim.lr is nan", "0 or more"]),
        ("ppo", ["optim.lr=.inf"], ["optim.lr is inf", "finite"]),
        ("grpo", ["algorithm.entropy_coef=.nan"], ["algorithm.entropy_coef is nan", "finite"]),
        ("ppo", ["grounding.position_coef=2"], ["grounding.position_coef is 2.0", "PPO does not use; leave it"]),
        ("sft", ["optim.warmup_steps=-1"], ["optim.warmup_steps is -1", "0 or more"]),
        ("ppo", ["trainer.devices=-1"], ["trainer.devices is -1", "0 or more"]),
        ("ppo", ["algorithm.huber_delta=0"], ["algorithm.huber_delta is 0", "above 0"]),
        ("ppo", ["algorithm.clip=-1"], ["algorithm.clip is -1", "above 0"]),
        ("ppo", ["algorithm.value_lambda=3"], ["algorithm.value_lambda is 3", "between 0 and 1"]),
        ("base", ["seed=-1"], ["seed is -1", "0 or more"]),
        ("base", ["demos.disturbed=2"], ["demos.disturbed is 2", "between 0 and 1"]),
        ("base", ["optim.moment_bits=16"], ["optim.moment_bits", "16", "32 or 8"]),
    ],
)
def test_a_mistake_is_named_in_one_sentence(name: str, words: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        config.load(name, words)
    text = str(error.value)
    assert all(part in text for part in parts), text
    assert "\n" not in text


def test_a_file_that_is_no_yaml_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/sft.yaml").write_text("optim: {lr: 1\nrun: sft\n")
    monkeypatch.setattr(config, "CONF", tmp_path / "conf")
    with pytest.raises(UserError, match=r"sft\.yaml cannot be read: .*") as error:
        config.load("sft")
    assert str(error.value).count("\n") == 0


def test_a_tilde_is_ones_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = config.load("base", ["policy.checkpoint=~/7b", "demos.path=~/demos", "policy.adapter=a/~b"])
    assert (cfg.policy.checkpoint, cfg.demos.path) == (f"{tmp_path}/7b", f"{tmp_path}/demos")
    assert (cfg.policy.adapter, config.load("base").policy.adapter) == ("a/~b", "")


def test_written_settings_compare_equal_and_a_change_is_named() -> None:
    written = config.to_yaml(config.load("base"))
    assert config.differences(config.load("base"), written) == []
    assert config.differences(config.load("base", ["seed=7"]), written) == ["seed: was 0, now 7"]
    older = written.replace("experience:\n", "experience:\n  end_at_success: true\n")
    gone = "experience.end_at_success: was True, is no setting any more"
    assert config.differences(config.load("base"), older) == [gone]


def test_the_critics_lambda_follows_the_other_unless_set() -> None:
    follows, own = "algorithm.gae_lambda=0.5", "algorithm.value_lambda=1"
    c = config.load("ppo", [follows])
    assert (c.algorithm.gae_lambda, c.algorithm.value_lambda) == (0.5, 0.5)
    c = config.load("ppo", [follows, own])
    assert (c.algorithm.gae_lambda, c.algorithm.value_lambda) == (0.5, 1.0)
    now = config.to_yaml(config.load("ppo", [follows]))
    older = now.replace("  value_lambda: 0.5\n", "")  # before there was the key
    assert older != now
    assert config.differences(config.load("ppo", [follows]), older) == []
    assert config.differences(c, older) == ["algorithm.value_lambda: was 0.5, now 1.0"]


def test_base_explains_every_key() -> None:
    keys = [text for text in (CONF / "base.yaml").read_text().splitlines() if ":" in text and text[0] != "#"]
    assert all("#" in text for text in keys if not text.rstrip().endswith(":"))


@pytest.mark.parametrize(
    "module", ["evaluate", "train", "recipe", "curve", "pretrain", "collect_demos", "export", "memory"]
)
def test_a_wrong_key_stops_a_command_before_torch_loads(module: str) -> None:
    program = (
        f"import sys, vlapost.cli as cli, vlapost.{module} as entry\n"
        "code = cli.guard(entry.run, ['optim.larning_rate=1'])\n"
        "assert code == 2 and 'torch' not in sys.modules and 'sapien' not in sys.modules, code\n"
    )
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stderr.startswith("Error: Unknown key 'optim.larning_rate'")


def test_a_name_of_several_words_is_what_differs_from_the_first() -> None:
    c, ppo = config.load("ppo_dimension"), config.load("ppo")
    a = c.algorithm
    assert (a.ratio, a.clip, a.gamma, a.gae_lambda, a.value_lambda) == ("dimension", 0.1, 0.96, 0.85, 0.85)
    assert (c.optim, c.policy, c.experience, a.value_coef) == (ppo.optim, ppo.policy, ppo.experience, 0.1)
