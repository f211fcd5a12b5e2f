"""Ends at once when told to."""

from __future__ import annotations

import signal

import lightning as L


class Termination(L.Callback):
    """SIGTERM ends the process, as it does elsewhere: what is on the disk is whole, and the same command continues.

    Lightning's own handler asks the other processes first, which waits for ever where they wait for this one.
    """

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take away the handler that Lightning has set by now; it puts back what was there before at the end."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
