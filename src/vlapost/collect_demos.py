"""Collect demonstrations with the motion planner.

    make demos
    make demos ARGS="demos.episodes=2000 demos.workers=4"
    python -m vlapost.collect_demos [configuration] [key=value ...]

Attempt k = 0, 1, 2, ... starts in an episode drawn from (demos.seed, k), never a held-out one. The first
`demos.episodes` attempts that succeed are the set (and the next `demos.held_out` those to look at only), whatever the
number of workers. What is finished stays: the same command continues after an interruption, and a larger demos.episodes
adds to what is there.
"""

from __future__ import annotations

import signal
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from vlapost.cli import console, end_with_parent, main, parse, progress
from vlapost.config import ROOT, Config, EnvConfig, UserError, load
from vlapost.evaluation.summary import write_json

if TYPE_CHECKING:
    from vlapost.envs.vector import SceneVector
    from vlapost.experience.demos import DemoWriter
    from vlapost.experience.shards import DemoEpisode, DemoMeta, Failure
    from vlapost.planner.motion import ArmPlanner

HOPELESS = 100  # attempts without any success: something is broken
QUEUED = 4  # attempts handed out per worker, so that none waits for another


class Worker:
    """What one process keeps between its attempts."""

    cfg: EnvConfig
    tools: tuple[SceneVector, ArmPlanner] | None = None


def start(cfg: EnvConfig) -> None:
    """First call in every process."""
    import torch

    torch.set_num_threads(1)
    Worker.cfg = cfg
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the collecting command answers
    end_with_parent()


def tools() -> tuple[SceneVector, ArmPlanner]:
    """This process's environment and planner, built by its first attempt so that an error reaches the user."""
    from vlapost.envs.vector import make_env
    from vlapost.planner.motion import ArmPlanner

    if Worker.tools is None:
        env = make_env(Worker.cfg, num_envs=1)
        Worker.tools = env, ArmPlanner(env.scenes[0].pack)
    return Worker.tools


def attempt(candidate: int, episode_id: int, disturbance: list[int] | None) -> DemoEpisode | Failure:
    """Try one episode in this process; `disturbance` is the seed of one, or None."""
    import numpy as np

    from vlapost.experience.shards import DemoEpisode, Failure, encode_image, encode_labels
    from vlapost.planner.demonstrate import demonstrate

    rng = None if disturbance is None else np.random.default_rng(disturbance)
    result = demonstrate(*tools(), episode_id, rng)
    if isinstance(result, str):
        return Failure(candidate, episode_id, result)
    return DemoEpisode(
        candidate=candidate,
        episode_id=episode_id,
        instruction=result.instruction,
        image=tuple(encode_image(image) for image in result.image),
        segmentation=tuple(encode_labels(truth.segmentation[0].numpy()) for truth in result.truth),
        action=result.action,
        gripper_pose=np.stack([truth.gripper_pose[0].numpy() for truth in result.truth]),
        object_position=np.stack([truth.object_position[0].numpy() for truth in result.truth]),
        receptacle_position=np.stack([truth.receptacle_position[0].numpy() for truth in result.truth]),
        qpos=np.stack([truth.qpos[0].numpy() for truth in result.truth]),
        success=result.success,
    )


def episode_of(cfg: Config, candidate: int) -> int:
    """The episode of an attempt: a function of the seed and its number alone."""
    import numpy as np
    import torch

    from vlapost.envs.episodes import draw, reserved
    from vlapost.envs.setups import setup_of

    seed = int(np.random.SeedSequence([cfg.demos.seed, candidate]).generate_state(1)[0])
    excluded = reserved(cfg.env.id, cfg.env.obj_set, cfg.env.protocol)
    return int(draw(setup_of(cfg.env), 1, torch.Generator().manual_seed(seed), excluded))


def disturbance_of(cfg: Config, candidate: int) -> list[int] | None:
    """The seed of an attempt's disturbance, or None: `demos.disturbed` of all attempts have one."""
    import numpy as np

    seed = [cfg.demos.seed, candidate, 1]
    return seed if np.random.default_rng(seed[:2]).random() < cfg.demos.disturbed else None


