"""Episodes spread over processes, each with its own simulator and its own copy of the policy.

Parent and worker talk through one pipe each: a worker says that it is ready by sending no results, gets a list of
episode ids, sends their results, gets the next list, and so on until None. A worker whose parent is gone finds its pipe
closed and leaves; a worker that dies closes its pipe, and the parent says so.
"""

from __future__ import annotations

import multiprocessing as mp
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from vlapost.cli import progress
from vlapost.config import Config, UserError
from vlapost.contracts import Policy, VectorEnv
from vlapost.evaluation import log
from vlapost.evaluation.episodes import EpisodeResult, run_episodes
from vlapost.evaluation.video import write_video

Build = Callable[[Config, int], tuple[Policy, VectorEnv]]


@dataclass(frozen=True)
class Worker:
    """A running process and the parent's end of its pipe."""

    process: SpawnProcess
    pipe: Connection


def run_parallel(
    build: Build, config: Config, episode_ids: Sequence[int], out: Path, labels: log.Labels
) -> list[EpisodeResult]:
    """Run the episodes that `out/episodes.jsonl` does not hold yet, and return all of them in the order given.

    Args:
        build: a module-level function, called once in every process: (config, scenes) -> policy and simulator.
        config: `evaluation.workers` processes of up to `env.num_envs` scenes; temperature, videos and seed.
        episode_ids: ids of the environment's index space; the first `evaluation.videos` are filmed when they are run.
        out: folder of `episodes.jsonl` and `videos/`; created.
        labels: what to write beside each episode.

    Raises:
        UserError: raised in a worker, for example a missing checkpoint.
        UserError: a worker died.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "episodes.jsonl"
    finished = log.read(path)
    missing = [episode for episode in episode_ids if episode not in finished]
    size = max(1, min(config.env.num_envs, -(-len(missing) // config.evaluation.workers)))
    chunks = [missing[start : start + size] for start in range(0, len(missing), size)]
    filmed = frozenset(episode_ids[: config.evaluation.videos])

    with progress("episode") as bar, _workers(build, config, size, filmed, out, len(chunks)) as workers:
        task = bar.add_task("Evaluate", total=len(episode_ids), completed=len(episode_ids) - len(missing), note="")
        waiting = iter(chunks)
        busy = {worker.pipe: worker for worker in workers}
        while busy:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                results = _receive(worker)
                log.append(path, results, labels)
                finished |= {result.episode_id: result for result in results}
                bar.update(task, advance=len(results), note=_success(finished))
                chunk = next(waiting, None)
                worker.pipe.send(chunk)
                if chunk is None:
                    del busy[worker.pipe]
    return [finished[episode] for episode in episode_ids]


@contextmanager
def _workers(
    build: Build, config: Config, num_envs: int, filmed: frozenset[int], out: Path, chunks: int
) -> Iterator[list[Worker]]:
    """Start as many processes as there is work for; end them on the way out, whatever happened."""
    context = mp.get_context("spawn")
    workers: list[Worker] = []
    # Ctrl-C reaches the whole process group; only the parent shall answer, so workers inherit "ignore".
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for _ in range(min(config.evaluation.workers, chunks)):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, build, config, num_envs, filmed, out / "videos"), daemon=True
        )
        process.start()
        theirs.close()
        workers.append(Worker(process, ours))
    signal.signal(signal.SIGINT, answer)
    try:
        yield workers
        for worker in workers:
            worker.process.join(timeout=10)
    finally:
        for worker in workers:
            worker.process.terminate()


def _success(finished: dict[int, EpisodeResult]) -> str:
    if not finished:
        return ""
    return f"success {sum(result.success_end for result in finished.values()) / len(finished):.0%}"


def _receive(worker: Worker) -> list[EpisodeResult]:
    try:
        message = worker.pipe.recv()
    except EOFError:
        worker.process.join()
        raise UserError(
            f"An evaluating process ended with exit code {worker.process.exitcode}; its own message is above. "
            "Finished episodes are kept."
        ) from None
    if isinstance(message, UserError):
        raise message
    return message


def _work(pipe: Connection, build: Build, config: Config, num_envs: int, filmed: frozenset[int], videos: Path) -> None:
    """A worker's life: build once, then run the lists of episodes that come through the pipe."""
    torch.set_num_threads(1)
    try:
        policy, env = build(config, num_envs)
    except UserError as error:
        pipe.send(error)
        return
    done: list[EpisodeResult] = []
    while (ids := _exchange(pipe, done)) is not None:
        ids = sorted(ids, key=lambda episode: episode not in filmed)  # run_episodes films the first ones
        record = len(filmed.intersection(ids))
        done = run_episodes(policy, env, ids, config.evaluation.temperature, config.seed, record)
        for result in done:
            if result.frames is not None:
                outcome = "success" if result.success_end else "failure"
                write_video(videos / f"{result.episode_id:07d}-{outcome}.mp4", result.frames)
    env.close()


def _exchange(pipe: Connection, done: list[EpisodeResult]) -> list[int] | None:
    """Hand over results for the next list of episodes; None when there is none, or nobody to ask."""
    try:
        pipe.send([replace(result, frames=None) for result in done])
        return pipe.recv()
    except (BrokenPipeError, EOFError):
        return None
