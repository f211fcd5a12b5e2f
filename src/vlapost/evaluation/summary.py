"""Rates with 95 % intervals, as a table for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from scipy.stats import binomtest

from vlapost.disk import write_text

if TYPE_CHECKING:
    from vlapost.evaluation.episodes import EpisodeResult

METRICS = {
    "success_end": "placed at the end",
    "success_once": "placed at any step",
    "grasp": "held at any step",
    "consecutive_grasp": "held 5 steps in a row",
}


def rate(outcomes: Iterable[bool]) -> dict[str, float | int]:
    """Share of True with Wilson's 95 % interval: {"mean", "low", "high", "n"}."""
    values = [bool(outcome) for outcome in outcomes]
    interval = binomtest(sum(values), len(values)).proportion_ci(0.95, method="wilson")
    return {
        "mean": sum(values) / len(values),
        "low": float(interval.low),
        "high": float(interval.high),
        "n": len(values),
    }


def percent(rate: Mapping[str, float]) -> str:
    """A rate for a table, and its interval where it has one."""
    return f"{rate['mean']:.1%}" + (f"  [{rate['low']:.1%}, {rate['high']:.1%}]" if "low" in rate else "")


def summarise(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """The four rates, and the mean undiscounted return."""
    summary: dict[str, Any] = {name: rate(getattr(result, name) for result in results) for name in METRICS}
    summary["return"] = sum(result.return_ for result in results) / len(results)
    return summary


def table(summary: Mapping[str, Any], title: str) -> Table:
    """The summary for the terminal, in percent."""
    view = Table(title=title)
    view.add_column("measure")
    view.add_column("meaning")
    view.add_column("rate", justify="right")
    view.add_column("95 % interval", justify="right")
    view.add_column("episodes", justify="right")
    for name, meaning in METRICS.items():
        m = summary[name]
        interval = f"{m['low']:.1%} - {m['high']:.1%}"
        view.add_row(name, meaning, f"{m['mean']:.1%}", interval, str(m["n"]))
    return view


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON; the file appears under its name when it is complete."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
