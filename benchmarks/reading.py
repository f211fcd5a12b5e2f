"""What a learner asks of a large set of demonstrations: `make benchmark-reading ARGS="demos.episodes=16000"`.

One process, then two at once, open the first demonstrations of demos.path (collected if they are not there) and read
minibatches of samples drawn at random from all of them. Prints the size on disk, the seconds to open, samples per
second, and the memory of a process that is not mapped from files: before opening, after it, and after each round of
reading, which must not make it grow. Writes lightning_logs/benchmark/reading.json.
"""

from __future__ import annotations

import os
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.table import Table

from benchmarks.measure import all_here, at_once, machine
from vlapost import cli, collect_demos, config
from vlapost.build import open_demos
from vlapost.callbacks.rollout_stats import host_gib
from vlapost.config import ROOT, Config
from vlapost.evaluation.summary import write_json

MINIBATCHES, SIZE, ROUNDS = 200, 64, 5  # of each round; the median of the rounds counts


def run(words: list[str]) -> None:
    """Measure, print, write."""
    cfg = config.load(*cli.parse(words, "base"))
    collect_demos.collect(cfg).close()
    found = [measure(cfg, processes) for processes in range(1, min(2, len(os.sched_getaffinity(0))) + 1)]
    files = list((ROOT / cfg.demos.path).glob("shard-*.arrow"))
    size = sum(path.stat().st_size for path in files)
    size_of = f"{found[0]['samples']} samples; the folder: {len(files)} shards, {size / 2**30:.2f} GiB"
    table = Table(title=f"{cfg.demos.episodes} demonstrations, {size_of}")
    for column in ("processes", "s to open", "samples/s", "GiB before", "GiB open", "GiB after each round"):
        table.add_column(column, justify="right")
    for number, row in enumerate(found, 1):
        rounds = " ".join(f"{value:.2f}" for value in row["gib_rounds"])
        memory_of = (f"{row[key]:.2f}" for key in ("gib_before", "gib_open"))
        table.add_row(str(number), f"{row['open_s']:.1f}", f"{row['samples_per_s']:.0f}", *memory_of, rounds)
    cli.console.print(table)
    path = ROOT / "lightning_logs/benchmark/reading.json"
    about = {"machine": machine(), "demonstrations": cfg.demos.episodes, "shards": len(files), "bytes": size}
    about |= {"image_size": list(cfg.env.image_size), "minibatch": SIZE, "minibatches": MINIBATCHES}
    write_json(path, {**about, "processes": found})
    cli.console.print(f"Written to {path}", soft_wrap=True)


def measure(cfg: Config, processes: int) -> dict[str, Any]:
    """Of `processes` at once: their rates added, the slowest opening, the largest memory."""
    found = at_once(read, [(cfg, seed) for seed in range(processes)])
    rates = [sum(rates) for rates in zip(*(one["rates"] for one in found))]
    return {
        "samples": found[0]["samples"],
        "open_s": max(one["open_s"] for one in found),
        "samples_per_s": median(rates),
        **{key: max(one[key] for one in found) for key in ("gib_before", "gib_open")},
        "gib_rounds": [max(values) for values in zip(*(one["gib_rounds"] for one in found))],
    }


def read(cfg: Config, seed: int) -> dict[str, Any]:
    """One process: opens, waits for the others, reads."""
    before, begin = host_gib(), perf_counter()
    data = open_demos(cfg)
    opened, order = perf_counter() - begin, torch.Generator().manual_seed(seed)
    result: dict[str, Any] = {"samples": len(data), "open_s": opened, "gib_before": before, "gib_open": host_gib()}
    rates, rounds = [], []
    for _ in range(ROUNDS):
        all_here()
        begin = perf_counter()
        for _ in range(MINIBATCHES):
            data.observation(torch.randint(len(data), (SIZE,), generator=order))
        rates.append(MINIBATCHES * SIZE / (perf_counter() - begin))
        rounds.append(host_gib())
    return {**result, "rates": rates, "gib_rounds": rounds}


if __name__ == "__main__":
    cli.main(run)
