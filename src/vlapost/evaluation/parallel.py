"""Episodes spread over processes, each with its own simulator and its own copy of the policy.

Parent and worker talk through one pipe each: a worker says that it is ready by sending no results, gets a number of a
job and a list of episode ids, sends their results, gets the next list, and so on until None. A worker whose parent is
gone finds its pipe closed and leaves; a worker that dies closes its pipe, and the parent says so.
"""

from __future__ import annotations

import multiprocessing as mp
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from vlapost.cli import progress
from vlapost.config import Config, UserError
from vlapost.contracts import Actor, VectorEnv
from vlapost.evaluation import log
from vlapost.evaluation.episodes import EpisodeResult, run_episodes
from vlapost.evaluation.video import write_strip, write_video

BuildActor = Callable[[Config], Actor]
BuildEnv = Callable[[Config, int], VectorEnv]
Chunk = tuple[int, list[int]]  # number of a job, episode ids


@dataclass(frozen=True)
class Job:
    """Episodes of one environment.

    name: for the progress bar and the names of videos. config: which environment and actor. episode_ids: of its index
    space; the first `evaluation.videos` are filmed when they are run. out: folder of `episodes.jsonl` and `videos/`;
    created. labels: what to write beside each episode.
    """

    name: str
    config: Config
    episode_ids: Sequence[int]
    out: Path
    labels: log.Labels = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Worker:
    """A running process and the parent's end of its pipe."""

    process: SpawnProcess
    pipe: Connection


def run_parallel(build_actor: BuildActor, build_env: BuildEnv, jobs: Sequence[Job]) -> list[list[EpisodeResult]]:
    """Run the episodes that the jobs' `episodes.jsonl` do not hold yet, and return all of them in the order given.

    Args:
        build_actor: a module-level function, called once in every process with the first job's settings; all jobs must
            agree about the actor.
        build_env: a module-level function, called in every process when its next episodes are of another job.
        jobs: their `evaluation.workers` must agree; that many processes of up to `env.num_envs` scenes are started.

    Raises:
        UserError: raised in a worker, for example a missing checkpoint.
        UserError: a worker died.
    """
    finished, chunks, sizes = [], [], []
    count = jobs[0].config.evaluation.workers
    for number, job in enumerate(jobs):
        job.out.mkdir(parents=True, exist_ok=True)
        log.mend(job.out / "episodes.jsonl")
        finished.append(log.read(job.out / "episodes.jsonl"))
        missing = [episode for episode in job.episode_ids if episode not in finished[number]]
        sizes.append(max(1, min(job.config.env.num_envs, -(-len(missing) // count))))
        starts = range(0, len(missing), sizes[number])
        chunks += [(number, missing[start : start + sizes[number]]) for start in starts]
    total, left = sum(len(job.episode_ids) for job in jobs), sum(len(ids) for _, ids in chunks)

    with (
        progress("episode") as bar,
        _workers(build_actor, build_env, jobs, sizes, min(count, len(chunks))) as workers,
    ):
        task = bar.add_task("Evaluate", total=total, completed=total - left, note="")
        waiting = iter(chunks)
        busy = {worker.pipe: worker for worker in workers}
        while busy:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                number, results = _receive(worker)
                log.append(jobs[number].out / "episodes.jsonl", results, jobs[number].labels)
                finished[number] |= {result.episode_id: result for result in results}
                bar.update(task, advance=len(results), note=_success(jobs[number].name, finished[number]))
                chunk = next(waiting, None)
                worker.pipe.send(chunk)
                if chunk is None:
                    del busy[worker.pipe]
    return [[done[episode] for episode in job.episode_ids] for job, done in zip(jobs, finished)]


@contextmanager
def _workers(
    build_actor: BuildActor, build_env: BuildEnv, jobs: Sequence[Job], sizes: list[int], count: int
) -> Iterator[list[Worker]]:
    """Start the processes; end them on the way out, whatever happened."""
    context = mp.get_context("spawn")
    workers: list[Worker] = []
    given = [(replace(job, labels={}), size) for job, size in zip(jobs, sizes)]
    # Ctrl-C reaches the whole process group; only the parent shall answer, so workers inherit "ignore".
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(number, theirs, build_actor, build_env, given), daemon=True)
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


def _success(name: str, finished: dict[int, EpisodeResult]) -> str:
    if not finished:
        return ""
    return f"{name}: success {sum(result.success_end for result in finished.values()) / len(finished):.0%}"


def _receive(worker: Worker) -> tuple[int, list[EpisodeResult]]:
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


def _work(
    number: int, pipe: Connection, build_actor: BuildActor, build_env: BuildEnv, jobs: list[tuple[Job, int]]
) -> None:
    """The life of worker `number`: build the actor once, then run the lists of episodes that come through the pipe."""
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())  # policy and scenes go to the current one
    env: VectorEnv | None = None
    current = 0
    done: list[EpisodeResult] = []
    try:
        actor = build_actor(jobs[0][0].config)
        while (chunk := _exchange(pipe, current, done)) is not None:
            job, size = jobs[chunk[0]]
            if env is None or chunk[0] != current:
                if env is not None:
                    env.close()
                env = build_env(job.config, size)
            current, ids = chunk
            filmed = frozenset(job.episode_ids[: job.config.evaluation.videos])
            ids = sorted(ids, key=lambda episode: episode not in filmed)  # run_episodes films the first ones
            results = run_episodes(actor, env, ids, job.config.seed, len(filmed.intersection(ids)))
            done = [_film(job, result) for result in results]
    except UserError as error:
        pipe.send(error)
    if env is not None:
        env.close()


def _film(job: Job, result: EpisodeResult) -> EpisodeResult:
    """Write what was recorded of an episode, as a video and as a strip of pictures."""
    if result.frames is None:
        return result
    outcome = "success" if result.success_end else "failure"
    video = f"videos/{job.name}-{result.episode_id:07d}-{outcome}.mp4"
    write_video(job.out / video, result.frames)
    write_strip(job.out / video.replace(".mp4", ".png"), result.frames)
    return replace(result, frames=None, video=video)


def _exchange(pipe: Connection, number: int, done: list[EpisodeResult]) -> Chunk | None:
    """Hand over results for the next list of episodes; None when there is none, or nobody to ask."""
    try:
        pipe.send((number, done))
        return pipe.recv()
    except (BrokenPipeError, EOFError):
        return None
