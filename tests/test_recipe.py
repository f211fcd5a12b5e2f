"""`make train-ppo` in small: every stage, two processes, killed in the middle and continued by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from vlapost import config, evaluate, recipe, stages
from vlapost.config import ROOT, UserError
from vlapost.evaluation.summary import write_json
from vlapost.runs import known_key
from vlapost.train import newest_checkpoint

WORDS = [
    "ppo", "run=small", "policy.checkpoint=models/tiny", "policy.lora_rank=4", "policy.critic=separate",
    "env.num_envs=1", "demos.episodes=2",
    "demos.shard_attempts=1", "evaluation.episodes=2", "evaluation.videos=1", "trainer.devices=2",
    "trainer.accelerator=cpu",
    "trainer.iterations=3",
    "trainer.eval_every=3", "trainer.eval_episodes=2", "experience.rounds=1", "optim.batch_size=40",
    "sft.trainer.iterations=1", "sft.trainer.eval_every=0", "sft.experience.demo_steps=2", "sft.optim.batch_size=4",
]  # fmt: skip
LIMIT = 600.0  # seconds, for a crowded machine


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project folder of its own: this one's settings and assets, an untrained model, no runs."""
    from vlapost.assets.pack import open_pack
    from vlapost.policies.tiny import write_tiny

    open_pack("procedural")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/assets").symlink_to(ROOT / "data/assets")
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    low, high = [-0.03] * 3 + [-0.2] * 3 + [-1.0], [0.03] * 3 + [0.2] * 3 + [1.0]
    write_tiny(
        tmp_path / "models/tiny", 0, {"world": {"action": {"q01": low, "q99": high, "mask": [True] * 6 + [False]}}}
    )
    return tmp_path


