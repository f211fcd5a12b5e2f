"""Charts of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlapost.disk import whole

if TYPE_CHECKING:
    from vlapost.evaluation.episodes import EpisodeResult

MOST_POINTS = 20_000  # drawn
SHOWN = {"grasp": "grasp", "consecutive_grasp": "continuous grasp", "success_end": "success"}  # the study's three


def smooth(values: Sequence[float], window: int = 5) -> list[float]:
    """Mean of each value and those before it, at most `window`."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def ends(rate: Mapping[str, float]) -> tuple[float, float]:
    """The interval of a rate; its mean where it has none."""
    return rate.get("low", rate["mean"]), rate.get("high", rate["mean"])


def whiskers(rate: Mapping[str, float]) -> list[list[float]]:
    """The interval of a rate as matplotlib's `yerr`."""
    (low, high), mean = ends(rate), rate["mean"]
    return [[max(0.0, mean - low)], [max(0.0, high - mean)]]


def bars(path: Path, setups: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """Success at the end of each setup, and its relative drop (paper Fig. 7a)."""
    drops = [s.get("relative_drop") for s in setups.values()]
    rows = 2 if any(drops) else 1
    figure, axes = pyplot().subplots(rows, 1, figsize=(11, 3 * rows), sharex=True, squeeze=False)
    above, below = axes[0, 0], axes[-1, 0]
    _bar(above, [s["success_end"] for s in setups.values()], "tab:green")
    above.set_ylabel("success at the end")
    above.set_ylim(0, 1)
    if any(drops):
        _bar(below, [drop or {"mean": 0.0} for drop in drops], "tab:red")  # IND itself has none
        below.set_ylabel("relative drop P")
    below.set_xticks(range(len(setups)), [titles[name] for name in setups], rotation=40, ha="right")
    save_figure(figure, path)


def radar(path: Path, setups: Mapping[str, Any], titles: Mapping[str, str], reference: str) -> None:
    """Success at the end by setup (paper Fig. 7b) and as a share of the reference setup (Fig. 7c)."""
    means = {name: s["success_end"]["mean"] for name, s in setups.items()}
    panels = {"success at the end": means}
    if means.get(reference):
        shares = {name: value / means[reference] for name, value in means.items() if name != reference}
        panels[f"share of {titles[reference]}"] = shares
    figure, axes = pyplot().subplots(1, len(panels), figsize=(6 * len(panels), 6), subplot_kw={"projection": "polar"})
    for axis, (title, values) in zip(np.atleast_1d(axes), panels.items()):
        _web(axis, values, titles, "tab:green")
        axis.set_title(title)
    save_figure(figure, path)


def against(path: Path, found: Mapping[str, dict[str, float]], titles: Mapping[str, str], names: Sequence[str]) -> None:
    """Two policies on the same episodes (paper Fig. 7): both, and ours less theirs with its interval.

    `found` is what `report.compare` returns; `names` are ours and theirs.
    """
    figure = pyplot().figure(figsize=(14, 6))
    both, less = figure.add_subplot(1, 2, 1, projection="polar"), figure.add_subplot(1, 2, 2)
    for key, colour, name in zip(("ours", "theirs"), ("tab:green", "tab:blue"), names):
        _web(both, {setup: d[key] for setup, d in found.items()}, titles, colour, name)
    both.set_title("success at the end")
    both.legend(loc="lower left", bbox_to_anchor=(-0.15, -0.15), fontsize=8)
    _bar(less, [d | {"mean": d["difference"]} for d in found.values()], "tab:green")
    less.axhline(0, color="black", linewidth=0.8)
    less.set_xticks(range(len(found)), [titles[setup] for setup in found], rotation=40, ha="right")
    less.set_title("difference, same episodes")
    save_figure(figure, path)


def trajectories(path: Path, results: Mapping[str, Sequence[Sequence[EpisodeResult]]]) -> None:
    """Where the gripper was, seen from above and from the side, coloured by its turn about z (paper Fig. 8)."""
    episodes = [e for seeds in results.values() for of_seed in seeds for e in of_seed]
    points = np.array([point for e in episodes for point in e.gripper]).reshape(-1, 4)
    if len(points) > MOST_POINTS:
        points = points[np.random.default_rng(0).choice(len(points), MOST_POINTS, replace=False)]
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 5))
    for axis, (a, b), labels in zip(axes, ((0, 1), (0, 2)), (("x (m)", "y (m)"), ("x (m)", "z (m)"))):
        dots = axis.scatter(
            points[:, a], points[:, b], c=points[:, 3], s=2, cmap="twilight", vmin=-np.pi, vmax=np.pi, rasterized=True
        )
        axis.set_xlabel(labels[0])
        axis.set_ylabel(labels[1])
        axis.set_aspect("equal")
    figure.colorbar(dots, ax=axes, label="turn about z (rad)")
    save_figure(figure, path)


