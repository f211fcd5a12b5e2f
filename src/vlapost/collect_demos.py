"""Collect demonstrations with the motion planner.

    make demos N=2000
    make demos N=64000 ARGS="demos.path=data/many demos.part=3 demos.parts=16 demos.workers=4"
    python -m vlapost.collect_demos [configuration] [key=value ...]

Attempt k = 0, 1, 2, ... starts in the k-th of all episodes that are not held out, in a random order that `demos.seed`
decides, so that none comes twice. The first `demos.episodes` attempts that succeed are the set (and the next
`demos.held_out` those to look at only), whatever the number of workers. What is finished stays: the same command
continues after an interruption, and a larger demos.episodes adds to what is there.

With `demos.parts` each process makes its own blocks of attempts, into one folder or into folders that are copied
together afterwards; the command without parts then makes what is still missing, and checks every shard.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from vlapost.attempts import start, timed_attempt
from vlapost.cli import console, main, parse, progress
from vlapost.config import ROOT, Config, UserError, load
from vlapost.evaluation.summary import write_json

if TYPE_CHECKING:
    from vlapost.envs.episodes import Order
    from vlapost.experience.collect import Stopwatch
    from vlapost.experience.shards import DemoEpisode, DemoMeta, Failure, Shard, ShardFile
    from vlapost.experience.writer import DemoWriter

    Timed = tuple[DemoEpisode | Failure, dict[str, float]]

HOPELESS = 100  # attempts without any success: something is broken
STAGES = ("planning", "simulation", "drawing", "encoding")  # of a worker's time
QUEUED = 4  # attempts handed out per worker, so that none waits for another


def episode_of(cfg: Config, candidate: int) -> int:
    """The episode of an attempt: a function of the seed and its number alone; no two attempts have the same.

    Raises:
        UserError: there are not so many episodes.
    """
    env = cfg.env
    order = _order(env.id, env.obj_set, env.protocol, cfg.demos.seed)
    if candidate >= len(order):
        raise UserError(
            f"{env.id} {env.obj_set} has {len(order)} starts that are not held out, and attempt {candidate} would need "
            f"another; ask for fewer demos.episodes in {cfg.demos.path}."
        )
    return order[candidate]


@cache
def _order(env_id: str, obj_set: str, protocol: str, seed: int) -> Order:
    from vlapost.envs.episodes import Order, reserved
    from vlapost.envs.setups import find_setup

    return Order(find_setup(env_id, obj_set, protocol).total, reserved(env_id, obj_set, protocol), seed)


def check_starts(cfg: Config, shard: Shard) -> None:
    """Refuse a shard of another order of the starts: some of them would come twice, or be among the held-out ones.

    Raises:
        UserError: other episodes were held out when it was collected.
    """
    firsts = [first for first, _ in shard.spans()]
    attempts, ids = (shard.rows.column(name).take(firsts).to_pylist() for name in ("candidate", "episode_id"))
    for attempt, there in zip(attempts, ids):
        if there != (now := episode_of(cfg, attempt)):
            raise UserError(
                f"Attempt {attempt} in {shard.file.path} starts in episode {there}, where it is {now} today: other "
                "episodes were held out then. Delete the folder, or choose another with demos.path=..."
            )


def seed_of(cfg: Config, candidate: int) -> list[int] | None:
    """The seed of an attempt's disturbance, which `demos.disturbed` of all attempts have, or of how views are laid."""
    import numpy as np

    seed = [cfg.demos.seed, candidate, 1]
    if cfg.demos.views:
        return seed
    return seed if np.random.default_rng(seed[:2]).random() < cfg.demos.disturbed else None


def results(
    pool: ProcessPoolExecutor, cfg: Config, candidates: Iterable[int], watch: Stopwatch
) -> Iterator[DemoEpisode | Failure]:
    """Outcomes of the attempts `candidates`, which may go on for ever, in their order, computed in parallel.

    watch: the workers' seconds by stage are added to its own.
    """
    waiting: deque[Future[Timed]] = deque()
    coming = iter(candidates)
    while True:
        for candidate in islice(coming, QUEUED * cfg.demos.workers - len(waiting)):
            waiting.append(_submit(pool, cfg, candidate))
        outcome, seconds = waiting.popleft().result()
        for stage, value in seconds.items():
            watch.seconds[stage] += value
        yield outcome


