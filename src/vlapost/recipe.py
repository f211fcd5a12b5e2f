"""The whole recipe as one command: `python -m vlapost.recipe ppo [key=value ...]`, or `make train-ppo`.

demonstrations -> LoRA warm-up (SFT) -> RL (ppo, grpo or tpo) -> evaluation on held-out episodes before and after, and
of the untrained starting points. Each stage is a process of its own and is skipped once finished, so the same command
continues an interrupted recipe. Overrides of `algorithm`, `experience`, `optim`, `trainer` and `policy.critic` go to
the RL stage, all others (and what of `trainer` is of the machine) to every stage; with the prefix `sft.` they go to the
warm-up alone (`sft.trainer.iterations=5`). `policy.adapter=FOLDER` is an adapter of yours, from which RL starts without
a warm-up.

Writes lightning_logs/<run>/: sft/, ppo/ (or grpo/, tpo/), evaluation-*/, learning_curve.png, summary.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from vlapost import cli, evaluate
from vlapost.against import SCENES
from vlapost.config import ROOT, Config, EnvConfig, UserError
from vlapost.evaluation.charts import pyplot, save_figure, smooth, whiskers
from vlapost.evaluation.summary import METRICS, percent, write_json
from vlapost.stages import Stage, evaluation, of_adapter, perform, plan

STARTS = {"base": "pretrained", "before": "after warm-up", "after": "after RL"}


def run(argv: list[str]) -> None:
    """Run every stage that is not finished, then summarise."""
    it = plan(*cli.parse(argv, "ppo"))
    it.begin()
    adapters = {"base": None, "before": it.warm, "after": it.tuned}

    def evaluated(label: str) -> Stage:
        place = it.folder / f"evaluation-{label}"
        return f"evaluate {label}", place / "report.json", evaluation(it.base, adapters[label], place)

    stages = [evaluated("base"), *it.warm_up, evaluated("before"), *it.rl, evaluated("after")]
    seconds = perform(it.folder, stages)
    for label, adapter in adapters.items():
        refuse_trained_on(of_adapter(it.base, adapter), it.folder / f"evaluation-{label}")
    summarise(it.cfg, it.folder, seconds)


def refuse_trained_on(cfg: Config, folder: Path) -> None:
    """Make sure that the evaluation in `folder` is of what the adapter holds now.

    Raises:
        UserError: `make train-stage` has trained it on since.
    """
    if json.loads((folder / "report.json").read_text())["checkpoint"]["sha256"] != evaluate.fingerprint(cfg):
        raise UserError(
            f"{folder} is of what policy.adapter={cfg.policy.adapter} was before it was trained on; delete that folder "
            "and the same command evaluates it anew."
        )


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


def measured(env: EnvConfig, report: dict[str, Any]) -> dict[str, Any]:
    """What has to agree before two scores may stand in one table."""
    from vlapost.assets.pack import edition

    scenes = asdict(env) | {"assets": edition(env.assets)}
    how = {"decoding": report["decoding"], "episodes": report["success_end"]["n"], "seed": report["seed"]}
    return {key: scenes[key] for key in ("id", "obj_set", *SCENES)} | how


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
