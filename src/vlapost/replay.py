"""How many stored demonstrations succeed again, executed open loop: `python -m vlapost.replay`, or `make replay`.

    make replay
    make replay ARGS="demos.path=data/many evaluation.episodes=500 demos.workers=4"

The first `evaluation.episodes` demonstrations of `demos.path` are executed from their starts with every action, with
small ones merged and with small ones dropped (`demos.min_translation`, `demos.min_rotation`): what each filter loses
before any learning. Prints the shares with Wilson's 95 % intervals and writes them to replay.json in that folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vlapost.attempts import start, tools
from vlapost.cli import console, main, parse, progress
from vlapost.collect_demos import left_out, meta_of
from vlapost.config import ROOT, Config, UserError, load
from vlapost.evaluation.summary import percent, rate, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILTERS = ("none", "merge", "drop")
SMALL = [16, 16]  # pixels; nobody looks


def run(argv: list[str]) -> None:
    """Replay and print."""
    cfg = load(*parse(argv, "base"))
    d, folder = cfg.demos, ROOT / cfg.demos.path
    if d.disturbed:
        raise UserError("demos.disturbed is above 0; demonstrations that start from a spoilt state cannot be replayed.")
    demos = list(islice(stored(cfg, folder), cfg.evaluation.episodes))
    if not demos:
        raise UserError(f"{folder} holds no demonstrations; run 'make demos' first.")
    in_worker = replace(cfg, env=replace(cfg.env, backend="cpu", image_size=SMALL))
    bar = progress("replay")
    task = bar.add_task("replays", total=len(demos) * len(FILTERS), note="starting simulators")
    try:
        with ProcessPoolExecutor(d.workers, get_context("spawn"), start, (in_worker,)) as pool, bar:
            watch = partial(bar.update, task, advance=1, note="")
            found = measure(demos, d.min_translation, d.min_rotation, pool.map, watch)
    except BrokenProcessPool:
        raise UserError(
            "A replaying process died, most likely for lack of memory (each takes about 1.2 GB); "
            "give the same command with fewer processes: demos.workers=1."
        ) from None
    table = Table(title=f"Open-loop replay of {len(demos)} demonstrations of {folder}")
    for column in ("small actions", "actions kept", "succeed again"):
        table.add_column(column, justify="right")
    for name, one in found.items():
        table.add_row(
            name, f"{one['actions']} ({one['actions'] / found['none']['actions']:.0%})", percent(one["success"])
        )
    console.print(table)
    write_json(folder / "replay.json", found)


def stored(cfg: Config, folder: Path) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Episode id and actions `[T, 7]` of the demonstrations of a folder, in their order."""
    from vlapost.experience.verified import check_meta, in_order

    meta = meta_of(cfg)
    for shard in in_order(folder, cfg.demos.skip_corrupt, left_out):
        check_meta(shard, meta)
        for first, last in shard.spans():
            yield shard.rows.column("episode_id")[first].as_py(), shard.floats("action")[first:last]


def measure(
    demos: list[tuple[int, NDArray[np.float32]]],
    min_translation: float,
    min_rotation: float,
    mapped: Callable[..., Any],
    watch: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Replay with each filter; `mapped` is `map`, or that of a pool.

    Returns:
        {filter: {"actions": how many, "success": rate}}.
    """
    from vlapost.experience.action_filter import filter_actions

    found = {}
    for mode in FILTERS:
        filtered = [filter_actions(actions, mode, min_translation, min_rotation)[1] for _, actions in demos]
        outcomes = []
        for success in mapped(succeeds, [id_ for id_, _ in demos], filtered):
            outcomes.append(success)
            watch()
        found[mode] = {"actions": sum(map(len, filtered)), "success": rate(outcomes)}
    return found


def succeeds(episode_id: int, actions: NDArray[np.float32]) -> bool:
    """In a working process: whether the object stands on its receptacle after `[T, 7]` actions."""
    import torch

    from vlapost.planner.demonstrate import replay

    env, _ = tools()
    return bool(replay(env, episode_id, torch.from_numpy(actions)).success)


if __name__ == "__main__":
    main(run)
