"""The whole recipe as one command: `python -m vlapost.recipe ppo [key=value ...]`, or `make train-ppo`.

demonstrations -> LoRA warm-up (SFT) -> RL (ppo, grpo or tpo) -> evaluation on held-out episodes before and after, and
of the untrained starting points. Each stage is a process of its own and is skipped once finished, so the same command
continues an interrupted recipe. Overrides of `algorithm`, `experience`, `optim`, `trainer` and `policy.critic` go to
the RL stage, all others to every stage; with the prefix `sft.` they go to the warm-up alone
(`sft.trainer.iterations=5`). `policy.adapter=FOLDER` is an adapter of yours, from which RL starts without a warm-up.

Writes lightning_logs/<run>/: sft/, ppo/ (or grpo/, tpo/), evaluation-*/, learning_curve.png, summary.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from vlapost import cli, collect_demos, config, evaluate
from vlapost.config import ROOT, Config, EnvConfig, UserError
from vlapost.evaluation.charts import pyplot, save_figure, smooth, whiskers
from vlapost.evaluation.summary import METRICS, percent, write_json
from vlapost.runs import COLLECTING, check, claim

LEARNING = ("algorithm.", "experience.", "optim.", "trainer.", "policy.critic")
MAY_CHANGE = (
    "trainer.devices",
    "trainer.video_episodes",
    *COLLECTING,
    "evaluation.workers",
    "evaluation.videos",
    "generalization.",
)
MACHINE = ("trainer.accelerator", "trainer.devices", "trainer.precision", "trainer.matmul")
Stage = tuple[str, Path, Callable[[], object]]  # title, what it leaves when it is finished, the work
STARTS = {"base": "pretrained", "before": "after warm-up", "after": "after RL"}


def run(argv: list[str]) -> None:
    """Run every stage that is not finished, then summarise."""
    name, words = cli.parse(argv, "ppo")
    overrides = [w for w in words if not w.startswith("sft.")]
    cfg = config.load(name, overrides)
    if cfg.algorithm.name == "sft":
        raise UserError(f"conf/{name}.yaml trains by SFT alone; use make train-sft.")
    policy_only(cfg)
    shared, warmup_words = split_words(words, cfg.run)
    warmup_cfg, base = config.load("sft", warmup_words), config.load("base", shared)
    refuse_for_rl_alone(name, cfg, base)

    folder, rl = ROOT / "lightning_logs" / cfg.run, cfg.algorithm.name
    warm, tuned = start_of(cfg, folder, words), folder / f"{rl}/adapter"
    collected = demonstrations(warmup_cfg, tuned if "demos" in cfg.experience.schedule else warm)
    check(cfg, warmup_cfg)
    claim_all(folder, cfg, warmup_cfg, base)

    def evaluated(label: str, adapter: Path | None) -> Callable[[], object]:
        return evaluation(base, adapter, folder / f"evaluation-{label}")

    stages: list[Stage] = [
        collected,
        ("evaluate base", folder / "evaluation-base/report.json", evaluated("base", None)),
        ("warm-up", warm, training("sft", *warmup_words)),
        ("evaluate before", folder / "evaluation-before/report.json", evaluated("before", warm)),
        (rl, tuned, training(name, *overrides, f"run={cfg.run}", f"policy.adapter={below_root(warm)}")),
        ("evaluate after", folder / "evaluation-after/report.json", evaluated("after", tuned)),
    ]
    summarise(cfg, folder, perform(folder, stages))


def policy_only(cfg: Config) -> None:
    """For commands that evaluate what they train.

    Raises:
        UserError: something else is to act.
    """
    if cfg.evaluation.actor != "policy":
        raise UserError(f"evaluation.actor is '{cfg.evaluation.actor}'; this command evaluates the policy it trains.")


def refuse_for_rl_alone(name: str, cfg: Config, base: Config) -> None:
    """Make sure that conf/<name>.yaml changes for RL alone only what concerns RL alone.

    Raises:
        UserError: it changes what the stages must agree about, which the command line tells all of them.
    """
    own = ("run:", "env.num_envs:", "policy.train_vision:", *LEARNING)
    for difference in config.differences(cfg, config.to_yaml(base)):
        key = difference.split(":")[0]
        if not difference.startswith(own) or key in MACHINE:
            raise UserError(f"conf/{name}.yaml sets {key}, which concerns every stage; give it in ARGS instead.")


def start_of(cfg: Config, folder: Path, words: list[str]) -> Path:
    """The adapter that RL starts from: `policy.adapter`, or else the warm-up's.

    Raises:
        UserError: it is not there, or a warm-up that is not to be is described, or there.
    """
    if not cfg.policy.adapter:
        return folder / "sft/adapter"
    if own := [word for word in words if word.startswith("sft.")]:
        raise UserError(f"RL starts from policy.adapter={cfg.policy.adapter}, without a warm-up; leave {own[0]} out.")
    if (folder / "sft/config.yaml").is_file():
        raise UserError(f"The run '{cfg.run}' has a warm-up of its own; choose another name with run=NAME.")
    evaluate.fingerprint(cfg)
    return ROOT / cfg.policy.adapter


def claim_all(folder: Path, cfg: Config, warmup: Config, base: Config) -> None:
    """Claim the folders of RL, of the warm-up, if there is one, and of the evaluations."""
    claim(folder, cfg, MAY_CHANGE)
    if not cfg.policy.adapter:
        claim(folder / "sft", warmup, MAY_CHANGE)
    claim(folder / "evaluation", base, MAY_CHANGE)


def below_root(adapter: Path) -> str:
    """A folder as settings name it: relative to the repository, where it is inside."""
    return str(adapter.relative_to(ROOT) if adapter.is_relative_to(ROOT) else adapter)


def split_words(words: list[str], run: str) -> tuple[list[str], list[str]]:
    """The overrides of every stage, and those of the warm-up."""
    shared = [w for w in words if not w.startswith(("sft.", *LEARNING)) or w.startswith(MACHINE)]
    shared = [*shared, f"run={run}"]
    return shared, [*shared, *(w.removeprefix("sft.") for w in words if w.startswith("sft."))]


def demonstrations(cfg: Config, trained: Path) -> Stage:
    """The stage that collects what is missing of `cfg.demos.episodes`, until `trained` is there.

    Raises:
        UserError: only a part of them is to be collected.
    """
    collect_demos.refuse_parts(cfg)
    return "demonstrations", trained, lambda: collect_demos.collect(cfg).close()


def perform(folder: Path, stages: list[Stage]) -> dict[str, float]:
    """Run the stages whose product is not there yet; returns the seconds each took over all attempts, by title."""
    seconds_file = folder / "seconds.json"
    seconds: dict[str, float] = json.loads(seconds_file.read_text()) if seconds_file.is_file() else {}
    for title, product, stage in stages:
        if product.exists():
            cli.console.print(f"{title}: finished earlier", style="dim")
            continue
        cli.console.rule(title)
        begin = time.perf_counter()
        try:
            stage()
        finally:
            seconds[title] = seconds.get(title, 0.0) + time.perf_counter() - begin
            write_json(seconds_file, seconds)
    return seconds


def evaluation(cfg: Config, adapter: Path | None, folder: Path) -> Callable[[], object]:
    """The work of evaluating an adapter (None: the checkpoint without one) into `folder`."""

    def work() -> object:
        place = below_root(adapter) if adapter else ""
        return evaluate.evaluate(replace(cfg, policy=replace(cfg.policy, adapter=place)), folder)

    return work


def training(*words: str) -> Callable[[], object]:
    """The work of a training stage, given the words of its command."""
    return lambda: process("vlapost.train", *words)


def process(module: str, *words: str) -> None:
    """A training stage is a process of its own: it may start more of them, and its memory goes when it ends."""
    child = subprocess.Popen([sys.executable, "-m", module, *words], cwd=ROOT, env=os.environ | {"VLAPOST_STAGE": "1"})
    try:
        code = child.wait()
    except KeyboardInterrupt:  # the stage has received it too, and may be writing a checkpoint
        child.wait()
        raise
    if code:
        sys.exit(code)


def summarise(cfg: Config, folder: Path, seconds: dict[str, float]) -> None:
    """Write summary.json and the learning curve, and print the table."""
    reports = {label: json.loads((folder / f"evaluation-{label}/report.json").read_text()) for label in STARTS}
    curve = rollout_curve(folder / cfg.algorithm.name)
    summary: dict[str, Any] = {
        **untrained(cfg, reports["base"]),
        **{label: {m: reports[label][m] for m in METRICS} for label in STARTS},
        "decoding": reports["after"]["decoding"],
        "seed": cfg.seed,
        "env_steps": int(curve["rollout/env_steps"][-1]) if curve["rollout/env_steps"] else 0,
        "seconds": {title: round(value, 1) for title, value in seconds.items()},
        "config": {
            part: OmegaConf.to_container(OmegaConf.load(folder / path / "config.yaml"))
            for part, path in (("rl", "."), ("warm-up", "sft"), ("evaluation", "evaluation"))
            if (folder / path / "config.yaml").is_file()  # no warm-up, where there was an adapter
        },
    }
    write_json(folder / "summary.json", summary)
    plot(curve, folder / "learning_curve.png", summary)
    table = Table(title=f"{cfg.run}: {summary['after']['success_end']['n']} held-out episodes, {summary['decoding']}")
    table.add_column("metric")
    columns = STARTS | ({"before": "policy.adapter"} if cfg.policy.adapter else {})
    if "untrained" in summary:
        columns = {"untrained": "random weights"} | columns
    for label, what in columns.items():
        table.add_column(f"{label}\n{what}", justify="right")
    for metric in METRICS:
        cells = [summary[label][metric] for label in columns]
        table.add_row(metric, *map(percent, cells))
    cli.console.print(table)
    total = sum(seconds.values())
    cli.console.print(
        f"{summary['env_steps']} environment steps; {total / 60:.1f} minutes: "
        + ", ".join(f"{title} {value / 60:.1f}" for title, value in seconds.items())
    )
    cli.console.print(f"Wrote {folder / 'summary.json'} and learning_curve.png; `make tensorboard` shows the rest.")


def untrained(cfg: Config, report: dict[str, Any]) -> dict[str, Any]:
    """The score of random weights that came with the checkpoint, where it was measured as this run measures."""
    path = ROOT / cfg.policy.checkpoint / "scores.json"
    scores = json.loads(path.read_text()) if path.is_file() else {}
    same = scores.get("measured") == measured(cfg.env, report)
    return {"untrained": scores["untrained"]} if same else {}


def measured(env: EnvConfig, report: dict[str, Any]) -> list[Any]:
    """What has to agree before two scores may stand in one table."""
    from vlapost.assets.pack import edition

    where = [env.id, env.obj_set, env.protocol, edition(env.assets)]
    return [*where, report["decoding"], report["success_end"]["n"], report["seed"]]


def rollout_curve(folder: Path) -> dict[str, list[float]]:
    """The stage's TensorBoard series of its rollouts; "seconds": what all iterations up to each have taken."""
    tags = ["rollout/env_steps", *[f"rollout/{m}" for m in METRICS], "rollout/return"]
    found = by_step(folder, [*tags, "time/iteration_s"])
    spent = found.pop("time/iteration_s")
    ends = found["rollout/env_steps"]
    seconds = [sum(taken for step, taken in spent.items() if step <= end) for end in ends]
    return {tag: list(values.values()) for tag, values in found.items()} | {"seconds": seconds}


