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
from scipy.stats import binomtest, bootstrap

from vlapost.disk import write_text
from vlapost.evaluation import charts
from vlapost.evaluation.episodes import EpisodeResult
from vlapost.evaluation.summary import METRICS, rate, write_json

IND = "ind"
Results = Mapping[str, Sequence[EpisodeResult]]  # setup -> episodes
Groups = Mapping[str, Sequence[str]]  # group -> setups


def scores(results: Results, groups: Groups) -> dict[str, Any]:
    """Rates of every setup and group with 95 % intervals.

    Returns:
        "setups": {setup: {metric: {"mean", "low", "high" (Wilson), "n", "boot_low", "boot_high"},
        "relative_drop": {"mean", "low", "high"}}}, "groups": {group: {metric: {"mean", "low", "high"}}}. A group's mean
        is that of its setups' means; its interval and that of the relative drop P = (OOD - IND) / IND are bootstrapped.
    """
    outcomes = {name: {m: _outcomes(episodes, m) for m in METRICS} for name, episodes in results.items()}
    setups: dict[str, Any] = {}
    for name, measures in outcomes.items():
        setups[name] = {m: rate(values > 0) | _prefixed(_interval(np.mean, values)) for m, values in measures.items()}
        if IND in outcomes and name != IND and outcomes[IND]["success_end"].any():
            setups[name]["relative_drop"] = _relative_drop(measures["success_end"], outcomes[IND]["success_end"])
    grouped = {
        group: {m: _mean_of_means([outcomes[name][m] for name in members]) for m in METRICS}
        for group, names in groups.items()
        if (members := [name for name in names if name in outcomes])
    }
    return {"setups": setups, "groups": grouped}


def compare(ours: Results, theirs: Results) -> dict[str, dict[str, float]]:
    """Two policies on the same episodes: difference of success at the end, and the p value of McNemar's exact test.

    Returns:
        {setup: {"difference", "low", "high" (95 %, bootstrapped over pairs), "better", "worse", "p", "n"}} of the
        setups and episodes both have.
    """
    found = {}
    for name in [name for name in ours if name in theirs]:
        other = {e.episode_id: e.success_end for e in theirs[name]}
        pairs = np.array([(e.success_end, other[e.episode_id]) for e in ours[name] if e.episode_id in other], dtype=int)
        if not len(pairs):
            continue
        difference = pairs[:, 0] - pairs[:, 1]
        better, worse = int((difference > 0).sum()), int((difference < 0).sum())
        p = binomtest(better, better + worse).pvalue if better + worse else 1.0
        found[name] = {
            "difference": float(difference.mean()), **_interval(np.mean, difference),
            "better": better, "worse": worse, "p": float(p), "n": len(pairs),
        }  # fmt: skip
    return found


def write_report(
    folder: Path, results: Results, titles: Mapping[str, str], groups: Groups, about: dict[str, Any]
) -> Table:
    """Write scores.json, tables.md and charts to `folder`; returns the table to print."""
    folder.mkdir(parents=True, exist_ok=True)
    found = scores(results, groups)
    write_json(folder / "scores.json", {**found, **about})
    rows = _rows(found, titles)
    write_text(folder / "tables.md", _markdown(rows, about))
    charts.bars(folder / "success.png", found["setups"], titles)
    if len([name for name in results if name != IND]) > 2:
        charts.radar(folder / "radar.png", found["setups"], titles, IND)
    charts.trajectories(folder / "trajectories.png", results)
    view = Table(title=f"{about['title']}, percent", box=SIMPLE)
    for column in HEAD:
        view.add_column(column, no_wrap=column == "setup")
    for row in rows:
        view.add_row(*row)
    return view


HEAD = ("setup", "grasp", "continuous", "success at end", "ever", "relative drop P", "paper SFT, RL")


def published(metric: str, source: str = "paper") -> dict[str, tuple[float | None, float]]:
    """Setup or group -> published (SFT, RL) of that metric."""
    text = (files(__package__) / "published.csv").read_text()
    rows = [r for r in csv.DictReader(text.splitlines()) if r["metric"] == metric and r["source"] == source]
    return {r["setup"]: (float(r["sft"]) if r["sft"] else None, float(r["rl"])) for r in rows}


def _rows(found: Mapping[str, Any], titles: Mapping[str, str]) -> list[list[str]]:
    theirs = published("success_end")
    rows = []
    for name, s in found["setups"].items():
        sft, rl = theirs[name]
        drop = _with_range(s["relative_drop"]) if "relative_drop" in s else ""
        rows.append([titles[name], *_cells(s), drop, f"{100 * (sft or 0):.1f}, {100 * rl:.1f}"])
    return rows + [[f"mean {group}", *_cells(s), "", ""] for group, s in found["groups"].items()]


def _cells(s: Mapping[str, Any]) -> list[str]:
    short = [f"{100 * s[m]['mean']:.1f}" for m in ("grasp", "consecutive_grasp", "success_once")]
    return [*short[:2], _with_range(s["success_end"]), short[2]]


def _with_range(value: Mapping[str, float]) -> str:
    return f"{100 * value['mean']:.1f} [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


def _markdown(rows: list[list[str]], about: Mapping[str, Any]) -> str:
    lines = [f"# {about.get('title', 'Generalization')}", ""]
    how = about.get("decoding", about["actor"])
    lines += [f"{about['episodes']} episodes per setup, protocol {about['protocol']}, {how}; percent.", ""]
    lines += ["| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows)]
    lines += [
        "",
        "Grasp: held at any step. Continuous grasp: five steps in a row. Success at end: on the receptacle at step 80,",
        "the study's measure; success ever: at any step, the measure of RLinf. Intervals: Wilson's; of groups and",
        "of relative drops P = (OOD - IND) / IND bootstrapped. The paper's numbers: 3 x 64 episodes of a 7B policy.",
    ]
    return "\n".join(lines) + "\n"


def _outcomes(episodes: Sequence[EpisodeResult], metric: str) -> np.ndarray:
    return np.array([getattr(e, metric) for e in episodes], dtype=float)


def _interval(statistic: Any, *samples: np.ndarray) -> dict[str, float]:
    """95 % percentile bootstrap over episodes, each sample resampled on its own."""
    if all(np.ptp(sample) == 0 for sample in samples):
        value = float(statistic(*samples))
        return {"low": value, "high": value}
    found = bootstrap(samples, statistic, method="percentile", n_resamples=2000, random_state=0, vectorized=True)
    return {"low": float(found.confidence_interval.low), "high": float(found.confidence_interval.high)}


def _relative_drop(ood: np.ndarray, ind: np.ndarray) -> dict[str, float]:
    def drop(ood: np.ndarray, ind: np.ndarray, axis: int = -1) -> np.ndarray:
        floor = 1 / ind.shape[-1]  # a resample without any success has no ratio
        reference = np.maximum(ind.mean(axis=axis), floor)
        return (ood.mean(axis=axis) - reference) / reference

    return {"mean": float(drop(ood, ind)), **_interval(drop, ood, ind)}


def _mean_of_means(samples: list[np.ndarray]) -> dict[str, float]:
    def mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    return {"mean": float(mean(*samples)), **_interval(mean, *samples)}


def _prefixed(interval: Mapping[str, float]) -> dict[str, float]:
    return {f"boot_{name}": value for name, value in interval.items()}
