"""A policy on all setups of the benchmark, or on the five tasks: `python -m vlapost.generalization [key=value ...]`.

    make generalization CKPT=lightning_logs/ppo/ppo/adapter
    make generalization ARGS="evaluation.actor=planner"             # what a planner that knows the true state reaches
    make generalization ARGS="tasks evaluation.actor=planner"       # SimplerEnv's tasks and StackCube instead
    make generalization CKPT=... AGAINST=lightning_logs/sft/generalization/...   # tests the difference, same episodes

Episodes and report go to lightning_logs/<run>/generalization/<who, how, on what>/: <setup>-seed<n>/episodes.jsonl (a
line per episode), report/tables.md, scores.json, charts and strips of pictures (report-some/ where only some setups are
asked for). The same command continues where it was stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vlapost import against, cli, config, evaluate, origin
from vlapost.config import Config, UserError
from vlapost.disk import alone

if TYPE_CHECKING:
    from vlapost.evaluation.parallel import Job
    from vlapost.evaluation.report import Results

SPENT = "spent.json"
PACKS = ("procedural", "paper", "tasks")


def run(words: list[str]) -> None:
    """Evaluate every setup, write the report and print it."""
    words, other = against.split(words)
    c = config.load(*cli.parse(words, "base"))
    setups, seeds = chosen(c), range(c.generalization.seeds)
    theirs = load(c, Path(other), setups) if other else {}
    origin.say_what_differs(c)
    from vlapost.envs.setups import evaluated
    from vlapost.evaluation.parallel import run_parallel

    out = folder(c)
    with alone(out):
        jobs = [job(c, out, name, seed) for name in setups for seed in seeds]
        with spending(out, jobs):
            found = run_parallel(evaluate.build_actor, evaluate.build_env, jobs)
        results = {name: found[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(setups)}
        place = out / ("report" if setups == list(evaluated(c.env.assets)) else "report-some")
        cli.console.print(report(c, place, results, json.loads((out / SPENT).read_text())))
        if other:
            cli.console.print(comparison(c, place, results, theirs, other))
    cli.console.print(f"Report, episodes and videos: {out}", soft_wrap=True)


def chosen(c: Config) -> list[str]:
    """The setups to run.

    Raises:
        UserError: an unknown one; a pack without setups; more than protocol paper has; several seeds for an actor that
            draws nothing.
    """
    from vlapost.envs.episodes import PAPER_COUNT, PAPER_SEEDS
    from vlapost.envs.setups import evaluated

    e, g = c.evaluation, c.generalization
    if c.env.assets not in PACKS:
        raise UserError(
            f"env.assets is '{c.env.assets}', which no setup is reported on; set one of: {', '.join(PACKS)}."
        )
    known = evaluated(c.env.assets)
    if c.env.protocol == "paper" and (e.episodes > PAPER_COUNT or g.seeds > PAPER_SEEDS):
        raise UserError(
            f"Protocol paper has {PAPER_SEEDS} x {PAPER_COUNT} episodes; "
            f"set evaluation.episodes={PAPER_COUNT} generalization.seeds={PAPER_SEEDS}, or less."
        )
    surely = {"planner": "the planner draws nothing", "policy": "temperature 0 draws nothing" * (e.temperature == 0)}
    if g.seeds > 1 and c.env.protocol == "v2" and (who := surely.get(e.actor)):
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


@contextmanager
def spending(out: Path, jobs: Sequence[Job]) -> Iterator[None]:
    """Add the time that the block takes, and the episodes it finishes, to those in `out`/spent.json, come what may."""
    from vlapost.evaluation import log
    from vlapost.evaluation.summary import write_json

    def finished() -> int:
        return sum(len(log.read(job.out / "episodes.jsonl")) for job in jobs)

    path = out / SPENT
    before = json.loads(path.read_text()) if path.is_file() else {"seconds": 0.0, "episodes": 0}
    begin, had = time.monotonic(), finished()
    try:
        yield
    finally:
        spent = time.monotonic() - begin, finished() - had
        write_json(path, {name: value + more for (name, value), more in zip(before.items(), spent)})


def report(c: Config, out: Path, results: Results, spent: dict[str, float]) -> Table:
    """Write the report; returns the table to print. `spent`: seconds, and the episodes they were needed for."""
    from vlapost.envs.setups import evaluated
    from vlapost.evaluation.charts import strips
    from vlapost.evaluation.report import write_report

    known = evaluated(c.env.assets)
    titles = {name: setup.title for name, setup in known.items()}
    groups: dict[str, list[str]] = {}
    for name, setup in known.items():
        if setup.group != "training":
            groups.setdefault(setup.group, []).append(name)
    count = sum(len(episodes) for seeds in results.values() for episodes in seeds)
    known_time = spent["episodes"] >= count  # and not of an earlier version, which did not count
    about: dict[str, Any] = {
        "title": f"Generalization of {c.policy.adapter or c.policy.checkpoint}"
        if c.evaluation.actor == "policy"
        else f"Generalization of the {c.evaluation.actor} actor",
        "episodes": c.evaluation.episodes,
        "seeds": c.generalization.seeds,
        "spent": spent if known_time else None,
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


def in_order(found: Sequence[Path]) -> list[Path]:
    """The files of the seeds of a setup, whose folders end in their numbers; not those of copies with other names."""
    numbers = {path: path.parent.name.rpartition("-seed")[2] for path in found}
    return sorted((path for path in found if numbers[path].isdecimal()), key=lambda path: int(numbers[path]))


def load(c: Config, place: Path, setups: Sequence[str]) -> Results:
    """Finished episodes of another result of this command, by setup and seed.

    Raises:
        UserError: there are none, or they are of other scenes.
    """
    from vlapost.evaluation import log

    reports = sorted(place.glob("report*/scores.json"))
    if not reports:
        raise UserError(f"{place} holds no report; give the folder that make generalization printed at its end.")
    against.same_scenes(c, reports[0])
    paths = {name: in_order([*place.glob(f"{name}-seed*/episodes.jsonl")]) for name in setups}
    known = {name: [list(log.read(path).values()) for path in found] for name, found in paths.items() if found}
    if not known:
        raise UserError(f"{place} holds no episodes of {', '.join(setups)}; name setups that both have.")
    return known


def comparison(c: Config, out: Path, ours: Results, theirs: Results, other: str) -> Table:
    """Write comparison.json and, of more than two setups, .png; returns the table to print."""
    from vlapost.envs.setups import evaluated
    from vlapost.evaluation import charts
    from vlapost.evaluation.report import compare
    from vlapost.evaluation.summary import write_json

    found = compare(ours, theirs)
    write_json(out / "comparison.json", {"against": other, "setups": found})
    if len(found) > 2:  # corners of a web
        titles = {name: setup.title for name, setup in evaluated(c.env.assets).items()}
        charts.against(out / "comparison.png", found, titles, ("this one", Path(other).name))
    return against.table(found, other)


if __name__ == "__main__":
    cli.main(run)
