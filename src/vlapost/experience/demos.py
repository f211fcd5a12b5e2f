"""Stored demonstrations: a writer that a collector appends with, a data set that a learner reads from."""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlapost.config import UserError
from vlapost.experience.action_filter import filter_actions
from vlapost.experience.shards import (
    TEMPORARY,
    DemoEpisode,
    DemoMeta,
    Failure,
    Shard,
    decode_image,
    decode_labels,
    list_shards,
    open_shard,
    write_shard,
)


@dataclass(frozen=True)
class Grounding:
    """What is true of B observations, positions in metres in the robot base frame.

    object_position, receptacle_position, gripper_position: `[B, 3]` float32.
    segmentation: `[B, H, W]` uint8, 0 background, 1 robot, 2 object, 3 receptacle.
    """

    object_position: Tensor
    receptacle_position: Tensor
    gripper_position: Tensor
    segmentation: Tensor


class DemoWriter:
    """Appends shards to a folder; one writer at a time.

    Raises:
        UserError: another process writes there, a shard is damaged, or the shards there have other settings.
    """

    def __init__(self, folder: Path, meta: DemoMeta):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.meta = folder, meta
        self._lock = open(folder / ".lock", "w")  # noqa: SIM115  (held until close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another process collects into {folder}; wait or change demos.path.") from None
        (folder / TEMPORARY).unlink(missing_ok=True)
        self.episodes = 0
        self.failures: Counter[str] = Counter()
        self.ranges: list[tuple[int, int]] = []
        for file in list_shards(folder):
            shard = open_shard(file)
            _check_meta(shard, meta)
            self.episodes += len(np.unique(shard.rows.column("candidate")))
            self._count(file.begin, file.end, shard.failures)

    def missing(self) -> list[tuple[int, int]]:
        """Ranges of candidates before the last shard that no shard holds (a deleted shard leaves one)."""
        ends = [0, *(end for _, end in sorted(self.ranges))]
        return [(end, begin) for end, (begin, _) in zip(ends, sorted(self.ranges)) if end < begin]

    def next_candidate(self) -> int:
        """The first candidate behind the last shard."""
        return max((end for _, end in self.ranges), default=0)

    def write(self, begin: int, end: int, episodes: Sequence[DemoEpisode], failures: Sequence[Failure]) -> None:
        """Store candidates `begin` to `end` (exclusive) as one shard: the successes in order, and the failures."""
        write_shard(self.folder, self.meta, begin, end, episodes, failures)
        self.episodes += len(episodes)
        self._count(begin, end, failures)

    def close(self) -> None:
        """Let another process write."""
        self._lock.close()

    def _count(self, begin: int, end: int, failures: Sequence[Failure]) -> None:
        self.ranges.append((begin, end))
        self.failures.update(failure.cause for failure in failures)


