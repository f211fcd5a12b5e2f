"""The report over all setups: tables, charts and the numbers behind them (paper Tables 1-3, Fig. 7 and 8)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table
from scipy.stats import binomtest, bootstrap, false_discovery_control

from vlapost.disk import write_text
from vlapost.evaluation import charts
from vlapost.evaluation.episodes import EpisodeResult
from vlapost.evaluation.summary import METRICS, rate, write_json

IND = "ind"
OPTIONAL = (
    "radar.png",
    "strips.png",
    "comparison.json",
    "comparison.png",
)  # in a report's folder, only where there is something to show
Results = Mapping[str, Sequence[Sequence[EpisodeResult]]]  # setup -> sampling seed -> episodes
Groups = Mapping[str, Sequence[str]]  # group -> setups


def scores(results: Results, groups: Groups) -> dict[str, Any]:
    """Rates of every setup and group with 95 % intervals.

    Episodes that several seeds have run count once, with the mean of their outcomes. An interval that cannot be
    bootstrapped, because all outcomes are equal, is left out.

    Returns:
        "setups": {setup: {metric: {"mean", "low", "high", "n", "boot_low", "boot_high", "seed_std"}, "relative_drop":
        {"mean", "low", "high"}}}, "groups": {group: {metric: {"mean", "low", "high"}}}. "low" and "high" of a rate are
        Wilson's with one seed and bootstrapped with more, as are those of a group (the mean of its setups' means) and
        of the relative drop P = (OOD - IND) / IND. "seed_std" is the study's: over seeds, dividing by their number.
    """
    outcomes = {name: {m: per_episode(seeds, m) for m in METRICS} for name, seeds in results.items()}
    setups: dict[str, Any] = {}
    for name, measures in outcomes.items():
        setups[name] = {m: _rate(values) for m, values in measures.items()}
        if len(results[name]) > 1:
            for m in METRICS:
                means = [np.mean([getattr(e, m) for e in episodes]) for episodes in results[name]]
                setups[name][m]["seed_std"] = float(np.std(means))
        if IND in outcomes and name != IND and outcomes[IND]["success_end"].any():
            setups[name]["relative_drop"] = _relative_drop(measures["success_end"], outcomes[IND]["success_end"])
    grouped = {
        group: {m: _mean_of_means([outcomes[name][m] for name in members]) for m in METRICS}
        for group, names in groups.items()
        if (members := [name for name in names if name in outcomes])
    }
    return {"setups": setups, "groups": grouped}


def per_episode(seeds: Sequence[Sequence[EpisodeResult]], metric: str) -> np.ndarray:
    """Outcome of each different episode, averaged over the seeds that have run it."""
    outcomes: dict[int, list[bool]] = {}
    for episodes in seeds:
        for episode in episodes:
            outcomes.setdefault(episode.episode_id, []).append(getattr(episode, metric))
    return np.array([np.mean(values) for values in outcomes.values()])


def over_seeds(trainings: Mapping[int, Sequence[EpisodeResult]]) -> dict[str, Any]:
    """Rates of several trainings on the same episodes, by the seed of each: {metric: {"mean", "low", "high", "seeds"}}.

    The interval is that of the episodes: Wilson's with one training, bootstrapped with more. How far trainings differ
    is seen from "seeds", the mean of each.
    """
    return {
        m: {
            **_rate(per_episode(list(trainings.values()), m)),
            "seeds": {n: float(np.mean([getattr(e, m) for e in episodes])) for n, episodes in trainings.items()},
        }
        for m in METRICS
    }


def compare(ours: Results, theirs: Results) -> dict[str, dict[str, float]]:
    """Two policies on the same episodes: difference of success at the end, and whether it can be chance.

    Returns:
        {setup: {"ours", "theirs", "difference", "low", "high" (95 %, bootstrapped over episodes), "better", "worse",
        "p", "q", "n"}} of the setups, sampling seeds and episodes that both have; p is McNemar's exact test (with
        several seeds the sign test over episodes), q the same adjusted for the number of setups (Benjamini and
        Hochberg 1995): of those below 0.05, one in twenty is expected to be chance.
    """
    found: dict[str, dict[str, float]] = {}
    for name in [name for name in ours if name in theirs]:
        pairs = _pairs(ours[name], theirs[name])
        if not len(pairs):
            continue
        difference = pairs[:, 0] - pairs[:, 1]
        better, worse = int((difference > 0).sum()), int((difference < 0).sum())
        p = binomtest(better, better + worse).pvalue if better + worse else 1.0
        found[name] = {
            "ours": float(pairs[:, 0].mean()), "theirs": float(pairs[:, 1].mean()),
            "difference": float(difference.mean()), **_interval(np.mean, difference),
            "better": better, "worse": worse, "p": float(p), "n": len(difference),
        }  # fmt: skip
    for one, q in zip(found.values(), false_discovery_control([one["p"] for one in found.values()])):
        one["q"] = float(q)
    return found


def _pairs(ours: Sequence[Sequence[EpisodeResult]], theirs: Sequence[Sequence[EpisodeResult]]) -> np.ndarray:
    """Success at the end `[n, 2]` of each episode both have, averaged over the seeds in which both have it.

    Means over other numbers of seeds may not be paired: a mean of three is seldom 0 or 1, so that an outcome of one
    seed lies nearly always on the same side of it.
    """
    both: dict[int, list[tuple[bool, bool]]] = {}
    for mine, other in zip(ours, theirs):
        known = {e.episode_id: e.success_end for e in other}
        for e in mine:
            if e.episode_id in known:
                both.setdefault(e.episode_id, []).append((e.success_end, known[e.episode_id]))
    return np.array([np.mean(outcomes, axis=0) for outcomes in both.values()])


def write_report(
    folder: Path, results: Results, titles: Mapping[str, str], groups: Groups, about: dict[str, Any]
) -> Table:
    """Write scores.json, tables.md and charts to `folder`; returns the table to print."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in OPTIONAL:  # of an earlier report
        (folder / name).unlink(missing_ok=True)
    found = scores(results, groups)
    write_json(folder / "scores.json", {**found, **about})
    shown = {group: names for group, names in groups.items() if any(name in results for name in names)}
    tables = {group: _rows(found, titles, [IND, *names], group) for group, names in (shown or {"training": []}).items()}
    told = [i for i in range(len(HEAD)) if any(row[i] for rows in tables.values() for row in rows)]  # no empty column
    head = [HEAD[i] for i in told]
    tables = {group: [[row[i] for i in told] for row in rows] for group, rows in tables.items()}
    write_text(folder / "tables.md", _markdown(head, tables, about))
    charts.bars(folder / "success.png", found["setups"], titles)
    if len([name for name in results if name != IND]) > 2:
        charts.radar(folder / "radar.png", found["setups"], titles, IND)
    charts.trajectories(folder / "trajectories.png", results)
    view = Table(title=f"{about['title']}, percent", box=SIMPLE)
    for column in head:
        view.add_column(column, no_wrap=column == "setup")
    for number, rows in enumerate(tables.values()):
        for row in rows[number > 0 and IND in results :]:  # IND is a row of each table, but of one on the screen
            view.add_row(*row)
    return view


