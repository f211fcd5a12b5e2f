"""Trajectories of ManiSkill's `RecordEpisode`: an .h5 file and a .json file of the same name beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vlapost.config import ExchangeConfig, UserError
from vlapost.exchange.trajectory import UNKNOWN, Trajectory, choose, read_json

WHAT = "the .h5 file of RecordEpisode, with its .json file beside it"


def read(source: Path, first: int, declared: ExchangeConfig) -> Iterator[Trajectory]:
    """The episodes of a file, from number `first` on. It holds no instructions: `exchange.instruction` gives one.

    Raises:
        UserError: a file is missing or damaged; pictures or actions are missing, or are no vectors of 7.
    """
    if source.suffix != ".h5" or not source.is_file():
        raise UserError(f"{source} is not there or no .h5 file; SOURCE must be {WHAT}.")
    notes = read_json(source.with_suffix(".json"), WHAT)
    try:
        with h5py.File(source) as file:
            for entry in notes["episodes"][first:]:
                yield _trajectory(file, entry, declared.camera, source)
    except OSError as error:
        raise UserError(f"{source} is damaged ({error}); get the file again.") from None


def _trajectory(file: h5py.File, entry: dict[str, Any], camera: str, source: Path) -> Trajectory:
    name = f"traj_{entry['episode_id']}"
    where = f"{name} of {source}"
    if name not in file:
        raise UserError(f"{source} has no {name}, which its .json file lists; get both files again.")
    group = file[name]
    if "obs/sensor_data" not in group:
        raise UserError(
            f"{where} holds no pictures; add them with: python -m mani_skill.trajectory.replay_trajectory "
            f"--traj-path {source} --use-env-states -o rgb --save-traj"
        )
    sensors = group["obs/sensor_data"]
    chosen = choose([key for key in sensors if "rgb" in sensors[key]], camera, where)
    if not isinstance(group["actions"], h5py.Dataset):
        raise UserError(f"The actions of {where} are of several robots; one robot's are needed.")
    action = group["actions"][:]
    pictures = sensors[chosen]["rgb"][: len(action)]  # one more than there are actions
    return Trajectory(
        where=where,
        image=list(pictures),
        action=action,
        instruction="",
        success=group["success"][:].astype(bool) if "success" in group else None,
        episode_id=_start(entry),
    )


def _start(entry: dict[str, Any]) -> int:
    """The episode id, where one of our own environments was recorded."""
    options = entry.get("reset_kwargs", {}).get("options") or {}
    ids = np.ravel(options.get("episode_id", UNKNOWN))
    return int(ids[0])
