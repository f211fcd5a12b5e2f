"""SFT over the number of demonstrations: `python -m vlapost.scaling [key=value ...]`, or `make sft-scaling`.

Every cell of the grid, a number of demonstrations and a seed, is trained on the first of one collection, so that a
smaller set is part of every larger one. Its rate falls to zero in a time that grows with the set, and it ends earlier
when the loss on held-out demonstrations falls no more (conf/sft_scaling.yaml). It is evaluated on the training setup
and on unseen objects and tables (paper Fig. 6a and 6b). What is finished is skipped, so the same command continues an
interrupted grid, and more sizes or seeds add to it.

`sizes=[140,1000,32000]` and `seeds=[0]` change the grid; `curve=lightning_logs/curve/curve.json` lays the learning
curve of RL over the levels of SFT (Fig. 6c and 6d). All other overrides go to every cell; `trainer.iterations` is for
140 demonstrations.

Writes lightning_logs/<run>/: scaling.png, scaling.json, with a curve rl.png, a folder per cell, evaluation/.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table
from yaml import YAMLError

from vlapost import cli, config
from vlapost.config import ROOT, Config, UserError
from vlapost.evaluation import charts
from vlapost.evaluation.summary import METRICS, percent, pool, write_json
from vlapost.recipe import MAY_CHANGE, Stage, demonstrations, evaluation, perform, series, split_words, training
from vlapost.train import check, claim

FEWEST, GROWTH = 140, 0.62  # N demonstrations are trained on (N / 140)^0.62 times as long
CHECKS = 8  # looks at the held-out loss during a cell
LOSS = "val/demo_loss"


@dataclass
class Grid:
    """What the command line may change. curve: a curve.json of `make learning-curve`, or empty."""

    sizes: list[int] = field(default_factory=lambda: [140, 280, 560, 1000, 2000, 4000, 8000, 16000])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    curve: str = ""


def run(argv: list[str]) -> None:
    """Train and evaluate every cell that is not finished, then draw."""
    name, words = cli.parse(argv, "sft_scaling")
    if name != "sft_scaling":
        raise UserError(f"The grid is conf/sft_scaling.yaml, not '{name}'; give what differs as key=value.")
    own = [w for w in words if w.split("=")[0] in Grid.__dataclass_fields__]
    words = [w for w in words if w not in own]
    grid = parse(own)
    cfg = config.load(name, [*words, f"demos.episodes={max(grid.sizes)}"])
    sets = sets_of(cfg)
    rl = learning_curve_of(grid.curve, sets) if grid.curve else {}
    folder = ROOT / "lightning_logs" / cfg.run
    check(cfg)
    stages: list[Stage] = [demonstrations(cfg, folder / f"demos-{cfg.demos.episodes}.json")]
    for size in grid.sizes:
        for seed in grid.seeds:
            stages += cell(cfg.run, label(size, seed), size, [*words, f"seed={seed}"], sets)
    perform(folder, stages)
    draw(folder, grid, sets, rl)


def parse(words: list[str]) -> Grid:
    """The grid of the command line.

    Raises:
        UserError: not numbers, or none.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Grid), OmegaConf.from_dotlist(words))
        grid: Any = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"'{' '.join(words)}' has a mistake: {str(error).splitlines()[0]}.") from None
    grid.sizes, grid.seeds = sorted(set(grid.sizes)), sorted(set(grid.seeds))
    if not grid.sizes or not grid.seeds or grid.sizes[0] < 1:
        raise UserError("sizes and seeds need a number each at least, and sizes are 1 or more: sizes=[140] seeds=[0].")
    return grid


