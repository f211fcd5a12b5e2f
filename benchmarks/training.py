"""Rollout and learning speed of RL: its real training command for a few iterations, and its own log."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlapost import cli, config
from vlapost.config import ROOT, UserError

RUNS = 5


def measure(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Medians over five iterations of conf/<name>.yaml, after one that is not counted.

    Raises:
        UserError: the training command failed; its own sentence is above.
    """
    folder = ROOT / "lightning_logs" / "benchmark" / "training"
    shutil.rmtree(folder, ignore_errors=True)
    words = [*overrides, "run=benchmark/training", f"trainer.iterations={RUNS + 1}", "trainer.eval_every=0"]
    child = subprocess.run([sys.executable, "-m", "vlapost.train", name, *words], cwd=ROOT)
    if child.returncode:
        raise UserError("The training speed could not be measured; the reason is above.")
    scalars = read_scalars(folder / config.load(name, words).algorithm.name)
    shutil.rmtree(folder)
    middle = {name: median(values[1:]) for name, values in scalars.items() if name.startswith("time/")}
    stages = {name: middle[f"time/{name}_s"] for name in ("simulation", "inference", "learning")}
    total = middle["time/iteration_s"]
    return {
        "loop_steps_per_s": middle["time/env_steps_per_s"],
        "rollout_steps_per_s": middle["time/env_steps_per_s"] * total / (stages["simulation"] + stages["inference"]),
        "learner_samples_per_s": middle["time/learner_samples_per_s"],
        "iteration_s": total,
        "share": {name: seconds / total for name, seconds in stages.items()},
    }


def read_scalars(folder: Path) -> dict[str, list[float]]:
    """Every scalar of a run's TensorBoard events, in order of their steps."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


if __name__ == "__main__":
    cli.main(lambda words: cli.console.print(measure(*cli.parse(words, "ppo"))))