HEAD = ("setup", "grasp", "continuous", "success at end", "ever", "drop P", "paper SFT", "paper RL", "RLinf PPO, ever")


def published(metric: str, source: str = "paper") -> dict[str, tuple[float | None, float]]:
    """Setup or group -> published (SFT, RL) of that metric."""
    text = (files(__package__) / "published.csv").read_text()
    rows = [r for r in csv.DictReader(text.splitlines()) if r["metric"] == metric and r["source"] == source]
    return {r["setup"]: (float(r["sft"]) if r["sft"] else None, float(r["rl"])) for r in rows}


def _rows(found: Mapping[str, Any], titles: Mapping[str, str], names: Sequence[str], group: str) -> list[list[str]]:
    """A table of the study: IND, the setups of a group, and their mean."""
    theirs = {metric: published(metric) for metric in ("grasp", "consecutive_grasp", "success_end")}
    again = published("success_once", "RLinf")
    rows = []
    for name in names:
        if name in found["setups"]:
            s = found["setups"][name]
            drop = _with_range(s["relative_drop"]) if "relative_drop" in s else ""
            pairs = [" / ".join(f"{100 * (t[name][i] or 0):.1f}" for t in theirs.values() if name in t) for i in (0, 1)]
            rows.append(
                [titles[name], *_cells(s), drop, *pairs, f"{100 * again[name][1]:.1f}" if name in again else ""]
            )
    if group in found["groups"]:
        mean = f"{100 * again[group][1]:.1f}" if group in again else ""
        paper = [f"{100 * (share or 0):.1f}" for share in theirs["success_end"].get(group, ())] or ["", ""]
        rows.append([f"mean {group}", *_cells(found["groups"][group]), "", *paper, mean])
    return rows