def learning_curve_of(path: str, sets: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What `make learning-curve` measured of RL: {object set: {environment steps: {measure: rate}}}.

    Raises:
        UserError: it is not there, or is of other object sets.
    """
    try:
        found = json.loads((ROOT / path).read_text())["rl"]
        points = [point for of_set in found.values() for point in of_set.items()]
        usable = all(int(steps) >= 0 and "mean" in scores["success_end"] for steps, scores in points)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise UserError(f"curve={path} is no curve.json; make learning-curve writes one in its folder.")
    if set(found) != set(sets):
        raise UserError(f"curve={path} is of the object sets {', '.join(found)}, the grid of {', '.join(sets)}.")
    return found


def label(size: int, seed: int) -> str:
    """The name of a cell."""
    return f"{size}-seed{seed}"


def cell(run: str, name: str, size: int, words: list[str], sets: dict[str, str]) -> list[Stage]:
    """The stages that train the cell `name` of a run on `size` demonstrations, which are there, and evaluate it."""
    length = config.load("sft_scaling", words).trainer.iterations
    iterations = max(1, round(length * (size / FEWEST) ** GROWTH))
    words = [f"trainer.eval_every={-(-iterations // CHECKS)}", *words]
    every = config.load("sft_scaling", words).trainer.eval_every or 1
    iterations = -(-iterations // every) * every  # what is evaluated is what was looked at last
    words = [*words, f"demos.episodes={size}"]
    words = [*words, f"trainer.iterations={iterations}", f"run={run}/{name}"]
    claim(ROOT / "lightning_logs" / run / name, config.load("sft_scaling", words), MAY_CHANGE)
    base = config.load("base", split_words(words, run)[0])
    trained: Stage = (f"SFT {name}", adapter(run, name), training("sft_scaling", *words))
    return [trained, *evaluations(base, name, adapter(run, name), sets)]


def adapter(run: str, name: str) -> Path:
    """What a cell leaves when it is trained."""
    return ROOT / "lightning_logs" / run / name / "sft/adapter"


def evaluations(base: Config, name: str, adapter: Path, sets: dict[str, str]) -> list[Stage]:
    """The stages that evaluate an adapter of the run `base.run` on each object set."""

    def on(set_: str) -> Config:
        return replace(base, env=replace(base.env, obj_set=set_), evaluation=replace(base.evaluation, videos=0))

    folder = ROOT / "lightning_logs" / base.run
    products = {set_: report(folder, name, set_) for set_ in sets}
    return [
        (f"evaluate {name}, {set_}", product, evaluation(on(set_), adapter, product.parent))
        for set_, product in products.items()
    ]


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


def report(folder: Path, name: str, set_: str) -> Path:
    """Where the evaluation of an adapter on an object set is summarised."""
    return folder / "evaluation" / f"{name}-{set_}" / "report.json"


def draw(folder: Path, grid: Grid, sets: dict[str, str], rl: dict[str, Any]) -> None:
    """Write scaling.json, scaling.png and, with a learning curve of RL, rl.png; print the table."""

    def scores(size: int, set_: str) -> dict[str, Any]:
        """Of all seeds together, with the mean of each."""
        found = [json.loads(report(folder, label(size, seed), set_).read_text()) for seed in grid.seeds]
        return {
            m: {**pool([one[m] for one in found]), "seeds": {s: one[m]["mean"] for s, one in zip(grid.seeds, found)}}
            for m in METRICS
        }

    success = {set_: {size: scores(size, set_) for size in grid.sizes} for set_ in sets}
    losses = {
        size: {s: series(folder / label(size, s) / "sft", [LOSS])[LOSS] for s in grid.seeds} for size in grid.sizes
    }
    write_json(folder / "scaling.json", {"success": success, "held_out_loss": losses, "seeds": grid.seeds})
    written = [folder / "scaling.png", folder / "scaling.json"]
    figure, axes = charts.panels(list(sets.values()))
    for axis, by_size in zip(axes, success.values()):
        charts.over_sizes(axis, by_size)
    charts.save_figure(figure, written[0])
    if rl:
        figure, axes = charts.panels(list(sets.values()))
        shown = dict.fromkeys((grid.sizes[0], grid.sizes[len(grid.sizes) // 2], grid.sizes[-1]))
        for axis, set_ in zip(axes, sets):
            levels = {f"SFT {size}": success[set_][size]["success_end"] for size in shown}
            points = {int(steps): found["success_end"] for steps, found in rl[set_].items()}
            charts.learning_curve(axis, "RL", points, levels)
        charts.save_figure(figure, folder / "rl.png")
        written.append(folder / "rl.png")
    cli.console.print(table(grid, sets, success, losses))
    cli.console.print(f"Wrote {', '.join(map(str, written))}.", soft_wrap=True)


def table(grid: Grid, sets: dict[str, str], success: dict[str, Any], losses: dict[int, Any]) -> Table:
    """A row per size: least and last loss on held-out demonstrations (means of the seeds), and the scores on each set.

    The loss of each size is that on the demonstrations behind its own.
    """
    title = f"SFT, {len(grid.seeds)} seeds: grasp, continuous grasp, success with its 95 % Wilson interval"
    view = Table(title=title)
    for column in ("demonstrations", "least loss", "last loss", *sets.values()):
        view.add_column(column, justify="right", no_wrap=True)
    for size in grid.sizes:
        looks = [(min(values), values[-1]) for values in losses[size].values() if values]
        cells = [success[set_][size] for set_ in sets]
        view.add_row(
            str(size),
            *([f"{sum(column) / len(column):.3f}" for column in zip(*looks)] or ["", ""]),
            *(
                f"{c['grasp']['mean']:.1%}  {c['consecutive_grasp']['mean']:.1%}  {percent(c['success_end'])}"
                for c in cells
            ),
        )
    return view


if __name__ == "__main__":
    cli.main(run)