def results(pool: ProcessPoolExecutor, cfg: Config, begin: int, end: int | None) -> Iterator[DemoEpisode | Failure]:
    """Outcomes of attempts `begin` to `end` (exclusive; None: without end), in order, computed in parallel."""
    waiting: deque[Future[DemoEpisode | Failure]] = deque()
    candidate = begin
    while waiting or end is None or candidate < end:
        while len(waiting) < QUEUED * cfg.demos.workers and (end is None or candidate < end):
            waiting.append(pool.submit(attempt, candidate, episode_of(cfg, candidate), disturbance_of(cfg, candidate)))
            candidate += 1
        yield waiting.popleft().result()


def collect(cfg: Config) -> DemoWriter:
    """Collect what is missing of `cfg.demos.episodes` demonstrations, and of those that are held out."""
    from vlapost.assets.pack import open_pack
    from vlapost.exchange.folder import imported
    from vlapost.experience.demos import DemoWriter
    from vlapost.experience.shards import Failure

    if there := imported(ROOT / cfg.demos.path, cfg.demos.episodes + cfg.demos.held_out):
        return DemoWriter(ROOT / cfg.demos.path, there)
    writer = DemoWriter(ROOT / cfg.demos.path, meta_of(cfg))
    known, wanted = writer.episodes, cfg.demos.episodes + cfg.demos.held_out
    if known >= wanted and not writer.missing():
        return writer
    open_pack(cfg.env.assets)  # drawn here if it is not there yet, where its progress can be seen
    env = replace(cfg.env, backend="cpu")  # a scene at a time: the same demonstrations wherever training simulates
    pool = ProcessPoolExecutor(cfg.demos.workers, get_context("spawn"), start, (env,))
    bar = progress("demo")
    task = bar.add_task("demonstrations", total=wanted, completed=known, note="starting simulators")
    tried = 0

    def collect_range(begin: int, end: int | None) -> None:
        nonlocal tried
        episodes: list[DemoEpisode] = []
        failures: list[Failure] = []
        done = begin
        try:
            for result in results(pool, cfg, begin, end):
                if isinstance(result, Failure):
                    failures.append(result)
                else:
                    episodes.append(result)
                    bar.advance(task)
                tried += 1
                done += 1
                if tried == HOPELESS and not writer.episodes + len(episodes):
                    raise UserError(
                        f"The first {HOPELESS} attempts all failed ({causes_of(writer, failures)}); run make doctor."
                    )
                new = writer.episodes + len(episodes) - known
                note = causes_of(writer, failures)
                bar.update(task, note=f"success {new / tried:.0%}" + (f"; failed: {note}" if note else ""))
                complete = end is None and writer.episodes + len(episodes) >= wanted
                if complete or done == end or len(episodes) == cfg.demos.shard_episodes:
                    writer.write(begin, done, episodes, failures)
                    begin, episodes, failures = done, [], []
                if complete:
                    return
        except KeyboardInterrupt:
            if done > begin:
                writer.write(begin, done, episodes, failures)  # what is finished is kept
            raise

    try:
        with bar:
            for begin, end in writer.missing():
                collect_range(begin, end)
            if writer.episodes < wanted:
                collect_range(writer.next_candidate(), None)
    except BrokenProcessPool:
        raise UserError(
            "A collecting process died, most likely for lack of memory (each takes about 1.2 GB); "
            "the same command continues, with fewer processes if you add demos.workers=1."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return writer


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
        protocol=env.protocol,
    )


def report(folder: Path, writer: DemoWriter) -> None:
    """Print what the folder holds, and write it to `failures.json` there."""
    failed = sum(writer.failures.values())
    size = sum(file.stat().st_size for file in folder.glob("shard-*.arrow"))
    table = Table(title=f"Demonstrations in {folder}", show_header=False)
    table.add_row("demonstrations", str(writer.episodes))
    table.add_row("attempts", str(writer.episodes + failed))
    table.add_row("success rate", f"{writer.episodes / max(1, writer.episodes + failed):.1%}")
    for cause, count in writer.failures.most_common():
        table.add_row(f"failed: {cause}", str(count))
    table.add_row("size", f"{size / 1e6:.1f} MB")
    console.print(table)
    content = {"demonstrations": writer.episodes, "failed": dict(writer.failures.most_common())}
    write_json(folder / "failures.json", content)


def run(argv: list[str]) -> None:
    """Entry point of `make demos`."""
    name, overrides = parse(argv, "base")
    cfg = load(name, overrides)
    writer = collect(cfg)
    report(ROOT / cfg.demos.path, writer)
    writer.close()


if __name__ == "__main__":
    main(run)