def start(root: Path, words: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vlapost.recipe", *words]
    with log.open("wb") as out:
        return subprocess.Popen(
            command, env=os.environ | {"VLAPOST_ROOT": str(root)}, stdout=out, stderr=out, start_new_session=True
        )


def wait_for(what: Path, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LIMIT
    while not what.exists():
        assert child.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def terminate(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the training processes of a recipe, as a shutdown sends it; all must leave soon, then the recipe."""
    try:
        training = psutil.Process(child.pid).children(recursive=True)
        assert len(training) >= 2  # the one the recipe started, and the other rank
        for process in training:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        assert not psutil.wait_procs(training, timeout=LIMIT)[1], "a training process ignores SIGTERM"
        assert child.wait(LIMIT) != 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.sim
def test_killed_and_continued(root: Path) -> None:
    run = root / "lightning_logs/small"
    first = start(root, WORDS, root / "first.log")
    wait_for(run / "ppo/checkpoints/iteration00000.ckpt", first, root / "first.log")
    orphans = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    warmed = (run / "sft/adapter/adapter_model.safetensors").stat().st_mtime_ns
    evaluated = (run / "evaluation-before/report.json").stat().st_mtime_ns
    assert not psutil.wait_procs(orphans, timeout=LIMIT)[1], "a training process outlives its recipe"
    again = start(root, WORDS, root / "again.log")
    wait_for(run / "ppo/checkpoints/iteration00001.ckpt", again, root / "again.log")
    terminate(again)
    done = newest_checkpoint(run / "ppo/checkpoints")
    assert done is not None

    second = start(root, WORDS, root / "second.log")
    assert second.wait(LIMIT) == 0, (root / "second.log").read_text()
    text = (root / "second.log").read_text()
    if done.stem < "iteration00002":
        assert f"continuing from {done.name}" in text
    assert (run / "sft/adapter/adapter_model.safetensors").stat().st_mtime_ns == warmed
    assert (run / "evaluation-before/report.json").stat().st_mtime_ns == evaluated

    summary = json.loads((run / "summary.json").read_text())
    assert summary["env_steps"] == 3 * 2 * 80
    for label in ("base", "before", "after"):
        for metric in ("success_end", "success_once", "grasp", "consecutive_grasp"):
            score = summary[label][metric]
            assert score["n"] == 2
            assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
    assert set(summary["seconds"]) == {
        "demonstrations", "evaluate base", "warm-up", "evaluate before", "ppo", "evaluate after",
    }  # fmt: skip
    assert (run / "learning_curve.png").stat().st_size > 5000
    assert list((run / "ppo/videos").glob("*.mp4"))

    third = subprocess.run(
        [sys.executable, "-m", "vlapost.recipe", *WORDS, "seed=1"],
        env=os.environ | {"VLAPOST_ROOT": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert third.returncode == 2
    assert "started with other settings (seed: was 0, now 1)" in third.stderr


@pytest.mark.parametrize("name", ["ppo", "grpo", "tpo", "ppo_dimension", "ppo_falling"])
def test_a_file_of_ones_own_is_of_rl_alone(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The warm-up and the evaluations do not read it."""
    stages.refuse_for_rl_alone(name, config.load(name), config.load("base", [f"run={config.load(name).run}"]))
    for path in config.CONF.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    for text, key in (
        ("{env: {obj_set: train}}", "env.obj_set"),
        ("{policy: {lora_rank: 8}}", "policy.lora_rank"),
        ("{trainer: {precision: bf16-true}}", "trainer.precision"),
    ):
        (tmp_path / f"{name}_mine.yaml").write_text(text)
        with monkeypatch.context() as patch:
            patch.setattr(config, "CONF", tmp_path)
            patch.setattr(stages, "ROOT", tmp_path)
            with pytest.raises(UserError, match=f"conf/{name}_mine.yaml sets {key}, which concerns every stage"):
                recipe.run([f"{name}_mine"])
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("key", ["env.obj_set=test", "policy.lora_rank=8", "run=other", "trainer.devices=1"])
def test_what_concerns_every_stage_is_not_for_the_warm_up_alone(key: str) -> None:
    with pytest.raises(UserError, match=f"sft.{key} concerns every stage; give it without sft. in front"):
        stages.plan("ppo", [f"sft.{key}"])
    with pytest.raises(UserError, match=r"Unknown key 'optm\.lr'.* did you mean 'optim\.lr'"):
        stages.plan("ppo", ["sft.optm.lr=1"])


def test_the_score_of_random_weights_is_shown_where_it_was_measured_alike() -> None:
    report = {"decoding": "sampled at temperature 0.6 from all 256 bins", "success_end": {"n": 200}, "seed": 0}
    assert set(recipe.untrained(config.load("ppo"), report)) == {"untrained"}
    for word in ("env.image_size=[480,640]", "env.sim_freq=250", "env.shader=default", "env.obj_set=train"):
        assert recipe.untrained(config.load("ppo", [word]), report) == {}


def test_rl_starts_from_an_adapter_that_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planned: list[stages.Stage] = []

    class ReachedError(Exception):
        pass

    def perform(folder: Path, those: list[stages.Stage]) -> None:
        planned.extend(those)
        raise ReachedError

    monkeypatch.setattr(stages, "ROOT", tmp_path / "project")
    monkeypatch.setattr(recipe, "perform", perform)
    words = ["ppo", f"policy.adapter={tmp_path}/mine"]
    with pytest.raises(UserError, match=r"policy\.adapter is .*, where there is no \*\.safetensors file"):
        recipe.run(words)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/adapter_model.safetensors").touch()
    write_json(tmp_path / "mine/adapter_config.json", {"r": 32, "lora_alpha": 8})
    with pytest.raises(UserError, match=r"set policy\.lora_rank=32 policy\.lora_alpha=8"):
        recipe.run(words)
    words = [*words, "policy.lora_alpha=8"]
    with pytest.raises(UserError, match=r"without a warm-up; leave sft\.optim\.lr=1 out"):
        recipe.run([*words, "sft.optim.lr=1"])
    with pytest.raises(ReachedError):
        recipe.run(words)
    products = {title: product for title, product, _ in planned}
    assert products["demonstrations"] == products["warm-up"] == tmp_path / "mine"  # there: nothing to do
    (rl,) = (work for title, _, work in planned if title == "ppo")
    (said,) = (c.cell_contents for c in rl.__closure__ if isinstance(c.cell_contents, tuple))  # type: ignore[attr-defined]
    assert said[-1] == f"policy.adapter={tmp_path}/mine"
    assert not (tmp_path / "project/lightning_logs/ppo/sft").exists()


def test_the_base_is_scored_with_the_action_statistics_that_came_with_the_adapter(root: Path) -> None:
    """What `make import-demos` has written is in the adapter's folder alone."""
    mine = root / "mine"
    mine.mkdir()
    words = [f"policy.checkpoint={root}/models/tiny", f"policy.adapter={mine}", "policy.unnorm_key=theirs"]
    cfg = config.load("base", words)
    assert stages.of_adapter(cfg, None).policy.statistics == ""
    (known,) = json.loads((root / "models/tiny/dataset_statistics.json").read_text()).values()
    write_json(mine / "dataset_statistics.json", {"theirs": known})
    base = stages.of_adapter(cfg, None)
    assert (base.policy.adapter, base.policy.statistics) == ("", str(mine))
    known_key(base)
    with pytest.raises(UserError, match="'theirs' is not in the checkpoint's statistics"):
        known_key(replace(base, policy=replace(base.policy, statistics="")))


def test_scores_of_an_adapter_that_was_trained_on_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "ROOT", root)
    weights = root / "mine/adapter_model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"first")
    cfg = stages.of_adapter(config.load("base", ["policy.checkpoint=models/tiny"]), weights.parent)
    write_json(root / "evaluation-after/report.json", {"checkpoint": {"sha256": evaluate.fingerprint(cfg)}})
    recipe.refuse_trained_on(cfg, root / "evaluation-after")
    weights.write_bytes(b"trained on")
    with pytest.raises(UserError, match=r"evaluation-after is of what policy\.adapter=.*mine was before"):
        recipe.refuse_trained_on(cfg, root / "evaluation-after")


@pytest.mark.parametrize(
    ("word", "mended", "sentence"),
    [
        ("optim.batch_size=100", "optim.batch_size=40", r"optim\.batch_size=100 .* must divide it"),
        ("trainer.devices=20", "trainer.devices=2", r"trainer\.eval_episodes of sft is 16; 20 processes"),
        ("evaluation.episodes=9999", "evaluation.episodes=99", r"evaluation\.episodes is 9999; only 1024 episodes"),
    ],
)
def test_sizes_that_do_not_fit_leave_no_trace(
    word: str, mended: str, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class ReachedError(Exception):
        pass

    def perform(folder: Path, those: list[stages.Stage]) -> None:
        raise ReachedError

    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setattr(recipe, "perform", perform)
    with pytest.raises(UserError, match=sentence):
        recipe.run(["ppo", word, "trainer.accelerator=cpu"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ReachedError):
        recipe.run(["ppo", mended, "trainer.accelerator=cpu"])
