"""SFT over the number of demonstrations: `python -m vlapost.scaling [key=value ...]`, or `make sft-scaling`.

Every cell of the grid, a number of demonstrations and a seed, is trained on the first of one collection, so that a
smaller set is part of every larger one. Its rate falls to zero in a time that grows with the set, and it ends earlier
when the loss on held-out demonstrations falls no more (conf/sft_scaling.yaml). It is evaluated on the training setup
and on unseen objects and tables (paper Fig. 6a and 6b). What is finished is skipped, so the same command continues an
interrupted grid, and more sizes or seeds add to it: all finished cells of the run are drawn.

`sizes=[140,1000,32000]` and `seeds=[0]` change the grid; `curve=lightning_logs/curve/curve.json` lays the learning
curve of RL over the levels of SFT (Fig. 6c and 6d). All other overrides go to every cell; `trainer.iterations` is for
140 demonstrations and two processes.

Writes lightning_logs/<run>/: scaling.png, scaling.json, with a curve rl.png, a folder per cell with its evaluations.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from yaml import YAMLError

from vlapost import cli, collect_demos, config, evaluate
from vlapost.config import ROOT, Config, UserError
from vlapost.evaluation import charts
from vlapost.evaluation.summary import percent, write_json
from vlapost.recipe import series
from vlapost.runs import HOW, base_of, check, claim, processes
from vlapost.stages import Stage, check_evaluation, evaluation, perform, split_words, training

FEWEST, GROWTH = 140, 0.62  # N demonstrations are trained on (N / 140)^0.62 times as long
PROCESSES = 2  # that the iterations are meant for: others take more or fewer, for as many samples
CHECKS = 8  # looks at the held-out loss during a cell
LOSS = "val/demo_loss"
OF_THE_GRID = {"seed": "seeds=[...]", "demos.episodes": "sizes=[...]"}
UNSEEN = ("test", "all")  # object sets with what training must not meet


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
    for key in (w.split("=")[0] for w in words):
        if key in OF_THE_GRID:
            raise UserError(f"{key} differs between the cells of the grid; give {OF_THE_GRID[key]}.")
    grid = parse(own)
    cfg = config.load(name, [*words, f"demos.episodes={max(grid.sizes)}"])
    sets = sets_of(cfg)
    rl = learning_curve_of(grid.curve, cfg, sets) if grid.curve else {}
    folder = ROOT / "lightning_logs" / cfg.run
    collect_demos.check_complete(cfg)
    check(cfg)
    claim(folder, cfg, (*HOW, "demos.episodes"))
    cells = [(size, seed) for size in grid.sizes for seed in grid.seeds]
    adapters = [adapter(cfg.run, label(*one)) for one in cells]
    needs_them = next((path for path in adapters if not path.exists()), adapters[0])
    stages: list[Stage] = [("demonstrations", needs_them, lambda: collect(cfg, folder / "shards.json"))]
    for size, seed in cells:
        stages += cell(cfg.run, size, [*words, f"seed={seed}"], sets)
    perform(folder, stages)
    draw(folder, sets, rl)


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


def sets_of(base: Config) -> dict[str, str]:
    """The object sets to evaluate on, with their titles.

    Raises:
        UserError: the environment has no unseen set, or training would meet it; fewer episodes are held out than are
            asked for; something else than a policy is to act.
    """
    check_evaluation(base)
    if base.env.obj_set in UNSEEN:
        raise UserError(f"env.obj_set is '{base.env.obj_set}', which has the unseen objects in it; name another.")
    sets = {base.env.obj_set: f"training setup ({base.env.obj_set})", "test": "unseen objects and tables"}
    evaluate.ids_of(on(base, "test"))
    return sets


def on(base: Config, obj_set: str) -> Config:
    """The settings of an evaluation on an object set."""
    return replace(base, env=replace(base.env, obj_set=obj_set), evaluation=replace(base.evaluation, videos=0))


def about(base: Config) -> dict[str, Any]:
    """What has to agree before curves of two commands may stand in one chart."""
    from vlapost.assets.pack import edition

    env = asdict(base.env) | {"assets": edition(base.env.assets)}
    del env["num_envs"]  # decides nothing
    return {
        "env": env,
        "decoding": evaluate.decoding(base),
        "episodes": base.evaluation.episodes,
        "base": evaluate.fingerprint(base_of(base)),
    }


def learning_curve_of(path: str, base: Config, sets: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What `make learning-curve` measured of RL: {object set: {environment steps: {measure: rate}}}.

    Raises:
        UserError: it is not there, or was measured in another way than this grid.
    """
    try:
        content = json.loads((ROOT / path).read_text())
        found, theirs = content["rl"], content["about"]
        points = [point for of_set in found.values() for point in of_set.items()]
        usable = all(int(n) >= 0 and {"mean", "low", "high"} <= set(scores["success_end"]) for n, scores in points)
        differing = [key for key, value in about(base).items() if theirs[key] != value]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not usable or set(found) != set(sets):
        raise UserError(f"curve={path} is no curve.json; make learning-curve writes one in its folder.")
    if differing:
        raise UserError(
            f"curve={path} was measured with another {differing[0]} than this grid; give the same settings."
        )
    return found


