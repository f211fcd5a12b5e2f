"""Which GPUs compute, and which Vulkan driver renders: NVIDIA's where it is complete, else Mesa's software (lavapipe).

    python -m vlapost.drivers        # prints gpu or cpu; scripts/setup.sh asks this too

Import this before the first use of sapien: Vulkan reads the environment then.
"""

from __future__ import annotations

import os
from ctypes.util import find_library
from pathlib import Path

from vlapost.config import UserError

DEVICES = Path("/dev")
ICD_FOLDERS = (Path("/usr/share/vulkan/icd.d"), Path("/etc/vulkan/icd.d"))


def icds(pattern: str) -> list[Path]:
    """Installed Vulkan driver descriptions whose file name matches."""
    return sorted(file for folder in ICD_FOLDERS for file in folder.glob(pattern))


def gpu_can_draw() -> bool:
    """Whether there are an NVIDIA device and its graphics driver; containers often have its compute libraries alone."""
    has_device = any(DEVICES.glob("nvidia[0-9]*")) or (DEVICES / "dxg").exists()  # a container may have the third alone
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


def gpus(accelerator: str) -> int:
    """How many GPUs there are to compute on; with `trainer.accelerator=cpu` none.

    Raises:
        UserError: there are some that PyTorch cannot use.
    """
    import torch

    count = 0 if accelerator == "cpu" else torch.cuda.device_count()
    if count and not torch.cuda.is_available():  # the driver counts them, CUDA does not start
        raise UserError(
            f"There are {count} GPU(s), but PyTorch {torch.__version__} cannot use them with this NVIDIA driver; "
            "update the driver, install a PyTorch for its CUDA version, or set trainer.accelerator=cpu."
        )
    return count


RENDER_BACKEND = choose_driver()

if __name__ == "__main__":
    print(RENDER_BACKEND)
