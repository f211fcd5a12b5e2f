"""Both parts of pretraining, small and real, and what they leave beside the weights."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

from vlapost import collect_demos, config
from vlapost import pretrain as command
from vlapost.assets.pack import edition
from vlapost.config import UserError
from vlapost.evaluation.summary import METRICS
from vlapost.pretrain import acting, pretrain, views_of, write_log

SMALL = [
    *("env.assets=procedural", "env.id=PutOnPlateInScene25Main-v3", "env.obj_set=few", "env.num_envs=1"),
    *("demos.episodes=2", "demos.workers=1", "demos.disturbed=0", "grounding.starts=2", "grounding.views=2"),
    *("experience.demo_steps=2", "optim.batch_size=4", "grounding.batch_size=2", "optim.warmup_steps=0"),
    *("trainer.iterations=1", "grounding.acting_iterations=1", "trainer.devices=1", "trainer.accelerator=cpu"),
    "trainer.eval_every=0",
]


def test_first_everything_learns_then_the_image_encoders_stay(tmp_path: Path) -> None:
    cfg = config.load("pretrain", [*SMALL, f"demos.path={tmp_path}/demos", f"grounding.path={tmp_path}/views"])
    for settings in (cfg, views_of(cfg)):
        collect_demos.collect(settings).close()
    untrained, seeing, hands = tmp_path / "untrained", tmp_path / "seeing", tmp_path / "acting"
    pretrain(cfg, untrained, seeing, frozen=False)
    pretrain(acting(cfg), seeing / "openvla-tiny", hands, frozen=True)
    first, second, third = (
        load_file(folder / "model.safetensors")
        for folder in (untrained, seeing / "openvla-tiny", hands / "openvla-tiny")
    )
    learned = {name for name in first if not torch.equal(first[name], second[name])}
    again = {name for name in first if not torch.equal(second[name], third[name])}
    assert any(name.startswith("vision_backbone.") for name in learned)
    assert again == {name for name in learned if not name.startswith("vision_backbone.")} != set()
    with pytest.raises(UserError, match="nowhere"):
        pretrain(acting(cfg), tmp_path / "nowhere", tmp_path / "blind", frozen=True)
    assert not (tmp_path / "nowhere").exists()


def test_each_part_begins_where_the_one_before_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, Path, Path, bool]] = []
    collected: list[str] = []
    published: list[tuple[Path, Path]] = []

    def stage(module: str, *words: str) -> None:
        assert module == command.__name__
        with monkeypatch.context() as inside:
            inside.setenv("VLAPOST_STAGE", "1")
            command.run(list(words))

    def train(cfg: config.Config, start: Path, folder: Path, frozen: bool) -> None:
        trained.append((cfg.trainer.iterations, start, folder, frozen))
        (folder / "openvla-tiny").mkdir(parents=True)

    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "process", stage)
    monkeypatch.setattr(command, "pretrain", train)
    monkeypatch.setattr(command, "publish", lambda cfg, folder, target: published.append((folder, target)))
    monkeypatch.setattr(command.cli, "end_with_parent", lambda: None)
    monkeypatch.setattr(collect_demos, "collect", lambda cfg: collected.append(cfg.demos.path))
    words = [*SMALL, "run=small", "policy.checkpoint=new", "trainer.iterations=3", "grounding.acting_iterations=2"]
    command.run(words)
    work = tmp_path / "lightning_logs/small/pretrain"
    eyes = work / "seeing"
    assert trained == [(3, work / "untrained", eyes, False), (2, eyes / "openvla-tiny", work / "acting", True)]
    assert published == [(work, tmp_path / "new")] and collected == ["data/world-demos", "data/world-views"]
    command.run(words)  # nothing is left to do, and views are not collected for nothing
    assert len(trained) == 2 and collected[2:] == ["data/world-demos"]
    with pytest.raises(UserError, match=r"trainer\.iterations: was 3, now 4"):
        command.run([*words, "trainer.iterations=4"])
    with pytest.raises(UserError, match="'part'"):  # only how the command itself starts its stages
        command.run([*words, "part=acting"])


def test_what_would_end_badly_after_hours_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "publish", lambda *_: pytest.fail("went on"))
    (tmp_path / "data/demos").mkdir(parents=True)
    for words, match in (
        (["sft"], r"conf/sft\.yaml describes no pretraining"),
        (["policy.checkpoint=data"], "which this command would replace, and which holds no model"),
        (["env.image_size=[224,224]"], r"env\.image_size is \[224, 224\]; openvla-tiny sees \[128, 128\]"),
        (["demos.views=8"], r"demos\.views is 8; no actions can be learned from views"),
        (["policy.cuda_graph=true"], r"policy\.cuda_graph"),
        (["evaluation.actor=random"], r"evaluation\.actor is 'random'; this command evaluates the policy it trains"),
        (["evaluation.episodes=2000"], r"evaluation\.episodes is 2000"),
    ):
        with pytest.raises(UserError, match=match):
            command.run(words)
    assert (tmp_path / "data/demos").is_dir() and not (tmp_path / "lightning_logs").exists()


def test_what_is_finished_takes_the_place_of_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, target, measured = tmp_path / "work", tmp_path / "tiny", []

    def evaluate(c: config.Config, out: Path) -> dict:
        measured.append((out.name, c.policy.checkpoint.removeprefix(f"{work}/"), c.env.assets))
        rates = {m: {"mean": len(measured) / 10, "low": 0, "high": 1, "n": 200} for m in METRICS}
        return rates | {"decoding": "T=0.6", "seed": 0}

    monkeypatch.setattr(command.evaluate, "evaluate", evaluate)
    (work / "acting/openvla-tiny").mkdir(parents=True)
    (work / "acting/openvla-tiny/model.safetensors").write_bytes(b"new")
    (work / "config.yaml").write_text("run: pretrain\n")
    for part in ("seeing", "acting"):
        with SummaryWriter(str(work / part)) as writer:
            writer.add_scalar("train/loss", len(part), 99)
    target.mkdir()
    for name in ("model.safetensors", "README.md", "of_before.json"):
        (target / name).write_bytes(b"old")
    command.publish(config.load("pretrain"), work, target)
    acted = "acting/openvla-tiny"
    assert measured == [
        ("evaluation-world", acted, "world"),
        ("evaluation-untrained", "untrained", "procedural"),
        ("evaluation-pretrained", acted, "procedural"),
    ]
    scores = json.loads((target / "scores.json").read_text())
    assert [scores[who]["success_end"]["mean"] for who in ("world", "untrained", "pretrained")] == [0.1, 0.2, 0.3]
    assert scores["measured"]["episodes"] == 200 and scores["measured"]["assets"] == edition("procedural")
    assert {path.name: path.read_text() for path in target.iterdir() if path.name != "scores.json"} == {
        "model.safetensors": "new",
        "README.md": "old",  # written by hand
        "recipe.yaml": "run: pretrain\n",
        "log.csv": "step,train/loss\n99,6.0\n",
        "log-acting.csv": "step,train/loss\n99,6.0\n",
    }


def test_the_second_part_has_demonstrations_in_the_place_of_views() -> None:
    cfg = config.load("pretrain")
    second = acting(cfg)
    assert second.optim.batch_size == cfg.optim.batch_size + cfg.grounding.batch_size
    assert second.trainer.iterations == cfg.grounding.acting_iterations
    assert second.grounding.batch_size == 0 == second.grounding.segmentation_coef


def test_the_log_has_a_row_per_iteration(tmp_path: Path) -> None:
    """Not one per update, and nothing that is not a loss or a score."""
    with SummaryWriter(str(tmp_path / "events")) as events:
        for step in range(4):
            for name in ("train/skipped_steps", "train/empty_steps", "train/stopped_steps", "train/grad_norm"):
                events.add_scalar(name, 0.0, step)
        for step, loss in ((1, 2.5), (3, 1.25)):
            events.add_scalar("train/loss", loss, step)
            events.add_scalar("time/learning_s", 7.0, step)
        events.add_scalar("val/success_end", 0.5, 3)
    write_log(tmp_path / "events", tmp_path / "log.csv")
    rows = list(csv.reader((tmp_path / "log.csv").open()))
    assert rows == [["step", "train/loss", "val/success_end"], ["1", "2.5", ""], ["3", "1.25", "0.5"]]
