"""Run by test_lerobot.py with the Python of another environment, in which the real `lerobot` package is installed.

python lerobot_check.py EXPORTED FOLDER: EXPORTED is our data set, FOLDER holds truth0.npz, ... and gets images/ and
videos/, data sets that lerobot itself writes from the same numbers.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy

try:  # lerobot 0.6
    from lerobot.utils.feature_utils import dataset_to_policy_features
except ImportError:  # 0.4
    from lerobot.datasets.utils import dataset_to_policy_features

CAMERA = "observation.images.camera"


def check_frames(data, truths):
    assert (data.num_episodes, len(data), data.fps) == (3, 12, 5)
    index = 0
    for number, truth in enumerate(truths):
        row = data.meta.episodes[number]
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (index, index + len(truth["action"]))
        for step in range(len(truth["action"])):
            item = data[index]
            picture = (item[CAMERA] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(picture, truth["image"][step])
            np.testing.assert_array_equal(item["action"].numpy(), truth["action"][step])
            np.testing.assert_array_equal(item["observation.state"].numpy(), truth["state"][step])
            assert item["task"] == str(truth["task"])
            assert (int(item["episode_index"]), int(item["frame_index"]), int(item["index"])) == (number, step, index)
            assert bool(item["next.success"]) == (step == len(truth["action"]) - 1)
            index += 1


def check_parts(folder, truths):
    """Some episodes alone, and the actions behind a step, which end with their episode."""
    one = LeRobotDataset("test/ours", root=folder, episodes=[1])
    assert len(one) == len(truths[1]["action"]) and one[0]["task"] == str(truths[1]["task"])
    chunks = LeRobotDataset("test/ours", root=folder, delta_timestamps={"action": [0, 0.2, 0.4, 0.6]})
    item = chunks[3]
    assert item["action_is_pad"].tolist() == [False, False, True, True]
    np.testing.assert_array_equal(item["action"][:2].numpy(), truths[0]["action"][3:5])


def check_training(folder):
    """Batches of a DataLoader and steps of a policy of lerobot, normalised by our stats.json."""
    data = LeRobotDataset("test/ours", root=folder, delta_timestamps={"action": [0.2 * i for i in range(4)]})
    features = dataset_to_policy_features(data.meta.features)
    outputs = {key: feature for key, feature in features.items() if feature.type is FeatureType.ACTION}
    inputs = {key: feature for key, feature in features.items() if key not in outputs}
    assert set(inputs) == {CAMERA, "observation.state"} and set(outputs) == {"action"}
    config = ACTConfig(
        input_features=inputs, output_features=outputs, chunk_size=4, n_action_steps=4, dim_model=32, n_heads=2,
        dim_feedforward=64, n_encoder_layers=1, n_vae_encoder_layers=1, pretrained_backbone_weights=None, device="cpu",
    )  # fmt: skip
    torch.manual_seed(0)
    policy = ACTPolicy(config)
    optimiser = torch.optim.AdamW(policy.parameters(), 1e-3)
    stats = {key: torch.tensor(value, dtype=torch.float32) for key, value in data.meta.stats["action"].items()}
    losses = []
    for _ in range(5):
        for batch in torch.utils.data.DataLoader(data, batch_size=6, shuffle=True):
            assert batch[CAMERA].shape == (6, 3, 24, 32) and batch["action"].shape == (6, 4, 7)
            assert len(batch["task"]) == 6
            batch["action"] = (batch["action"] - stats["mean"]) / stats["std"]
            loss, _ = policy(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < np.mean(losses[:2]), losses


def write(folder, truths, kind):
    """The same episodes as lerobot itself writes them; its default video codec needs larger pictures."""
    scale = 4 if kind == "video" else 1
    shape = (24 * scale, 32 * scale, 3)
    features = {
        "observation.images.front": {"dtype": kind, "shape": shape, "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }
    video = kind == "video"
    data = LeRobotDataset.create("test/theirs", fps=5, features=features, root=folder, use_videos=video)
    for truth in truths:
        for picture, action in zip(truth["shade" if video else "image"], truth["action"], strict=True):
            larger = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            data.add_frame({"observation.images.front": larger, "action": action, "task": str(truth["task"])})
        data.save_episode()
    data.finalize()


exported, work = map(Path, sys.argv[1:])
loaded = [np.load(work / f"truth{i}.npz") for i in range(3)]
check_frames(LeRobotDataset("test/ours", root=exported), loaded)
check_parts(exported, loaded)
check_training(exported)
write(work / "images", loaded, "image")
write(work / "videos", loaded, "video")
print("lerobot opens, trains on and writes what it should")
