"""RL against more demonstrations: `python -m vlapost.curve [key=value ...]`, or `make learning-curve`.

Warm-up and PPO as in the recipe, but for 400,000 environment steps, and SFT on the warm-up's demonstrations and on more
of them; every tenth iteration of PPO and every SFT is evaluated on the training setup and on unseen objects and tables
(paper Fig. 6c and 6d in small). Unseen is `env.obj_set=test`. The same command continues an interrupted run.

Overrides go where those of the recipe go. Writes lightning_logs/<run>/: curve.png, curve.json, evaluation/.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlapost import cli, config
from vlapost.config import ROOT, Config, UserError
from vlapost.evaluation.charts import pyplot, save_figure
from vlapost.evaluation.summary import METRICS, write_json
from vlapost.recipe import MAY_CHANGE, Stage, demonstrations, evaluation, perform, split_words, training
from vlapost.train import claim, processes

STEPS = 400_000
SNAPSHOT = 10  # iterations
MORE = {1000: 50, 4000: 120}  # demonstrations -> iterations of SFT: about five and three times through all of them


def run(argv: list[str]) -> None:
    """Run every stage that is not finished, then draw."""
    name, words = cli.parse(argv, "ppo")
    words = ["run=curve", f"trainer.snapshot_every={SNAPSHOT}", *words]
    overrides = [w for w in words if not w.startswith("sft.")]
    steps = steps_per_iteration(config.load(name, overrides))
    length = f"trainer.iterations={-(-STEPS // steps)}"
    words, overrides = [length, *words], [length, *overrides]
    cfg = config.load(name, overrides)
    shared, warmup_words = split_words(words, cfg.run)
    warmup, base = config.load("sft", warmup_words), config.load("base", shared)
    if cfg.algorithm.name == "sft" or cfg.trainer.snapshot_every < 1:
        raise UserError("A learning curve needs an RL configuration and trainer.snapshot_every of 1 or more.")
    sets = sets_of(base)
    folder = ROOT / "lightning_logs" / cfg.run
    for part, settings in ((folder, cfg), (folder / "sft", warmup), (folder / "evaluation", base)):
        claim(part, settings, MAY_CHANGE)

    warm, rl = folder / "sft/adapter", folder / cfg.algorithm.name
    place = f"policy.adapter={warm.relative_to(ROOT)}"
    stages: list[Stage] = [
        demonstrations(warmup, folder / "demos.json"),
        ("warm-up", warm, training("sft", *warmup_words)),
        (cfg.algorithm.name, rl / "adapter", training(name, *overrides, f"run={cfg.run}", place)),
    ]
    every, last = cfg.trainer.snapshot_every, cfg.trainer.iterations
    points = {0: warm} | {n: rl / f"snapshots/{n:05d}" for n in range(every, last, every)} | {last: rl / "adapter"}
    lines = {cfg.demos.episodes: warm}
    for count, iterations in MORE.items():
        more_words = [*warmup_words, f"demos.episodes={count}", f"trainer.iterations={iterations}"]
        more_words = [*more_words, f"run={cfg.run}/sft-{count}"]
        more = config.load("sft", more_words)
        lines[count] = folder / f"sft-{count}/sft/adapter"
        stages += [
            demonstrations(more, folder / f"demos-{count}.json", f"{count} demonstrations"),
            (f"SFT on {count} demonstrations", lines[count], training("sft", *more_words)),
        ]

    def on(set_: str) -> Config:
        return replace(base, env=replace(base.env, obj_set=set_), evaluation=replace(base.evaluation, videos=0))

    adapters = {f"{cfg.algorithm.name}-{n:05d}": path for n, path in points.items()}
    adapters |= {f"sft-{count}": path for count, path in lines.items() if count in MORE}
    stages += [
        (
            f"evaluate {label}, {set_}",
            report(folder, label, set_),
            evaluation(on(set_), path, report(folder, label, set_).parent),
        )
        for label, path in adapters.items()
        for set_ in sets
    ]
    perform(folder, stages)
    draw(folder, cfg.algorithm.name, sets, {n * steps: n for n in points}, list(lines))


def steps_per_iteration(cfg: Config) -> int:
    """Environment steps of one iteration of rollouts, all processes together."""
    from vlapost.envs.setups import setup_of
    from vlapost.experience.datamodule import samples

    return samples(cfg, setup_of(cfg.env).task.steps) * processes(cfg)[1]


def sets_of(base: Config) -> dict[str, str]:
    """The object sets to evaluate on, with their titles.

    Raises:
        UserError: the environment has no unseen set.
    """
    from vlapost.envs.setups import find_setup

    sets = {base.env.obj_set: "training setup", "test": "unseen objects and tables"}
    for obj_set in sets:
        find_setup(base.env.id, obj_set)
    return sets


def report(folder: Path, label: str, set_: str) -> Path:
    """Where the evaluation of an adapter on an object set is summarised."""
    return folder / "evaluation" / f"{label}-{set_}" / "report.json"


def draw(folder: Path, algorithm: str, sets: dict[str, str], points: dict[int, int], lines: list[int]) -> None:
    """Write curve.json and curve.png: success over environment steps, SFT as horizontal lines."""

    def scores(label: str, set_: str) -> dict[str, Any]:
        found = json.loads(report(folder, label, set_).read_text())
        return {metric: found[metric] for metric in METRICS}

    curve = {s: {steps: scores(f"{algorithm}-{n:05d}", s) for steps, n in points.items()} for s in sets}
    sft = {s: {n: curve[s][0] if n not in MORE else scores(f"sft-{n}", s) for n in lines} for s in sets}
    write_json(folder / "curve.json", {"rl": curve, "sft": sft})
    figure, axes = pyplot().subplots(1, len(sets), figsize=(11, 4), sharey=True)
    for axis, (set_, title) in zip(axes, sets.items()):
        values = [curve[set_][steps]["success_end"] for steps in points]
        axis.plot(list(points), [v["mean"] for v in values], color="tab:green", marker="o", label=algorithm.upper())
        axis.fill_between(
            list(points), [v["low"] for v in values], [v["high"] for v in values], color="tab:green", alpha=0.15
        )
        for count, style in zip(lines, (":", "--", "-.")):
            score = sft[set_][count]["success_end"]
            axis.axhspan(score["low"], score["high"], color="tab:blue", alpha=0.05)
            axis.axhline(score["mean"], color="tab:blue", linestyle=style, label=f"SFT {count}")
        axis.set_title(title)
        axis.set_xlabel("environment steps")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("success at the end")
    axes[0].set_ylim(0, 1)
    axes[0].legend(loc="upper left", fontsize=8, title="95 % Wilson intervals")
    save_figure(figure, folder / "curve.png")
    cli.console.print(f"Wrote {folder / 'curve.png'} and curve.json.", soft_wrap=True)


if __name__ == "__main__":
    cli.main(run)
