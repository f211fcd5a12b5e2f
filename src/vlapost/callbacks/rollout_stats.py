"""Logs what happened in rollouts and where the time went."""

from __future__ import annotations

from collections import defaultdict
from time import perf_counter
from typing import Any

import lightning as L
import psutil
from rich.table import Table

from vlapost.cli import console

STAGES = {
    "simulation": "physics, rendering, resets",
    "inference": "the policy chooses actions",
    "loading": "waiting for demonstrations",
    "preparing": "advantages and minibatches; TPO's margins",
    "learning": "forward, backward, update, waiting for the other processes",
    "evaluation": "held-out episodes during training",
}


class RolloutStats(L.Callback):
    """Keys `rollout/*` (episode measures), `time/*` (seconds per stage and rates), `memory/host_gib`.

    At the end the shares of the stages are printed.
    """

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Nothing spent yet."""
        self.spent: dict[str, float] = defaultdict(float)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock of the iteration."""
        self.start = perf_counter()
        self.samples, self.learning, self.evaluation = 0, 0.0, 0.0
        self.env_steps: int = trainer.datamodule.env_steps  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Learning begins: forward, backward, update."""
        self.begin = perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count learner samples and seconds."""
        self.samples += len(batch)
        self.learning += perf_counter() - self.begin

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Held-out episodes begin."""
        self.begin = perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """They are not part of the loop's speed."""
        self.evaluation += perf_counter() - self.begin

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Log the iteration."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        total, world = perf_counter() - self.start, trainer.world_size
        values = {f"rollout/{name}": value for name, value in data.stats.items()}
        values |= {f"time/{stage}_s": seconds for stage, seconds in data.watch.seconds.items()}
        values |= {"time/learning_s": self.learning, "time/iteration_s": total}
        if self.evaluation:
            values["time/evaluation_s"] = self.evaluation
        if self.learning:
            values["time/learner_samples_per_s"] = self.samples * world / self.learning
        if data.stats:
            values["time/env_steps_per_s"] = (data.env_steps - self.env_steps) / (total - self.evaluation)
            values["rollout/env_steps"] = float(data.env_steps)
        values["memory/host_gib"] = host_gib() * world
        module.log_dict(values, sync_dist=True)
        for name in ("iteration", *STAGES):
            self.spent[name] += values.get(f"time/{name}_s", 0.0)
        self.spent["env_steps"] += data.env_steps - self.env_steps

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Say where the time of this process went."""
        if not trainer.is_global_zero or not self.spent["iteration"]:
            return
        table = Table(title="Where the time went")
        for column in ("stage", "", "seconds", "share"):
            table.add_column(column, justify="right" if column in ("seconds", "share") else "left")
        total = self.spent["iteration"]
        other = total - sum(self.spent[name] for name in STAGES)
        rows = [(name, what, self.spent[name]) for name, what in STAGES.items()]
        for name, what, seconds in [*rows, ("other", "everything else of the iterations", other)]:
            if seconds > 0:
                table.add_row(name, what, f"{seconds:.0f}", f"{seconds / total:.0%}")
        console.print(table)
        if self.spent["env_steps"]:
            rate = self.spent["env_steps"] / (total - self.spent["evaluation"])
            console.print(f"{rate:.0f} environment steps per second, learning included.")


def host_gib() -> float:
    """GiB of this process, less the pages of mapped files, which the system takes back at will."""
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 2**30
