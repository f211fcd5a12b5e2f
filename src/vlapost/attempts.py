"""Attempts at demonstrations in a process of their own: what a collector's workers do."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING

from vlapost.cli import end_with_parent
from vlapost.config import Config, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlapost.envs.vector import SceneVector
    from vlapost.experience.shards import DemoEpisode, Failure
    from vlapost.planner.demonstrate import Recording
    from vlapost.planner.motion import ArmPlanner


MOST_BROKEN = 3  # in a row: then it is not the attempt


class Worker:
    """What one process keeps between its attempts."""

    cfg: Config
    tools: tuple[SceneVector, ArmPlanner] | None = None
    broken = 0  # attempts in a row that ended with an error


def start(cfg: Config) -> None:
    """First call in every process."""
    import torch

    torch.set_num_threads(1)
    Worker.cfg = cfg
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the collecting command answers
    end_with_parent()


def tools() -> tuple[SceneVector, ArmPlanner]:
    """This process's environment and planner, built by its first attempt so that an error reaches the user."""
    import torch

    from vlapost.drivers import RENDER_BACKEND
    from vlapost.envs.vector import make_env
    from vlapost.planner.motion import ArmPlanner

    if Worker.tools is None:
        if RENDER_BACKEND == "gpu" and torch.cuda.is_available():
            torch.cuda.set_device(os.getpid() % torch.cuda.device_count())  # scenes are drawn on the current one
        env = make_env(Worker.cfg.env, num_envs=1)
        Worker.tools = env, ArmPlanner(env.scenes[0].pack)
    return Worker.tools


def timed_attempt(
    candidate: int, episode_id: int, seed: list[int] | None
) -> tuple[DemoEpisode | Failure, dict[str, float]]:
    """Try one episode in this process.

    seed: of a disturbance (None: there is none), or of how views are laid.

    Returns:
        What came of it, and the seconds it took for "planning", "simulation", "drawing" and "encoding".
    """
    from vlapost.experience.shards import Failure

    env, planner = tools()
    env.drawing = planner.planning = 0.0
    begin = perf_counter()
    result: Recording | str
    try:
        result = record(env, planner, episode_id, seed)
        Worker.broken = 0
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:  # one attempt of many: it would end the same command again and again
        Worker.tools, Worker.broken = None, Worker.broken + 1
        with suppress(Exception):
            env.close()
        if Worker.broken == MOST_BROKEN:
            raise
        result = f"{type(error).__name__}: {error}"
    recorded = perf_counter()
    outcome: DemoEpisode | Failure
    if isinstance(result, str):
        outcome = Failure(candidate, episode_id, result)
    else:
        outcome = as_demo(candidate, episode_id, result)
    spent = {"planning": planner.planning, "drawing": env.drawing, "encoding": perf_counter() - recorded}
    return outcome, {"simulation": recorded - begin - planner.planning - env.drawing, **spent}


def record(env: SceneVector, planner: ArmPlanner, episode_id: int, seed: list[int] | None) -> Recording | str:
    """Demonstrate an episode, or look around in it; a failure is answered by its cause."""
    import numpy as np

    from vlapost.experience.action_filter import steps_to_draw
    from vlapost.planner.demonstrate import demonstrate
    from vlapost.planner.views import look_around

    rng = None if seed is None else np.random.default_rng(seed)
    d = Worker.cfg.demos

    def choose(actions: NDArray[np.float32]) -> NDArray[np.bool_]:
        return steps_to_draw(actions, d.min_translation, d.min_rotation)

    if d.views:
        return look_around(env, planner, episode_id, d.views, np.random.default_rng(seed))
    return demonstrate(env, planner, episode_id, rng, choose if d.frames == "kept" else None)


def as_demo(candidate: int, episode_id: int, result: Recording) -> DemoEpisode:
    """What was recorded of an attempt as it is stored."""
    import numpy as np

    from vlapost.experience.shards import DemoEpisode, encode_image, encode_labels

    drawn = list(zip(result.image, result.truth))
    return DemoEpisode(
        candidate=candidate,
        episode_id=episode_id,
        instruction=result.instruction,
        image=tuple(None if image is None else encode_image(image) for image in result.image),
        segmentation=tuple(None if i is None else encode_labels(t.segmentation[0].numpy()) for i, t in drawn),
        action=result.action,
        gripper_pose=np.stack([truth.gripper_pose[0].numpy() for truth in result.truth]),
        object_position=np.stack([truth.object_position[0].numpy() for truth in result.truth]),
        receptacle_position=np.stack([truth.receptacle_position[0].numpy() for truth in result.truth]),
        qpos=np.stack([truth.qpos[0].numpy() for truth in result.truth]),
        success=result.success,
    )
