"""Which Vulkan driver renders: the GPU's where there is one, else Mesa's software rasteriser (lavapipe).

Import this before sapien: Vulkan reads the environment when it is first used.
"""

from __future__ import annotations

import os
from pathlib import Path

LAVAPIPE = Path("/usr/share/vulkan/icd.d")
GPU_DEVICES = ("/dev/nvidia0", "/dev/dri/renderD128", "/dev/dxg")


def choose_driver() -> str:
    """Point Vulkan at lavapipe if this machine has no GPU device, unless the user has chosen a driver.

    Returns ManiSkill's render backend: "gpu", or "cpu" for software rendering.
    """
    chosen = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    if chosen:
        return "cpu" if "lvp" in chosen else "gpu"
    if any(Path(device).exists() for device in GPU_DEVICES):
        return "gpu"
    files = sorted(LAVAPIPE.glob("lvp_icd*.json"))
    if files:
        os.environ["VK_DRIVER_FILES"] = str(files[0])
    return "cpu"


RENDER_BACKEND = choose_driver()