def _cells(s: Mapping[str, Any]) -> list[str]:
    short = [f"{100 * s[m]['mean']:.1f}" for m in ("grasp", "consecutive_grasp", "success_once")]
    return [*short[:2], _with_range(s["success_end"]), short[2]]


def _with_range(value: Mapping[str, float]) -> str:
    mean = f"{100 * value['mean']:.1f}"
    return mean + (f" [{100 * value['low']:.0f}, {100 * value['high']:.0f}]" if "low" in value else "")


def _rate(values: np.ndarray) -> dict[str, float]:
    bootstrapped = _interval(np.mean, values)
    named = {f"boot_{name}": value for name, value in bootstrapped.items()}
    if np.isin(values, (0.0, 1.0)).all():
        return rate(values > 0) | named
    return {"mean": float(values.mean()), "n": len(values), **bootstrapped, **named}


def _markdown(head: list[str], tables: Mapping[str, list[list[str]]], about: Mapping[str, Any]) -> str:
    how = about.get("decoding", about["actor"])
    lines = [f"# {about['title']}", ""]
    env, spent, seeds = about["config"]["env"], about["spent"], about["seeds"]
    size = "x".join(map(str, env["image_size"]))
    episodes = f"{about['episodes']} episodes per setup"
    if seeds > 1:  # under protocol paper each has episodes of its own
        episodes += f" {'for' if env['protocol'] == 'paper' else 'with'} each of {seeds} seeds"
    parts = [episodes, f"assets {env['assets']}, protocol {env['protocol']}, {size}", how]
    if spent:
        parts.append(f"{spent['episodes']} episodes in {spent['seconds'] / 60:.0f} minutes")
    lines += ["; ".join(parts) + ". Percent.", ""]
    for group, rows in tables.items():
        if rows:
            lines += [f"## {group.capitalize()}", ""]
            lines += ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]
    lines += [
        "Grasp: held at any step. Continuous: five steps in a row. Success at end: placed at the last step, the",
        "study's measure; ever: at any step, the measure of RLinf. In brackets 95 %: Wilson's; bootstrapped for means,",
        "for the relative drop P = (OOD - IND) / IND, and where each episode was run with several seeds. The paper's:",
        "grasp / continuous / success at end of a 7B policy in 3 x 64 episodes; of means success at end.",
    ]
    return "\n".join(lines) + "\n"


def _interval(statistic: Any, *samples: np.ndarray) -> dict[str, float]:
    """95 % percentile bootstrap over episodes.

    Held-out lists of setups that draw from equally many objects and places have them in the same order, so that
    outcomes at a position belong together: positions are resampled, not each sample on its own, unless lengths differ.
    """
    if all(np.ptp(sample) == 0 for sample in samples):
        return {}
    paired = len({len(sample) for sample in samples}) == 1
    found = bootstrap(
        samples, statistic, method="percentile", n_resamples=2000, random_state=0, vectorized=True, paired=paired
    )
    return {"low": float(found.confidence_interval.low), "high": float(found.confidence_interval.high)}


def _relative_drop(ood: np.ndarray, ind: np.ndarray) -> dict[str, float]:
    floor = min(ind.mean(), 1 / len(ind))  # a resample without any success has no ratio

    def drop(ood: np.ndarray, ind: np.ndarray, axis: int = -1) -> np.ndarray:
        reference = np.maximum(ind.mean(axis=axis), floor)
        return (ood.mean(axis=axis) - reference) / reference

    return {"mean": float(drop(ood, ind)), **_interval(drop, ood, ind)}


def _mean_of_means(samples: list[np.ndarray]) -> dict[str, float]:
    def mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    return {"mean": float(mean(*samples)), **_interval(mean, *samples)}