def strips(path: Path, found: Mapping[str, Path]) -> None:
    """Strips of pictures one below the other, each under its title (paper Fig. 9)."""
    pictures = {title: pyplot().imread(strip) for title, strip in found.items()}
    figure, axes = pyplot().subplots(len(pictures), 1, figsize=(10, 1.5 * len(pictures)), squeeze=False)
    for axis, (title, picture) in zip(axes[:, 0], pictures.items()):
        axis.imshow(picture)
        axis.set_title(title, fontsize=8, loc="left")
        axis.axis("off")
    save_figure(figure, path)


def panels(titles: Sequence[str]) -> tuple[Any, Sequence[Any]]:
    """A figure of panels side by side, whose rates share an axis."""
    figure, axes = pyplot().subplots(1, len(titles), figsize=(5.5 * len(titles), 4), sharey=True, squeeze=False)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylim(-0.02, 1.02)
    return figure, axes[0]


def over_sizes(axis: Any, scores: Mapping[int, Mapping[str, Any]]) -> None:
    """The study's three measures over the number of demonstrations (paper Fig. 6a, 6b); dots are seeds."""
    sizes = list(scores)
    for number, (metric, name) in enumerate(SHOWN.items()):
        values = [scores[size][metric] for size in sizes]
        axis.plot(sizes, [v["mean"] for v in values], color=f"C{number}", label=name)
        for size, value in zip(sizes, values):
            axis.errorbar(size, value["mean"], yerr=whiskers(value), color=f"C{number}", capsize=3)
            means = list(value["seeds"].values())
            axis.plot([size] * len(means), means, color=f"C{number}", marker="o", markersize=3, linestyle="none")
    axis.set_xscale("log")
    axis.set_xticks(sizes, [str(size) for size in sizes], rotation=40, ha="right")
    axis.minorticks_off()
    axis.set_xlabel("demonstrations")
    axis.set_ylabel("share of episodes")
    axis.label_outer()
    axis.legend(fontsize=8, title="95 % intervals; dots: seeds", title_fontsize=8)


def learning_curve(axis: Any, name: str, points: Mapping[int, Any], levels: Mapping[str, Any]) -> None:
    """Success over environment steps, and what else was reached as horizontal lines (paper Fig. 6c, 6d)."""
    mean, low, high = ([score[key] for score in points.values()] for key in ("mean", "low", "high"))
    axis.plot(list(points), mean, color="tab:green", marker="o", label=name)
    axis.fill_between(list(points), low, high, color="tab:green", alpha=0.15)
    for (label, score), style in zip(levels.items(), cycle((":", "--", "-."))):
        axis.axhspan(*ends(score), color="tab:blue", alpha=0.05)
        axis.axhline(score["mean"], color="tab:blue", linestyle=style, label=label)
    axis.set_xlabel("environment steps, thousands")
    axis.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:g}")
    axis.set_ylabel("success at the end")
    axis.label_outer()
    axis.legend(fontsize=8, title="95 % intervals", title_fontsize=8)


def pyplot() -> Any:
    """Matplotlib, drawing into files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure; the file appears under its name when it is complete."""
    with whole(path) as partial:
        figure.savefig(partial, dpi=120, bbox_inches="tight")
    pyplot().close(figure)


def _web(axis: Any, values: Mapping[str, float], titles: Mapping[str, str], colour: str, name: str = "") -> None:
    """One closed line of a radar chart."""
    angles = np.linspace(0, 2 * np.pi, len(values), endpoint=False)
    closed = [*range(len(values)), 0]
    axis.plot(angles[closed], np.array(list(values.values()))[closed], color=colour, label=name)
    axis.fill(angles, list(values.values()), color=colour, alpha=0.2)
    axis.set_xticks(angles, [titles[setup] for setup in values], fontsize=8)
    axis.set_ylim(0, max(1.0, axis.dataLim.y1))


def _bar(axis: Any, values: Sequence[Mapping[str, float]], colour: str) -> None:
    means = np.array([value["mean"] for value in values])
    reach = np.concatenate([whiskers(value) for value in values], axis=1)
    axis.bar(range(len(means)), means, yerr=reach, color=colour, alpha=0.7, capsize=3)
    axis.grid(axis="y", alpha=0.3)
