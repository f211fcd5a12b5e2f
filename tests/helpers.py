"""What several test files need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from vlapost.experience.shards import DemoEpisode, encode_image, encode_labels

if TYPE_CHECKING:
    from vlapost.policies.policy import OpenVLAPolicy


def with_effect(policy: OpenVLAPolicy, std: float = 0.1) -> OpenVLAPolicy:
    """The policy with adapters and critic that are not zero, so that they matter."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or "head_l3" in name:
                parameter.normal_(std=std)
    return policy


def random_pictures(seed: int, steps: int) -> NDArray[np.uint8]:
    """`[T, 24, 32, 3]`, so that nothing but a lossless copy is equal."""
    return np.random.default_rng(seed).integers(0, 256, (steps, 24, 32, 3), dtype=np.uint8)


def random_episode(candidate: int, instruction: str, gripper: list[int], rng: np.random.Generator) -> DemoEpisode:
    """A demonstration of a step per value of `gripper`: numbers from `rng`, pictures of `random_pictures`."""
    steps = len(gripper)
    pictures = random_pictures(candidate, steps)
    action = rng.normal(0, 0.02, (steps, 7)).astype(np.float32)
    action[:, 6] = gripper
    return DemoEpisode(
        candidate=candidate,
        episode_id=1000 + candidate,
        instruction=instruction,
        image=tuple(encode_image(picture) for picture in pictures),
        segmentation=tuple(encode_labels(picture[..., 0] % 4) for picture in pictures),
        action=action,
        gripper_pose=rng.normal(size=(steps, 7)).astype(np.float32),
        object_position=rng.normal(size=(steps, 3)).astype(np.float32),
        receptacle_position=rng.normal(size=(steps, 3)).astype(np.float32),
        qpos=rng.normal(size=(steps, 8)).astype(np.float32),
        success=np.arange(steps) == steps - 1,
    )
