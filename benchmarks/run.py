"""How fast this machine is: `make benchmark`, with settings as for training (ARGS="env.assets=paper").

Prints one table and writes lightning_logs/benchmark/<time>.json. Numbers are medians of five runs; on a machine that is
busy with other things compare ratios, not rates.
"""

from __future__ import annotations

import os
import time

from rich.table import Table

from benchmarks.measure import machine
from vlapost import cli, config
from vlapost.config import ROOT, UserError
from vlapost.evaluation.summary import write_json

SIZES = ((128, 128), (224, 224), (480, 640))
PROCESSES = (1, 2)


def run(words: list[str]) -> None:
    """Measure, print, write."""
    name, overrides = cli.parse(words, "ppo")
    c = config.load(name, overrides)
    if "rollout" not in c.experience.schedule:
        raise UserError(f"conf/{name}.yaml makes no rollouts, which is what is measured; name ppo, grpo or tpo.")
    import torch

    from benchmarks import simulator, training

    table = Table(title=f"{len(os.sched_getaffinity(0))} cores, {c.env.backend} physics, shader {c.env.shader}")
    for column in ("what", "per second", "detail"):
        table.add_column(column, justify="right" if column == "per second" else "left")
    rows = []
    for size in SIZES:
        for processes in PROCESSES:
            row = simulator.measure(c.env, size, processes)
            rows.append(row)
            cli.console.print(f"{row['image']}, {processes} processes: {row['steps_per_s']:.0f} steps/s", style="dim")
            table.add_row(
                f"simulator {row['image']}, {_processes(processes)}",
                f"{row['steps_per_s']:.0f}",
                f"{row['ms_per_step']:.1f} ms a step, {row['reset_ms']:.0f} ms a reset",
            )
    report = {
        "machine": machine(),
        "torch": torch.__version__,
        "env": {key: value for key, value in vars(c.env).items() if key not in ("image_size", "num_envs")},
        "simulator": rows,  # with their own sizes and numbers of scenes
        "configuration": name,
        "training": None,  # at the sizes and numbers of the configuration:
        "training_env": {"image_size": list(c.env.image_size), "num_envs": c.env.num_envs},
    }
    try:
        report["training"] = t = training.measure(name, overrides)
        share = ", ".join(f"{stage} {part:.0%}" for stage, part in t["share"].items())
        table.add_row("rollout steps", f"{t['rollout_steps_per_s']:.0f}", "simulation and inference")
        table.add_row("learner samples", f"{t['learner_samples_per_s']:.0f}", "forward, backward, update")
        table.add_row(
            f"iterations of conf/{name}.yaml", f"{1 / t['iteration_s']:.3f}", f"{t['iteration_s']:.1f} s: {share}"
        )
    except UserError as error:
        cli.console.print(f"Error: {error}")
    cli.console.print(table)
    path = ROOT / "lightning_logs" / "benchmark" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    write_json(path, report)
    cli.console.print(f"Written to {path}", soft_wrap=True)


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


if __name__ == "__main__":
    cli.main(run)
