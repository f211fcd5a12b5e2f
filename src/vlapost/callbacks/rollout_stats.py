"""Logs what happened in rollouts and where the time went."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import lightning as L
import psutil


class RolloutStats(L.Callback):
    """Keys `rollout/*` (episode measures), `time/*` (seconds per stage and rates), `memory/host_gib`."""

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock of the iteration."""
        self.start = perf_counter()
        self.samples, self.learning = 0, 0.0

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Learning begins: forward, backward, update."""
        self.begin = perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count learner samples and seconds."""
        self.samples += len(batch)
        self.learning += perf_counter() - self.begin

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Log the iteration."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        total, world = perf_counter() - self.start, trainer.world_size
        values = {f"rollout/{name}": value for name, value in data.stats.items()}
        values |= {f"time/{stage}_s": seconds for stage, seconds in data.watch.seconds.items()}
        values |= {"time/learning_s": self.learning, "time/iteration_s": total}
        if self.learning:
            values["time/learner_samples_per_s"] = self.samples * world / self.learning
        if data.stats:
            steps = self.samples / data.config.experience.passes
            values["time/env_steps_per_s"] = steps * world / total
            values["rollout/env_steps"] = float(data.env_steps)
        values["memory/host_gib"] = psutil.Process().memory_info().rss * world / 2**30
        module.log_dict(values, sync_dist=True)
