"""An ablation of the paper in small: `python -m vlapost.study FIG [key=value ...]`, or `make study FIG=5a`.

conf/study/<FIG>.yaml names the cells of the grid and how each differs; every cell is trained with every seed, from a
warm-up that all cells with the same warm-up settings share, and is evaluated on the held-out episodes. What is finished
is skipped, so the same command continues an interrupted study; it keeps the settings it was started with. Overrides go
to all cells, where those of a recipe go; `seeds=[0]` and `only=[h0]` take fewer seeds and cells.

Writes lightning_logs/study-<FIG>/ (or <run>/, with `run=`): a folder per cell and seed, study.json and study.png
(study-some.* of fewer cells or seeds).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table
from yaml import YAMLError

from vlapost import cli, config, evaluate
from vlapost.config import CONF, ROOT, Config, UserError
from vlapost.evaluation.charts import pyplot, save_figure, smooth, whiskers
from vlapost.evaluation.summary import METRICS, percent, write_json
from vlapost.recipe import rollout_curve
from vlapost.runs import HOW, base_of, check, claim
from vlapost.stages import Stage, check_evaluation, demonstrations, evaluation, perform, split_words, training


@dataclass
class Cell:
    """A configuration, the words that change it, and whether it starts from the warm-up or from the base."""

    conf: str = "ppo"
    words: list[str] = field(default_factory=list)
    warm_up: bool = True


@dataclass
class Study:
    """conf/study/<FIG>.yaml. words: changes of all cells. only: the cells to run, by name; empty: all."""

    title: str
    seeds: list[int]
    words: list[str]
    cells: dict[str, Cell]
    only: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A cell with a seed. folder: of the training stage. report: of its evaluation."""

    cell: str
    seed: int
    folder: Path
    report: Path


def run(argv: list[str]) -> None:
    """Train and evaluate every cell that is not finished, then draw."""
    figure, words = cli.parse(argv, "")
    own = ("seeds=", "only=")
    study = load(figure, [w for w in words if w.startswith(own)])
    words = [*study.words, *(w for w in words if not w.startswith(own))]
    named = [w.removeprefix("run=") for w in words if w.startswith("run=")]
    folder = ROOT / "lightning_logs" / (named[-1] if named else f"study-{figure}")
    stages: dict[tuple[str, Path], Stage] = {}  # by title and product: a warm-up that cells share is one stage
    claims: dict[Path, Config] = {}
    runs = []
    for name, cell in study.cells.items():
        for seed in study.seeds:
            one, its_stages, its_claims = plan(folder, name, cell, seed, words)
            runs.append(one)
            stages |= {stage[:2]: stage for stage in its_stages}
            claims |= its_claims
    check(*claims.values())
    for place, cfg in claims.items():
        claim(place, cfg, HOW)
    perform(folder, list(stages.values()))
    whole = not study.only and set(study.seeds) >= set(load(figure, []).seeds)
    draw(folder, study, runs, "study" if whole else "study-some")


def load(figure: str, overrides: list[str]) -> Study:
    """The study of a figure.

    Raises:
        UserError: there is none of that name, or its file or the override has a mistake.
    """
    path = CONF / "study" / f"{figure}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise UserError(f"There is no study '{figure}'; name one with FIG=..., there are: {known}.")
    try:
        layers = OmegaConf.load(path), OmegaConf.from_dotlist(overrides)
        study: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Study), *layers))
    except (OmegaConfBaseException, YAMLError) as error:
        what = f"conf/study/{path.name}, 'seeds=' or 'only='"
        raise UserError(f"{what} has a mistake: {str(error).splitlines()[0]}.") from None
    if not study.seeds or not study.cells:
        raise UserError(f"The study '{figure}' has no {'cells' if study.seeds else 'seeds'}; name at least one.")
    if unknown := [name for name in study.only if name not in study.cells]:
        raise UserError(f"The study '{figure}' has no cell '{unknown[0]}'; it has {', '.join(study.cells)}.")
    return replace(study, cells={name: study.cells[name] for name in study.only or study.cells})


