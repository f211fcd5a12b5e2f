"""Stored demonstrations as a data set that a learner reads from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlapost.config import UserError
from vlapost.experience.action_filter import filter_actions
from vlapost.experience.shards import Shard, ShardFile, decode_image, decode_labels
from vlapost.experience.verified import in_order


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


class DemoDataset:
    """N samples (observation, action) from the first `episodes` demonstrations of a folder.

    The demonstrations are counted in the order of their attempts, so a smaller number is always a subset of a larger
    one. Images stay on disk and are memory-mapped; only the small arrays are held (5 kB per demonstration).

    Args:
        folder: of the shards.
        filter, min_translation, min_rotation: see `action_filter.filter_actions`.
        episodes: how many demonstrations to use; None uses all.
        skip_corrupt: leave damaged shards out instead of refusing them.

    Attributes:
        meta: the settings of the collection.
        actions: `[N, 7]` float32 filtered actions.
        episode: `[N]` int64, which demonstration (0, 1, ...) a sample is from.
        step: `[N]` int64, its control step.
        skipped: the damaged shards that were left out.

    Raises:
        UserError: too few demonstrations, a damaged or missing shard, shards that do not belong together, or pictures
            that were not drawn.
    """

    def __init__(
        self,
        folder: Path,
        filter: str,
        min_translation: float,
        min_rotation: float,
        episodes: int | None = None,
        skip_corrupt: bool = False,
    ):
        self._shards: list[Shard] = []
        self.skipped: list[ShardFile] = []
        actions: list[NDArray[np.float32]] = []
        episode: list[NDArray[np.int64]] = []
        location: list[NDArray[np.int64]] = []
        count = 0
        for shard in in_order(folder, skip_corrupt, self.skipped.append):
            for first, last in shard.spans()[: None if episodes is None else episodes - count]:
                kept, filtered = filtered_steps(shard, first, last, filter, min_translation, min_rotation)
                actions.append(filtered)
                episode.append(np.full(len(kept), count))
                location.append(np.stack([np.full(len(kept), len(self._shards)), first + kept, kept], axis=1))
                count += 1
            self._shards.append(shard)
            if episodes is not None and count >= episodes:
                break
        if count == 0 or (episodes is not None and count < episodes):
            wanted = 1 if episodes is None else episodes
            lost = f" besides {len(self.skipped)} damaged shards" if self.skipped else ""
            raise UserError(f"{folder} holds {count} demonstrations{lost}, {wanted} are wanted; run 'make demos'.")
        self.meta = self._shards[0].meta
        self.episodes = count
        self.actions = torch.from_numpy(np.concatenate(actions))
        if not len(self.actions):
            raise UserError(
                f"No step of the {count} demonstrations in {folder} is left by demos.filter={filter} with "
                f"demos.min_translation={min_translation} and demos.min_rotation={min_rotation}; take another filter."
            )
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


def filtered_steps(
    shard: Shard, first: int, last: int, filter: str, min_translation: float, min_rotation: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`action_filter.filter_actions` of the demonstration in rows `first` to `last` (exclusive) of a shard.

    Raises:
        UserError: a kept step has no picture.
    """
    kept, filtered = filter_actions(shard.floats("action")[first:last], filter, min_translation, min_rotation)
    drawn = shard.rows.column("image").slice(first, last - first).is_valid().to_numpy(False)
    if not drawn[kept].all():
        raise UserError(
            f"{shard.file.path} has no picture of some steps that demos.filter={filter} keeps with "
            f"demos.min_translation={min_translation} and demos.min_rotation={min_rotation}; take merge or "
            "drop and the thresholds it was collected with, or collect with demos.frames=all elsewhere."
        )
    return kept, filtered