def _submit(pool: ProcessPoolExecutor, cfg: Config, candidate: int) -> Future[Timed]:
    """Hand an attempt to a worker; that there is none is heard only when its turn comes."""
    try:
        return pool.submit(timed_attempt, candidate, episode_of(cfg, candidate), seed_of(cfg, candidate))
    except UserError as error:
        none: Future[Timed] = Future()
        none.set_exception(error)
        return none


def collect(cfg: Config) -> DemoWriter:
    """Collect what is missing of `cfg.demos.episodes` demonstrations, and of those that are held out, or of a part."""
    from vlapost.assets.pack import open_pack
    from vlapost.exchange.folder import imported
    from vlapost.experience.writer import DemoWriter

    d = cfg.demos
    wanted = d.episodes + d.held_out
    if there := imported(ROOT / d.path, wanted, cfg.env.image_size, d.skip_corrupt):
        return DemoWriter(ROOT / d.path, there, skip_corrupt=d.skip_corrupt)
    look = partial(check_starts, cfg)
    writer = DemoWriter(ROOT / d.path, meta_of(cfg), d.shard_attempts, d.part, d.parts, d.skip_corrupt, look)
    if writer.is_enough(wanted):
        return writer
    if not writer.writable:
        raise UserError(
            f"{writer.folder} holds {writer.episodes} demonstrations of {wanted}, and you may not write there; "
            "ask for fewer demos.episodes, or choose another folder with demos.path=..."
        )
    open_pack(cfg.env.assets)  # drawn here if it is not there yet, where its progress can be seen
    in_worker = replace(cfg, env=replace(cfg.env, backend="cpu"))  # the same wherever training simulates
    pool = ProcessPoolExecutor(d.workers, get_context("spawn"), start, (in_worker,))
    candidates = (candidate for begin, end in writer.gaps() for candidate in range(begin, end))
    stream = results(pool, cfg, candidates, writer.watch)
    bar = progress("demo")
    name = "demonstrations" + (f", part {d.part} of {d.parts}" if d.parts > 1 else "")
    share = -(-wanted // d.parts)
    task = bar.add_task(name, total=share, completed=writer.episodes, note="starting simulators")
    try:
        with writer.watch("wall"), bar:
            fill(writer, stream, wanted, lambda done, note: bar.update(task, completed=done, note=note))
    except BrokenProcessPool:
        raise UserError(
            "A collecting process died, most likely for lack of memory (each takes about 1.2 GB); "
            "the same command continues, with fewer processes if you add demos.workers=1."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return writer


def fill(
    writer: DemoWriter,
    outcomes: Iterator[DemoEpisode | Failure],
    wanted: int,
    watch: Callable[[int, str], None] = lambda done, note: None,
) -> None:
    """Store outcomes, which come in the order of the writer's gaps, a shard per gap, until there is enough.

    watch: hears the number of demonstrations, and of failures by cause. Whatever ends this, what is finished is kept.
    """
    from vlapost.experience.shards import DemoEpisode

    for begin, end in writer.gaps():
        before = writer.expected(begin)
        if before >= wanted:
            return
        counted = writer.parts == 1 and begin >= writer.end  # all that is before, and nothing is behind
        episodes: list[DemoEpisode] = []
        failures: list[Failure] = []
        try:
            for _ in range(begin, end):
                if counted and before + len(episodes) >= wanted:
                    break
                outcome = next(outcomes)
                if isinstance(outcome, DemoEpisode):
                    episodes.append(outcome)
                else:
                    failures.append(outcome)
                successes, attempts = writer.episodes + len(episodes), writer.attempts + len(episodes) + len(failures)
                causes = causes_of(writer, failures)
                watch(successes, f"success {successes / attempts:.0%}" + (f"; failed: {causes}" if causes else ""))
                if attempts >= HOPELESS and not successes:
                    raise UserError(
                        f"The first {attempts} attempts all failed ({causes}); run make doctor, and delete "
                        f"{writer.folder} before you try again."
                    )
        finally:
            if done := len(episodes) + len(failures):
                writer.write(begin, begin + done, episodes, failures)


def causes_of(writer: DemoWriter, failures: list[Failure]) -> str:
    """Failures so far by cause, the most frequent first."""
    causes = writer.failures + Counter(failure.cause for failure in failures)
    return ", ".join(f"{count} {cause}" for cause, count in causes.most_common())


def meta_of(cfg: Config) -> DemoMeta:
    """The settings that demonstrations of this configuration share."""
    from vlapost.assets.pack import edition
    from vlapost.experience.shards import VERSION, DemoMeta

    env, demos = cfg.env, cfg.demos
    size = (env.image_size[0], env.image_size[1])
    return DemoMeta(
        version=VERSION,
        env_id=env.id,
        obj_set=env.obj_set,
        assets=edition(env.assets),
        image_size=size,
        shader=env.shader,
        sim_freq=env.sim_freq,
        seed=demos.seed,
        disturbed=demos.disturbed,
        views=demos.views,
        protocol=env.protocol,
    )


def check_complete(cfg: Config) -> None:
    """For commands that learn from all demonstrations.

    Raises:
        UserError: only a part of them is to be collected, or views, in which nothing is done.
    """
    if cfg.demos.views:
        raise UserError(f"demos.views is {cfg.demos.views}; no actions can be learned from views, so leave it 0.")
    if cfg.demos.parts > 1:
        raise UserError(
            f"demos.parts is {cfg.demos.parts}, but only 'make demos' collects in parts; collect them all, then give "
            "this command without demos.part and demos.parts."
        )


def left_out(file: ShardFile) -> None:
    """Say that a damaged shard is."""
    console.print(f"{file.path} is damaged; its demonstrations are left out.", soft_wrap=True)


def shares(seconds: Mapping[str, float], workers: int) -> dict[str, float]:
    """Shares of the workers' time, and of the main process's that it writes in; empty where nothing was collected."""
    if "wall" not in seconds:
        return {}
    found = {stage: seconds.get(stage, 0.0) / (workers * seconds["wall"]) for stage in STAGES}
    writing = seconds.get("writing", 0.0) / seconds["wall"]
    return {**found, "starting, waiting": 1 - sum(found.values()), "writing, beside it": writing}


def report(folder: Path, writer: DemoWriter, workers: int) -> None:
    """Print what the folder, or this part of it, holds; what the folder holds goes to `failures.json` there too."""
    size = sum(file.stat().st_size for file in folder.glob("shard-*.arrow"))
    which = f", part {writer.part} of {writer.parts}" if writer.parts > 1 else ""
    table = Table(title=f"Demonstrations in {folder}{which}", show_header=False)
    table.add_row("demonstrations", str(writer.episodes))
    table.add_row("attempts", str(writer.attempts))
    table.add_row("success rate", f"{writer.episodes / max(1, writer.attempts):.1%}")
    if writer.skipped:
        table.add_row("damaged shards skipped", ", ".join(file.path.name for file in writer.skipped))
    for cause, count in writer.failures.most_common():
        table.add_row(f"failed: {cause}", str(count))
    table.add_row("size of the folder", f"{size / 1e6:.1f} MB")
    spent = shares(writer.watch.seconds, workers)
    for stage, share in spent.items():
        table.add_row(f"time: {stage}", f"{share:.1%}")
    console.print(table)
    if writer.parts == 1:
        content = {"demonstrations": writer.episodes, "failed": dict(writer.failures.most_common())}
        write_json(folder / "failures.json", content | ({"time": spent} if spent else {}))


def run(argv: list[str]) -> None:
    """Entry point of `make demos`."""
    name, overrides = parse(argv, "base")
    cfg = load(name, overrides)
    writer = collect(cfg)
    report(ROOT / cfg.demos.path, writer, cfg.demos.workers)
    writer.close()


if __name__ == "__main__":
    main(run)
