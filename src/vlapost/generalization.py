"""A policy on all setups of the benchmark, or on the five tasks: `python -m vlapost.generalization [key=value ...]`.

    make generalization CKPT=lightning_logs/ppo/ppo/adapter
    make generalization ARGS="evaluation.actor=planner"             # what a planner that knows the true state reaches
    make generalization ARGS="tasks evaluation.actor=planner"       # SimplerEnv's tasks and StackCube instead
    make generalization CKPT=... AGAINST=lightning_logs/sft/generalization/...   # tests the difference, same episodes

Episodes and report go to lightning_logs/<run>/generalization/<who, how, on what>/: <setup>-seed<n>/episodes.jsonl (a
line per episode), report/tables.md, scores.json, charts and strips of pictures. The same command continues where it was
stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vlapost import cli, config, evaluate
from vlapost.config import Config, UserError
from vlapost.train import alone

if TYPE_CHECKING:
    from vlapost.evaluation.parallel import Job
    from vlapost.evaluation.report import Results

AGAINST = "against="


def run(words: list[str]) -> None:
    """Evaluate every setup, write the report and print it."""
    others = [word.removeprefix(AGAINST) for word in words if word.startswith(AGAINST) and word != AGAINST]
    c = config.load(*cli.parse([word for word in words if not word.startswith(AGAINST)], "base"))
    setups, seeds = chosen(c), range(c.generalization.seeds)
    theirs = load(c, Path(others[-1]), setups) if others else {}
    from vlapost.evaluation.parallel import run_parallel

    out = folder(c)
    with alone(out, True):
        jobs = [job(c, out, name, seed) for name in setups for seed in seeds]
        begin = time.monotonic()
        found = run_parallel(evaluate.build_actor, evaluate.build_env, jobs)
        results = {name: found[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(setups)}
        cli.console.print(report(c, out / "report", results, time.monotonic() - begin))
        if theirs:
            cli.console.print(comparison(out / "report", results, theirs, others[-1]))
    cli.console.print(f"Report, episodes and videos: {out}", soft_wrap=True)


def chosen(c: Config) -> list[str]:
    """The setups to run.

    Raises:
        UserError: an unknown one; several seeds for an actor that draws nothing.
    """
    from vlapost.envs.setups import evaluated

    e, known = c.evaluation, evaluated(c.env.assets)
    if c.generalization.seeds > 1 and c.env.protocol == "v2" and (e.actor == "planner" or e.temperature == 0):
        who = "the planner draws nothing" if e.actor == "planner" else "temperature 0 draws nothing"
        raise UserError(f"generalization.seeds is {c.generalization.seeds}, but {who}; set it to 1.")
    names = c.generalization.setups
    unknown = [name for name in names if name not in (*known, "all")]
    if unknown or not names:
        what = f"names '{unknown[0]}'" if unknown else "is empty"
        raise UserError(f"generalization.setups {what}; it may hold all, or some of: {', '.join(known)}.")
    return [name for name in known if name in names or "all" in names]


def job(c: Config, out: Path, name: str, seed: int) -> Job:
    """One setup with one seed: the same episodes for each seed, but in protocol paper the next 64."""
    from vlapost.envs.episodes import PAPER_COUNT
    from vlapost.envs.setups import evaluated

    setup = evaluated(c.env.assets)[name]
    c = replace(c, seed=c.seed + seed, env=replace(c.env, id=setup.env_id, obj_set=setup.obj_set))
    place = out / f"{name}-seed{seed}"
    if c.env.protocol == "paper":
        return evaluate.job_of(c, place, name, skip=seed * PAPER_COUNT, most=PAPER_COUNT)
    return evaluate.job_of(c, place, name)


def folder(c: Config) -> Path:
    """Where the results belong: equal for two commands exactly if their episodes may be counted together."""
    any_setup = replace(c, env=replace(c.env, id="", obj_set=""))
    name = f"{c.env.protocol}-{c.env.assets}-{evaluate.short(c)}-seed{c.seed}-{evaluate.identity(any_setup)}"
    return evaluate.run_folder(c) / "generalization" / name


def report(c: Config, out: Path, results: Results, seconds: float) -> Table:
    """Write the report; returns the table to print."""
    from vlapost.envs.setups import evaluated
    from vlapost.evaluation.charts import strips
    from vlapost.evaluation.report import write_report

    known = evaluated(c.env.assets)
    titles = {name: setup.title for name, setup in known.items()}
    groups: dict[str, list[str]] = {}
    for name, setup in known.items():
        if setup.group != "training":
            groups.setdefault(setup.group, []).append(name)
    scores = out / "scores.json"
    before = json.loads(scores.read_text())["seconds"] if scores.is_file() else 0
    about: dict[str, Any] = {
        "title": f"Generalization of {c.policy.adapter or c.policy.checkpoint}"
        if c.evaluation.actor == "policy"
        else f"Generalization of the {c.evaluation.actor} actor",
        "episodes": c.evaluation.episodes * c.generalization.seeds,
        "seconds": round(before + seconds),
        **evaluate.identify(c),
    }
    table = write_report(out, results, titles, groups, about)
    filmed = {
        titles[name]: (out.parent / f"{name}-seed0" / e.video).with_suffix(".png")
        for name, (first, *_) in results.items()
        for e in first
        if e.video
    }
    found = {title: path for title, path in filmed.items() if path.is_file()}  # of each setup the last
    if found:
        strips(out / "strips.png", found)
    return table


def load(c: Config, place: Path, setups: Sequence[str]) -> Results:
    """Finished episodes of another result of this command, by setup and seed.

    Raises:
        UserError: there are none, or they are of other scenes.
    """
    from vlapost.evaluation import log

    scores = place / "report" / "scores.json"
    if not scores.is_file():
        raise UserError(f"{place} holds no report; give the folder that make generalization printed at its end.")
    other = json.loads(scores.read_text())["config"]["env"]
    for key in ("protocol", "assets", "image_size", "shader", "sim_freq"):
        if other[key] != getattr(c.env, key):
            raise UserError(f"{place} was made with env.{key}={other[key]}; give the same here to compare.")
    paths = {name: sorted(place.glob(f"{name}-seed*/episodes.jsonl")) for name in setups}
    return {name: [list(log.read(path).values()) for path in found] for name, found in paths.items() if found}


def comparison(out: Path, ours: Results, theirs: Results, other: str) -> Table:
    """Write comparison.json; returns the table to print."""
    from vlapost.evaluation.report import compare
    from vlapost.evaluation.summary import write_json

    found = compare(ours, theirs)
    write_json(out / "comparison.json", {"against": other, "setups": found})
    view = Table(
        "setup", "difference", "95 %", "better", "worse", "p (McNemar)", title=f"Success at end against {other}"
    )
    for name, d in found.items():
        interval = f"{d['low']:+.3f}, {d['high']:+.3f}" if "low" in d else ""
        view.add_row(name, f"{d['difference']:+.3f}", interval, f"{d['better']}", f"{d['worse']}", f"{d['p']:.3g}")
    return view


if __name__ == "__main__":
    cli.main(run)
