"""One progress bar for the whole run, with a second line for the iteration in work."""

from __future__ import annotations

from typing import Any

import lightning as L

from vlapost.cli import progress


class Progress(L.Callback):
    """Iterations done, rate and time left; below it control steps while collecting and minibatches while learning."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show the bars on the first process."""
        self.visible = trainer.is_global_zero
        self.bar = progress("it")
        assert trainer.max_epochs is not None
        self.run_task = self.bar.add_task("iterations", total=trainer.max_epochs, note="")
        self.bar.update(self.run_task, completed=trainer.current_epoch)
        self.step_task = self.bar.add_task("  rollout", total=None, note="", visible=False)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.on_step = lambda steps: self.bar.update(self.step_task, advance=steps)
        self.data = data
        if self.visible:
            self.bar.start()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The rollout (if there is one) begins after this hook."""
        if "rollout" in self.data.config.experience.schedule:
            c = self.data.config
            total = self.data.simulation.steps * c.env.num_envs * c.experience.rounds
            self.bar.reset(self.step_task, total=total, description="  control steps", visible=True)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Learning begins."""
        if batch_idx == 0:
            total = int(trainer.num_training_batches)
            self.bar.reset(self.step_task, total=total, description="  minibatches", visible=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One minibatch learned."""
        self.bar.update(self.step_task, advance=1)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """One iteration done."""
        shown = {
            "train/loss": "loss",
            "rollout/success_end": "success",
            "rollout/grasp": "grasp",
            "train/kl": "kl",
        }
        metrics = trainer.callback_metrics
        note = "  ".join(f"{label} {float(metrics[key]):.3g}" for key, label in shown.items() if key in metrics)
        self.bar.update(self.run_task, completed=trainer.current_epoch + 1, note=note)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self.bar.update(self.step_task, visible=False)
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        if hasattr(self, "bar"):
            self.bar.stop()