def collect(cfg: Config, mark: Path) -> None:
    """Collect what is missing; `mark` remembers the shards, which later cells have to find as they were.

    Raises:
        UserError: one of them is damaged or gone, so that a smaller set would not be part of a larger one.
    """
    from vlapost.experience.shards import list_shards

    writer = collect_demos.collect(cfg)
    writer.close()
    folder, damaged = ROOT / cfg.demos.path, [file.path.name for file in writer.skipped]
    there = [file.path.name for file in list_shards(folder) if file.path.name not in damaged]
    before = json.loads(mark.read_text())["shards"] if mark.is_file() else []
    if lost := sorted(set(before) - set(there)):
        raise UserError(
            f"{folder} does not hold {lost[0]} any more, or it is damaged, and the run '{cfg.run}' was begun with it; "
            "put it back, or choose another name with run=NAME."
        )
    write_json(mark, {"path": cfg.demos.path, "shards": there})


def label(size: int, seed: int) -> str:
    """The name of a cell."""
    return f"{size}-seed{seed}"


def cell(run: str, size: int, words: list[str], sets: dict[str, str]) -> list[Stage]:
    """The stages that train a cell of a run on `size` demonstrations, which are there, and evaluate it."""
    c = config.load("sft_scaling", words)
    name, length = label(size, c.seed), c.trainer.iterations * PROCESSES / processes(c)[1]
    iterations = max(1, round(length * (size / FEWEST) ** GROWTH))
    words = [f"trainer.eval_every={-(-iterations // CHECKS)}", *words]
    every = config.load("sft_scaling", words).trainer.eval_every or 1
    iterations = -(-iterations // every) * every  # what is evaluated is what was looked at last
    words = [*words, f"demos.episodes={size}"]
    words = [*words, f"trainer.iterations={iterations}", f"run={run}/{name}"]
    claim(ROOT / "lightning_logs" / run / name, config.load("sft_scaling", words), HOW)
    base = config.load("base", split_words(words, run)[0])
    trained: Stage = (f"SFT {name}", adapter(run, name), training("sft_scaling", *words))
    return [trained, *evaluations(base, name, adapter(run, name), sets)]


def adapter(run: str, name: str) -> Path:
    """What a cell leaves when it is trained."""
    return ROOT / "lightning_logs" / run / name / "sft/adapter"


def evaluations(base: Config, name: str, adapter: Path, sets: dict[str, str]) -> list[Stage]:
    """The stages that evaluate an adapter of the run `base.run` on each object set."""
    folder = ROOT / "lightning_logs" / base.run
    products = {set_: report(folder, name, set_) for set_ in sets}
    return [
        (f"evaluate {name}, {set_}", product, evaluation(on(base, set_), adapter, product.parent))
        for set_, product in products.items()
    ]


def report(folder: Path, name: str, set_: str) -> Path:
    """Where the evaluation of an adapter on an object set is summarised."""
    return folder / name / "evaluation" / set_ / "report.json"


def finished(folder: Path, sets: dict[str, str]) -> dict[int, list[int]]:
    """The sizes of which there are evaluated cells, and their seeds."""
    found: dict[int, list[int]] = {}
    for path in folder.glob("*-seed*"):
        named = re.fullmatch(r"(\d+)-seed(\d+)", path.name)  # not what somebody has put beside the cells
        if named and all(report(folder, path.name, set_).is_file() for set_ in sets):
            found.setdefault(int(named[1]), []).append(int(named[2]))
    return {size: sorted(found[size]) for size in sorted(found)}


def draw(folder: Path, sets: dict[str, str], rl: dict[str, Any]) -> None:
    """Of all finished cells write scaling.json, scaling.png and, with a curve of RL, rl.png; print the table."""
    from vlapost.evaluation import log
    from vlapost.evaluation.report import over_seeds

    cells = finished(folder, sets)

    def scores(size: int, set_: str) -> dict[str, Any]:
        logs = {n: report(folder, label(size, n), set_).with_name("episodes.jsonl") for n in cells[size]}
        return over_seeds({seed: list(log.read(path).values()) for seed, path in logs.items()})

    success = {set_: {size: scores(size, set_) for size in cells} for set_ in sets}
    learning = {size: {seed: looks(folder / label(size, seed)) for seed in cells[size]} for size in cells}
    write_json(folder / "scaling.json", {"success": success, "learning": learning})
    written = [folder / "scaling.png", folder / "scaling.json"]
    figure, axes = charts.panels(list(sets.values()))
    for axis, by_size in zip(axes, success.values()):
        charts.over_sizes(axis, by_size)
    charts.save_figure(figure, written[0])
    if rl:
        figure, axes = charts.panels(list(sets.values()))
        sizes = list(cells)
        shown = dict.fromkeys((sizes[0], sizes[len(sizes) // 2], sizes[-1]))
        for axis, set_ in zip(axes, sets):
            levels = {f"SFT {size}": success[set_][size]["success_end"] for size in shown}
            points = {int(steps): found["success_end"] for steps, found in rl[set_].items()}
            charts.learning_curve(axis, "RL", points, levels)
        charts.save_figure(figure, folder / "rl.png")
        written.append(folder / "rl.png")
    cli.console.print(tables(sets, success, learning))
    cli.console.print(f"Wrote {', '.join(map(str, written))}.", soft_wrap=True)


def looks(cell: Path) -> dict[str, Any]:
    """How a cell was trained: iterations planned and done, and the loss on held-out demonstrations at each look."""
    trainer = OmegaConf.load(cell / "config.yaml").trainer
    losses = series(cell / "sft", [LOSS])[LOSS]
    done = len(losses) * trainer.eval_every if losses else trainer.iterations
    return {"planned": trainer.iterations, "iterations": done, "held_out_loss": losses}


def tables(sets: dict[str, str], success: dict[str, Any], learning: dict[int, Any]) -> Group:
    """How each size was trained, and per object set its scores.

    Iterations are means of the seeds; the losses, least and last, too. The loss of each size is that on the
    demonstrations behind its own.
    """
    training = Table("demonstrations", "seeds", "iterations", "least loss", "last loss", title="SFT", box=SIMPLE)
    for size, cells in learning.items():
        losses = [
            (min(one["held_out_loss"]), one["held_out_loss"][-1]) for one in cells.values() if one["held_out_loss"]
        ]
        least_and_last = [f"{sum(column) / len(column):.3f}" for column in zip(*losses)] or ["", ""]
        iterations = sum(one["iterations"] for one in cells.values()) / len(cells)
        training.add_row(str(size), str(len(cells)), f"{iterations:.0f}", *least_and_last)
    views = [training]
    for set_, title in sets.items():
        view = Table("demonstrations", "grasp", "continuous grasp", "success at the end, 95 %", title=title, box=SIMPLE)
        for size in learning:
            s = success[set_][size]
            grasps = [f"{s[measure]['mean']:.1%}" for measure in ("grasp", "consecutive_grasp")]
            view.add_row(str(size), *grasps, percent(s["success_end"]))
        views.append(view)
    return Group(*views)


if __name__ == "__main__":
    cli.main(run)
