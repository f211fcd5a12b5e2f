"""Trajectories of ManiSkill's `RecordEpisode`: an .h5 file and a .json file of the same name beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vlapost.config import ExchangeConfig, UserError
from vlapost.exchange.trajectory import UNKNOWN, Trajectory, choose, need, read_json

WHAT = "the .h5 file of RecordEpisode, with its .json file beside it"


def read(source: Path, first: int, declared: ExchangeConfig) -> Iterator[Trajectory]:
    """The episodes of a file, from number `first` on. It holds no instructions: `exchange.instruction` gives one.

    Raises:
        UserError: a file is missing or damaged, or leads to other files; pictures or actions are missing, or are no
            vectors of 7.
    """
    if source.suffix != ".h5" or not source.is_file():
        raise UserError(f"{source} is not there or no .h5 file; SOURCE must be {WHAT}.")
    path = source.with_suffix(".json")
    entries = need(read_json(path, WHAT), "episodes", path)
    if not isinstance(entries, list):
        raise UserError(f"The episodes of {path} are no list; SOURCE must be {WHAT}.")
    try:
        with h5py.File(source) as file:
            for entry in entries[first:]:
                yield _trajectory(file, entry, declared.camera, source)
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises
        raise UserError(f"{source} is damaged ({error}); get the file again.") from None


def _trajectory(file: h5py.File, entry: Any, camera: str, source: Path) -> Trajectory:
    name = f"traj_{need(entry, 'episode_id', f'An episode of the .json file of {source}')}"
    where = f"{name} of {source}"
    group = _inside(file, name, where)
    if group is None:
        raise UserError(f"{source} has no {name}, which its .json file lists; get both files again.")
    sensors = _inside(group, "obs/sensor_data", where)
    if not isinstance(sensors, h5py.Group):
        raise UserError(
            f"{where} holds no pictures; add them with: python -m mani_skill.trajectory.replay_trajectory "
            f"--traj-path {source} --use-env-states -o rgb --save-traj"
        )
    films = {key: film for key in sensors if (film := _inside(sensors, f"{key}/rgb", where)) is not None}
    chosen = choose(list(films), camera, where)
    if isinstance(_inside(group, "actions", where), h5py.Group):
        raise UserError(f"The actions of {where} are of several robots; one robot's are needed.")
    action, pictures, success = (
        _array(found) for found in (_inside(group, "actions", where), films[chosen], _inside(group, "success", where))
    )
    if action is None or pictures is None:
        raise UserError(f"{where} has no {'actions' if action is None else 'pictures'}; SOURCE must be {WHAT}.")
    return Trajectory(
        where=where,
        image=list(pictures[: len(action)]),  # one more than there are actions
        action=action,
        instruction="",
        success=None if success is None else success.astype(bool),
        episode_id=_start(entry),
    )


def _inside(group: h5py.Group, path: str, where: str) -> h5py.Group | h5py.Dataset | None:
    """What lies at a path in this very file; None where nothing does.

    Raises:
        UserError: the way there is a link, or the content is kept in other files. What a file of others leads to on
            this machine is not read.
    """
    found = group
    for name in path.split("/"):
        links = found.id.links if isinstance(found, h5py.Group) else None
        if links is None or not links.exists(name.encode()):
            return None
        if links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise UserError(f"'{name}' in {where} is a link; get a file that holds everything itself.")
        found = found[name]
    if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
        raise UserError(f"'{path}' in {where} is kept in other files; get a file that holds everything itself.")
    return found


def _array(found: h5py.Group | h5py.Dataset | None) -> NDArray[Any] | None:
    return np.atleast_1d(found[()]) if isinstance(found, h5py.Dataset) else None


def _start(entry: dict[str, Any]) -> int:
    """The episode id, where one of our own environments was recorded."""
    found: Any = entry
    for key in ("reset_kwargs", "options", "episode_id"):
        found = found.get(key) if isinstance(found, dict) else None
    ids = np.ravel(UNKNOWN if found is None else found)
    return int(ids[0]) if ids.size and ids.dtype.kind == "i" else UNKNOWN
