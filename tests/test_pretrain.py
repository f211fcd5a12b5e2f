"""Both parts of pretraining, small and real, and what they leave beside the weights."""

import csv
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

from vlapost import collect_demos, config
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
            for name in ("train/skipped_steps", "train/empty_steps", "train/grad_norm"):
                events.add_scalar(name, 0.0, step)
        for step, loss in ((1, 2.5), (3, 1.25)):
            events.add_scalar("train/loss", loss, step)
            events.add_scalar("time/learning_s", 7.0, step)
        events.add_scalar("val/success_end", 0.5, 3)
    write_log(tmp_path / "events", tmp_path / "log.csv")
    rows = list(csv.reader((tmp_path / "log.csv").open()))
    assert rows == [["step", "train/loss", "val/success_end"], ["1", "2.5", ""], ["3", "1.25", "0.5"]]
