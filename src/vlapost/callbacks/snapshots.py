"""Adapters saved along the way, for a learning curve on held-out episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L


class Snapshots(L.Callback):
    """Writes `folder`/<iterations done>/ after every `every` iterations; 0 writes none."""

    def __init__(self, folder: Path, every: int):
        self.folder, self.every = folder, every

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save the policy as it is after this iteration."""
        done = trainer.current_epoch + 1
        if self.every and done % self.every == 0 and trainer.is_global_zero:
            policy: Any = module.policy
            policy.save(self.folder / f"{done:05d}")
