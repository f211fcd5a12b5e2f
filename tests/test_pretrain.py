"""What pretraining leaves beside the weights."""

import csv
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from vlapost.pretrain import write_log


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
