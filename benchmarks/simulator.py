"""Environment steps per second, with contacts and overlay, in one process and in several."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import all_here, at_once
from vlapost.config import EnvConfig
from vlapost.envs.setups import setup_of
from vlapost.envs.vector import SceneVector, make_env

RUNS = 5
SCENES = 2  # per process
STEPS = 80


def measure(cfg: EnvConfig, image_size: tuple[int, int], processes: int) -> dict[str, Any]:
    """Median over five episodes of the control steps per second of all processes together, and of a reset's time.

    Raises:
        UserError: what stopped a process, or that one died.
    """
    cfg = replace(cfg, image_size=list(image_size), num_envs=SCENES)
    measured = at_once(_measure, [(cfg, rank) for rank in range(processes)])
    rates = [sum(rate) for rate in zip(*(rates for rates, _ in measured))]
    return {
        "image": f"{image_size[1]}x{image_size[0]}",
        "processes": processes,
        "scenes_per_process": SCENES,
        "steps_per_episode": STEPS,
        "episodes": RUNS,
        "steps_per_s": median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "ms_per_step": 1000 * processes / median(rates),
        "reset_ms": 1000 * median(second for _, resets in measured for second in resets) / SCENES,
    }


def _measure(cfg: EnvConfig, rank: int) -> tuple[list[float], list[float]]:
    """Control steps per second and seconds of a reset, of each counted episode."""
    env = make_env(cfg)
    ids = (torch.arange(RUNS + 1)[:, None] * 50_179 + torch.arange(SCENES) * 7 + rank * 1013) % setup_of(cfg).total
    _episode(env, ids[0])  # not counted: first pictures, caches
    rates, resets = [], []
    for episode in ids[1:]:
        all_here()
        seconds, reset_seconds = _episode(env, episode)
        rates.append(STEPS * SCENES / seconds)
        resets.append(reset_seconds)
    env.close()
    return rates, resets


def _episode(env: SceneVector, ids: Tensor) -> tuple[float, float]:
    """Seconds of the steps and of the reset."""
    start = perf_counter()
    env.reset(ids)
    ready = perf_counter()
    for step in range(STEPS):
        env.step(scripted_action(env, step))
    return perf_counter() - ready, ready - start


def scripted_action(env: SceneVector, step: int) -> Tensor:
    """Reach for the object, press, close, lift, carry to the receptacle, let go: `[E, 7]`, from the true positions."""
    truth = env.ground_truth()
    goal = truth.object_position.clone()
    if step >= 45:
        goal = truth.receptacle_position.clone()
    goal[:, 2] += 0.0 if 15 <= step < 32 else 0.10
    action = torch.zeros(len(goal), 7)
    action[:, :3] = (goal - truth.gripper_pose[:, :3]).clamp(-0.02, 0.02)
    action[:, 6] = -1.0 if 28 <= step < 65 else 1.0
    return action