class DemoDataset:
    """N samples (observation, action) from the first `episodes` demonstrations of a folder.

    The demonstrations are counted in the order of their attempts, so a smaller number is always a subset of a larger
    one. Images stay on disk and are memory-mapped; only the small arrays are held.

    Args:
        folder: of the shards.
        filter, min_translation, min_rotation: see `action_filter.filter_actions`.
        episodes: how many demonstrations to use; None uses all.

    Attributes:
        meta: the settings of the collection.
        actions: `[N, 7]` float32 filtered actions.
        episode: `[N]` int64, which demonstration (0, 1, ...) a sample is from.
        step: `[N]` int64, its control step.

    Raises:
        UserError: too few demonstrations, a damaged or missing shard, or shards that do not belong together.
    """

    def __init__(
        self,
        folder: Path,
        filter: str,
        min_translation: float,
        min_rotation: float,
        episodes: int | None = None,
    ):
        self._shards: list[Shard] = []
        actions: list[NDArray[np.float32]] = []
        episode: list[NDArray[np.int64]] = []
        location: list[NDArray[np.int64]] = []
        count = expected = 0
        for file in list_shards(folder):
            if episodes is not None and count >= episodes:
                break
            if file.begin != expected:
                gap = f"{expected} to {file.begin - 1}"
                raise UserError(f"{folder} lacks the shard of attempts {gap}; run 'make demos' again.")
            expected = file.end
            shard = open_shard(file)
            if self._shards:
                _check_meta(shard, self._shards[0].meta)
            commands, steps = shard.floats("action"), shard.rows.column("step").to_numpy()
            starts = np.append(np.flatnonzero(steps == 0), len(steps))
            for first, last in zip(starts, starts[1:]):
                if episodes is not None and count >= episodes:
                    break
                kept, filtered = filter_actions(commands[first:last], filter, min_translation, min_rotation)
                actions.append(filtered)
                episode.append(np.full(len(kept), count))
                rows = first + kept
                location.append(np.stack([np.full(len(rows), len(self._shards)), rows, kept], axis=1))
                count += 1
            self._shards.append(shard)
        if count == 0 or (episodes is not None and count < episodes):
            wanted = 1 if episodes is None else episodes
            raise UserError(f"{folder} holds {count} demonstrations, {wanted} are wanted; run 'make demos'.")
        self.meta = self._shards[0].meta
        self.episodes = count
        self.actions = torch.from_numpy(np.concatenate(actions))
        self.episode = torch.from_numpy(np.concatenate(episode))
        self._location = np.concatenate(location)
        self.step = torch.from_numpy(self._location[:, 2].copy())

    def __len__(self) -> int:
        return len(self.actions)

    def observation(self, indices: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Pictures `[B, H, W, 3]` uint8 RGB and instructions of the samples `indices` `[B]` int64."""
        images = [decode_image(self._bytes(i, "image")) for i in indices.tolist()]
        shards = ((self._shards[self._location[i, 0]], int(self._location[i, 1])) for i in indices.tolist())
        instructions = tuple(shard.rows.column("instruction")[row].as_py() for shard, row in shards)
        return torch.from_numpy(np.stack(images)), instructions

    def grounding(self, indices: Tensor) -> Grounding:
        """True positions and labels of the samples `indices` `[B]` int64."""
        return Grounding(
            object_position=self._vectors(indices, "object_position"),
            receptacle_position=self._vectors(indices, "receptacle_position"),
            gripper_position=self._vectors(indices, "gripper_pose")[:, :3],
            segmentation=torch.from_numpy(
                np.stack([decode_labels(self._bytes(i, "segmentation")) for i in indices.tolist()])
            ),
        )

    def statistics(self) -> dict[str, Any]:
        """This data set's entry of an OpenVLA `dataset_statistics.json`.

        The mask excludes the gripper from un-normalisation: its +1/-1 is used as it is.
        """
        actions = self.actions.double().numpy()
        action = {
            "mean": actions.mean(0).tolist(),
            "std": actions.std(0).tolist(),
            "min": actions.min(0).tolist(),
            "max": actions.max(0).tolist(),
            "q01": np.quantile(actions, 0.01, axis=0).tolist(),
            "q99": np.quantile(actions, 0.99, axis=0).tolist(),
            "mask": [True] * 6 + [False],
        }
        return {"action": action, "num_transitions": len(self), "num_trajectories": self.episodes}

    def _bytes(self, index: int, column: str) -> memoryview:
        shard, row, _ = self._location[index]
        return memoryview(self._shards[shard].rows.column(column)[int(row)].as_buffer())

    def _vectors(self, indices: Tensor, column: str) -> Tensor:
        places = self._location[indices.numpy()]
        return torch.from_numpy(np.stack([self._shards[s].floats(column)[row] for s, row, _ in places]))


def _check_meta(shard: Shard, meta: DemoMeta) -> None:
    for item in fields(DemoMeta):
        there, wanted = getattr(shard.meta, item.name), getattr(meta, item.name)
        if there != wanted:
            raise UserError(
                f"{shard.file.path} was collected with {item.name}={there}, not {wanted}; "
                "use another folder (demos.path=...) or the same settings."
            )