def plan(
    folder: Path, name: str, cell: Cell, seed: int, words: list[str]
) -> tuple[Run, list[Stage], dict[Path, Config]]:
    """A cell with a seed, the stages that make it, and the folders they claim with their settings."""
    label = f"{name}, seed {seed}"
    run_name = f"{folder.relative_to(ROOT / 'lightning_logs')}/{name.replace(' ', '-')}-seed{seed}"
    refuse(words, cell, name)
    words = [*words, *cell.words, f"seed={seed}"]
    own = [w for w in words if not w.startswith("sft.")]
    shared, warm_up_words = split_words(words, run_name)
    base = config.load("base", [*shared, "evaluation.videos=0"])
    check_evaluation(base)
    place = ROOT / "lightning_logs" / run_name
    stages: list[Stage] = []
    claims: dict[Path, Config] = {}
    train_words = [*own, f"run={run_name}"]
    if cell.warm_up:
        warm = config.load("sft", [*warm_up_words, "run=study-warm-up"])
        settings = [
            d for d in config.differences(warm, "{}") if not d.startswith(HOW) or d.startswith("trainer.devices")
        ]
        settings.append(evaluate.fingerprint(base_of(warm)))
        digest = hashlib.sha256("; ".join(settings).encode()).hexdigest()[:8]
        warm = replace(warm, run=f"study-warm-up/{digest}")
        at = ROOT / "lightning_logs" / warm.run
        claims[at] = warm
        train_words.append(f"policy.adapter={(at / 'sft/adapter').relative_to(ROOT)}")
        stages = [
            demonstrations(warm, at / "sft/adapter"),
            (f"warm-up {digest}", at / "sft/adapter", training("sft", *warm_up_words, f"run={warm.run}")),
        ]
    claims[place] = cfg = config.load(cell.conf, train_words)
    one = Run(name, seed, place / cfg.algorithm.name, place / "evaluation/report.json")
    if "demos" in cfg.experience.schedule:
        stages.append(demonstrations(cfg, one.folder / "adapter"))
    stages += [
        (label, one.folder / "adapter", training(cell.conf, *train_words)),
        (f"evaluate {label}", one.report, evaluation(base, one.folder / "adapter", one.report.parent)),
    ]
    return one, stages, claims


def refuse(words: list[str], cell: Cell, name: str) -> None:
    """Make sure that the overrides of all cells leave alone what the grid decides.

    Raises:
        UserError: one does not.
    """
    for key in (word.split("=")[0] for word in words):
        if key == "seed":
            raise UserError("seed differs between the cells of a study; give seeds=[...].")
        if key == "policy.adapter":
            raise UserError("policy.adapter is the warm-up's in a study; leave it out.")
        if key in (own.split("=")[0] for own in cell.words):
            raise UserError(f"{key} is what the cell '{name}' sets itself; leave it out.")


def draw(folder: Path, study: Study, runs: list[Run], name: str = "study") -> None:
    """Write `name`.json and `name`.png, and print the table.

    Left: success of the training rollouts over environment steps, middle: over time (thin: a seed, thick: the mean of
    the seeds). Right: held-out episodes, a point with its 95 % Wilson interval for each seed.
    """
    curves = {(one.cell, one.seed): rollout_curve(one.folder) for one in runs}
    scores = {(one.cell, one.seed): json.loads(one.report.read_text()) for one in runs}
    write_json(
        folder / f"{name}.json",
        {
            cell: {
                str(seed): {
                    "rollouts": curves[cell, seed],
                    "held_out": {metric: scores[cell, seed][metric] for metric in METRICS},
                }
                for seed in study.seeds
            }
            for cell in study.cells
        },
    )
    figure, axes = pyplot().subplots(1, 3, figsize=(15, 4), sharey=True)
    for number, cell in enumerate(study.cells):
        colour, lines = f"C{number}", [curves[cell, seed] for seed in study.seeds]
        for axis, key, unit in ((axes[0], "rollout/env_steps", 1), (axes[1], "seconds", 60)):
            xs = [[x / unit for x in c[key]] for c in lines]
            ys = [smooth(c["rollout/success_end"]) for c in lines]
            for x, y in zip(xs, ys):
                axis.plot(x, y, color=colour, linewidth=0.7, alpha=0.6)
            length = min(map(len, ys))
            mean = [[sum(values) / len(values) for values in zip(*(s[:length] for s in series))] for series in (xs, ys)]
            axis.plot(*mean, color=colour, linewidth=2, label=cell)
        for k, seed in enumerate(study.seeds):
            s = scores[cell, seed]["success_end"]
            axes[2].errorbar(number + 0.12 * k, s["mean"], yerr=whiskers(s), color=colour, marker="o", capsize=3)
    for axis, label in zip(axes, ("environment steps", "minutes", "held-out episodes")):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("success at the end")
    axes[0].set_ylim(0, 1)
    axes[0].legend(fontsize=8)
    axes[2].set_xticks(range(len(study.cells)), list(study.cells), rotation=20, ha="right", fontsize=8)
    figure.suptitle(study.title)
    save_figure(figure, folder / f"{name}.png")
    table = Table(title=f"{study.title}: success at the end on held-out episodes")
    for column in ("cell", *(f"seed {seed}" for seed in study.seeds)):
        table.add_column(column, justify="left" if column == "cell" else "right")
    for cell in study.cells:
        table.add_row(cell, *(percent(scores[cell, seed]["success_end"]) for seed in study.seeds))
    cli.console.print(table)
    cli.console.print(f"Wrote {folder / f'{name}.png'} and {name}.json.", soft_wrap=True)


if __name__ == "__main__":
    cli.main(run)
