"""Which Vulkan driver renders: NVIDIA's where it is complete, else Mesa's software rasteriser (lavapipe).

    python -m vlapost.drivers        # prints gpu or cpu; scripts/setup.sh asks this too

Import this before the first use of sapien: Vulkan reads the environment then.
"""

from __future__ import annotations

import os
from ctypes.util import find_library
from pathlib import Path

ICD_FOLDERS = (Path("/usr/share/vulkan/icd.d"), Path("/etc/vulkan/icd.d"))
GPU_DEVICES = (Path("/dev/nvidia0"), Path("/dev/dxg"))


def icds(pattern: str) -> list[Path]:
    """Installed Vulkan driver descriptions whose file name matches."""
    return sorted(file for folder in ICD_FOLDERS for file in folder.glob(pattern))


def gpu_can_draw() -> bool:
    """Whether there are an NVIDIA device and its graphics driver; containers often have its compute libraries alone."""
    has_device = any(device.exists() for device in GPU_DEVICES)
    return has_device and (bool(icds("nvidia*.json")) or find_library("GLX_nvidia") is not None)


def choose_driver() -> str:
    """Point Vulkan at lavapipe if no GPU can draw, unless the user has chosen a driver.

    Returns ManiSkill's render backend: "gpu", or "cpu" for software rendering.
    """
    chosen = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    if chosen:
        return "cpu" if "lvp" in chosen else "gpu"
    if gpu_can_draw():
        return "gpu"
    software = icds("lvp_icd*.json")
    if software:
        os.environ["VK_DRIVER_FILES"] = str(software[0])
    return "cpu"


RENDER_BACKEND = choose_driver()

if __name__ == "__main__":
    print(RENDER_BACKEND)
