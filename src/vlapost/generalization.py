"""A policy on all setups of the benchmark: `python -m vlapost.generalization [key=value ...]`.

    make generalization CKPT=lightning_logs/ppo/ppo/adapter
    make generalization ARGS="evaluation.actor=planner"             # what a planner that knows the true state reaches
    make generalization CKPT=... AGAINST=lightning_logs/sft/generalization/...   # tests the difference, same episodes

Episodes and report go to lightning_logs/<run>/generalization/<who, how, on what>/: <setup>-seed<n>/episodes.jsonl (a
line per episode), report/tables.md, scores.json and charts. The same command continues where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vlapost import cli, config, evaluate
from vlapost.config import Config, UserError

if TYPE_CHECKING:
    from vlapost.evaluation.episodes import EpisodeResult

AGAINST = "against="


def run(words: list[str]) -> None:
    """Evaluate every setup, write the report and print it."""
    others = [word.removeprefix(AGAINST) for word in words if word.startswith(AGAINST) and word != AGAINST]
    c = config.load(*cli.parse([word for word in words if not word.startswith(AGAINST)], "base"))
    setups = chosen(c)
    theirs = load(Path(others[-1]), setups) if others else {}
    from vlapost.evaluation.parallel import run_parallel

    out = folder(c)
    settings = {(name, seed): of_setup(c, name, seed) for name in setups for seed in range(c.generalization.seeds)}
    jobs = [evaluate.job_of(s, out / f"{name}-seed{seed}", name) for (name, seed), s in settings.items()]
    begin = time.monotonic()
    found = run_parallel(evaluate.build_actor, evaluate.build_env, jobs)
    results: dict[str, list[EpisodeResult]] = {name: [] for name in setups}
    for (name, _), episodes in zip(settings, found):
        results[name] += episodes
    cli.console.print(report(c, out / "report", results, time.monotonic() - begin))
    if theirs:
        cli.console.print(comparison(out / "report", results, theirs, others[-1]))
    cli.console.print(f"Report, episodes and videos: {out}", soft_wrap=True)


def chosen(c: Config) -> list[str]:
    """The setups to run.

    Raises:
        UserError: an unknown one.
    """
    from vlapost.envs.setups import EVALUATED

    names = c.generalization.setups
    unknown = [name for name in names if name not in (*EVALUATED, "all")]
    if unknown or not names:
        what = f"names '{unknown[0]}'" if unknown else "is empty"
        raise UserError(f"generalization.setups {what}; it may hold all, or some of: {', '.join(EVALUATED)}.")
    return [name for name in EVALUATED if name in names or "all" in names]


def of_setup(c: Config, name: str, seed: int) -> Config:
    """The settings with which one setup is run."""
    from vlapost.envs.setups import EVALUATED

    setup = EVALUATED[name]
    return replace(c, seed=c.seed + seed, env=replace(c.env, id=setup.env_id, obj_set=setup.obj_set))


def folder(c: Config) -> Path:
    """Where the results belong: equal for two commands exactly if their episodes may be counted together."""
    any_setup = replace(c, env=replace(c.env, id="", obj_set=""))
    name = f"{c.env.protocol}-{c.env.assets}-{evaluate.short(c)}-seed{c.seed}-{evaluate.identity(any_setup)}"
    return evaluate.run_folder(c) / "generalization" / name


def report(c: Config, out: Path, results: dict[str, list[EpisodeResult]], seconds: float) -> Table:
    """Write the report; returns the table to print."""
    from vlapost.envs.setups import EVALUATED, GROUPS
    from vlapost.evaluation.report import write_report

    titles = {name: setup.title for name, setup in EVALUATED.items()}
    groups = {group: [name for name, setup in EVALUATED.items() if setup.group == group] for group in GROUPS}
    about: dict[str, Any] = {
        "title": f"Generalization of {c.policy.adapter or c.policy.checkpoint}"
        if c.evaluation.actor == "policy"
        else f"Generalization of the {c.evaluation.actor} actor",
        "episodes": c.evaluation.episodes * c.generalization.seeds,
        "seconds": round(seconds),
        **evaluate.identify(c),
    }
    return write_report(out, results, titles, groups, about)


def load(place: Path, setups: Sequence[str]) -> dict[str, list[EpisodeResult]]:
    """Finished episodes of another run of this command, by setup.

    Raises:
        UserError: there are none.
    """
    from vlapost.evaluation import log

    found = {name: [e for p in sorted(place.glob(f"{name}-seed*/episodes.jsonl")) for e in log.read(p).values()]
             for name in setups}  # fmt: skip
    if not any(found.values()):
        raise UserError(f"{place} holds no finished episodes; give the folder that make generalization printed.")
    return found


def comparison(
    out: Path, ours: dict[str, list[EpisodeResult]], theirs: dict[str, list[EpisodeResult]], other: str
) -> Table:
    """Write comparison.json; returns the table to print."""
    from vlapost.evaluation.report import compare
    from vlapost.evaluation.summary import write_json

    found = compare(ours, theirs)
    write_json(out / "comparison.json", {"against": other, "setups": found})
    view = Table(
        "setup", "difference", "95 %", "better", "worse", "p (McNemar)", title=f"Success at end against {other}"
    )
    for name, d in found.items():
        interval = f"{d['low']:+.3f}, {d['high']:+.3f}"
        view.add_row(name, f"{d['difference']:+.3f}", interval, f"{d['better']}", f"{d['worse']}", f"{d['p']:.3g}")
    return view


if __name__ == "__main__":
    cli.main(run)