def series(folder: Path, tags: list[str]) -> dict[str, list[float]]:
    """TensorBoard series of a stage, empty where there is none."""
    return {tag: list(values.values()) for tag, values in by_step(folder, tags).items()}


def by_step(folder: Path, tags: list[str]) -> dict[str, dict[int, float]]:
    """The same with TensorBoard's steps, in their order; a resumed run's repeated iterations appear once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    known = set(events.Tags()["scalars"])
    return {
        tag: dict(sorted({e.step: e.value for e in events.Scalars(tag)}.items())) if tag in known else {}
        for tag in tags
    }


def plot(curve: dict[str, list[float]], path: Path, summary: dict[str, Any]) -> None:
    """Sampled success and grasp of the training rollouts over environment steps; held-out scores as points."""
    figure, axis = pyplot().subplots(figsize=(7, 4))
    steps = curve["rollout/env_steps"]
    for metric, colour in zip(METRICS, ("tab:green", "tab:olive", "tab:blue", "tab:purple")):
        values = curve[f"rollout/{metric}"]
        axis.plot(steps, smooth(values), color=colour, label=metric)
        for place, label in ((0, "before"), (steps[-1] if steps else 0, "after")):
            c = summary[label][metric]
            axis.errorbar(place, c["mean"], yerr=whiskers(c), color=colour, marker="o", capsize=3)
    axis.set_xlabel("environment steps")
    axis.set_ylabel("share of episodes")
    axis.set_ylim(-0.02, 1.02)
    axis.set_title("lines: training rollouts (mean of 5); points: held out, 95 %", fontsize=9, pad=26)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(METRICS), fontsize=8, frameon=False)
    axis.grid(alpha=0.3)
    save_figure(figure, path)


if __name__ == "__main__":
    cli.main(run)
