"""RL over environment steps: `python -m vlapost.curve [key=value ...]`, or `make learning-curve`.

Warm-up and PPO as in the recipe, but for 400,000 environment steps; the warm-up and every tenth iteration of PPO are
evaluated on the training setup and on unseen objects and tables. `make sft-scaling` with `curve=` lays the result over
SFT on more demonstrations (paper Fig. 6c and 6d in small). Unseen is `env.obj_set=test`. The same command continues an
interrupted run.

Overrides go where those of the recipe go. Writes lightning_logs/<run>/: curve.png, curve.json, a folder per point.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from vlapost import cli, config
from vlapost.config import Config, UserError
from vlapost.evaluation.charts import learning_curve, panels, save_figure
from vlapost.evaluation.summary import METRICS, write_json
from vlapost.runs import processes
from vlapost.scaling import about, evaluations, report, sets_of
from vlapost.stages import perform, plan

STEPS = 400_000
SNAPSHOT = 10  # iterations


def run(argv: list[str]) -> None:
    """Run every stage that is not finished, then draw."""
    name, words = cli.parse(argv, "ppo")
    words = ["run=curve", f"trainer.snapshot_every={SNAPSHOT}", *words]
    cfg = config.load(name, [w for w in words if not w.startswith("sft.")])
    if "rollout" not in cfg.experience.schedule or cfg.trainer.snapshot_every < 1:
        raise UserError("A learning curve needs an RL configuration and trainer.snapshot_every of 1 or more.")
    steps = steps_per_iteration(cfg)
    length = next(n for n in count(1) if steps * rollouts(cfg, n) >= STEPS)
    it = plan(name, [f"trainer.iterations={length}", *words])
    cfg, rl = it.cfg, it.folder / it.cfg.algorithm.name
    sets = sets_of(it.base)
    it.begin()
    stages = [*it.warm_up, *it.rl]
    every, last = cfg.trainer.snapshot_every, cfg.trainer.iterations
    points = {0: it.warm} | {n: rl / f"snapshots/{n:05d}" for n in range(every, last, every)} | {last: it.tuned}
    adapters = {f"{cfg.algorithm.name}-{n:05d}": path for n, path in points.items()}
    stages += [stage for label, path in adapters.items() for stage in evaluations(it.base, label, path, sets)]
    perform(it.folder, stages)
    before = cfg.policy.adapter or f"SFT {it.warmup.demos.episodes}"
    at: dict[int, int] = {}
    for n in points:
        at.setdefault(steps * rollouts(cfg, n), n)  # of points at equal steps the first
    draw(it.folder, cfg.algorithm.name, sets, at, before, about(it.base))


def rollouts(cfg: Config, iterations: int) -> int:
    """How many of the first iterations are rollouts; the others are demonstrations."""
    schedule = cfg.experience.schedule
    return sum(schedule[i % len(schedule)] == "rollout" for i in range(iterations))


def steps_per_iteration(cfg: Config) -> int:
    """Environment steps of an iteration of rollouts, all processes together."""
    from vlapost.envs.setups import setup_of
    from vlapost.experience.sizes import samples

    return samples(cfg, setup_of(cfg.env).task.steps) * processes(cfg)[1]


def draw(
    folder: Path, algorithm: str, sets: dict[str, str], points: dict[int, int], before: str, about: dict[str, Any]
) -> None:
    """Write curve.json and curve.png: success over environment steps, `before` it as a line."""

    def scores(n: int, set_: str) -> dict[str, Any]:
        found = json.loads(report(folder, f"{algorithm}-{n:05d}", set_).read_text())
        return {metric: found[metric] for metric in METRICS}

    curve = {set_: {steps: scores(n, set_) for steps, n in points.items()} for set_ in sets}
    write_json(folder / "curve.json", {"rl": curve, "about": about})
    figure, axes = panels(list(sets.values()))
    for axis, set_ in zip(axes, sets):
        rl = {steps: scores["success_end"] for steps, scores in curve[set_].items()}
        learning_curve(axis, algorithm.upper(), rl, {before: rl[0]})
    save_figure(figure, folder / "curve.png")
    cli.console.print(f"Wrote {folder / 'curve.png'} and curve.json.", soft_wrap=True)


if __name__ == "__main__":
    cli.main(run)
