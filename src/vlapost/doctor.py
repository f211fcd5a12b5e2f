"""Is this machine ready? `make doctor` says it in plain words, one line per check, with what to do where it is not.

Each check runs in a process of its own, so that one that crashes (a Vulkan driver can) is reported like any other.
Exit code 1 if any check fails.
"""

from __future__ import annotations

import configparser
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter

from vlapost import cli, config
from vlapost.config import ROOT, UserError

TIMEOUT = 300  # seconds; the first simulator start may generate the assets


@dataclass(frozen=True)
class Check:
    """run: returns what it found; raises UserError with the fix. remedy: what to do if it crashes."""

    run: Callable[[], str]
    remedy: str


def run(words: list[str]) -> None:
    """All checks; or, in a child process, the one that is named."""
    if words:
        if words[0] not in CHECKS:
            raise UserError(f"There is no check '{words[0]}'; there are: {', '.join(CHECKS)}.")
        print(CHECKS[words[0]].run())
        return
    failures = 0
    for name, check in CHECKS.items():
        command = [sys.executable, "-m", "vlapost.doctor", name]
        healthy, text = judge(command, check.remedy)
        failures += not healthy
        print(line(name, healthy, text), flush=True)
    if failures:
        print(f"\n{failures} of {len(CHECKS)} checks failed.")
        sys.exit(1)
    print("\nEverything is ready.")


def judge(command: list[str], remedy: str) -> tuple[bool, str]:
    """Run one check's process: is all well, and the sentence to show."""
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {TIMEOUT} s; {remedy}"
    output, errors = child.stdout.strip().splitlines(), child.stderr.strip().splitlines()
    if child.returncode == 0:
        return True, output[-1]
    if child.returncode == 2 and errors:
        return False, errors[-1].removeprefix("Error: ")
    if child.returncode < 0:
        return False, f"crashed with {signal.Signals(-child.returncode).name}; {remedy}"
    return False, f"{errors[-1] if errors else f'exit code {child.returncode}'}; {remedy}"


def line(name: str, healthy: bool, text: str) -> str:
    """One check as it is printed."""
    return f"{'ok  ' if healthy else 'FAIL'}  {name:<12} {text}"


def check_packages() -> str:
    """Python and every requirement of setup.cfg."""
    from packaging.requirements import Requirement

    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        raise UserError(
            f"Python is {platform.python_version()}; it must be 3.10 to 3.12: delete .venv and run make setup."
        )
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    words = parser["options"]["install_requires"].splitlines()
    requirements = [Requirement(word) for word in words if word.strip()]
    wrong = []
    for requirement in requirements:
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found):
            wrong.append(f"{requirement.name} is {found or 'missing'}, not {requirement.specifier or 'installed'}")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; run .venv/bin/pip install -e .")
    if _version("torchvision"):
        raise UserError("torchvision is installed and breaks imports; run .venv/bin/pip uninstall torchvision.")
    return f"Python {platform.python_version()}, {len(requirements)} required packages in versions that fit"


def check_torch() -> str:
    """Where the model will compute."""
    import torch

    from vlapost.drivers import gpus

    if gpus("auto"):
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.__version__} on GPU: {torch.cuda.get_device_name(0)}, {gib:.0f} GiB"
    return f"{torch.__version__} on CPU (no GPU found; the small model trains here)"


def check_vulkan() -> str:
    """What the simulator draws with."""
    from vlapost.drivers import RENDER_BACKEND  # before sapien  # isort: skip
    import sapien

    summary = sapien.render.get_device_summary().splitlines()
    names = [text.split(":", 1)[1].strip() for text in summary if text.startswith("GPU:")]
    if not names:
        raise UserError("no Vulkan driver that can render was found; run make setup.")
    if RENDER_BACKEND == "gpu":
        return f"GPU: {names[0]}"
    mesa = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "mesa-vulkan-drivers"], capture_output=True, text=True
    ).stdout
    return f"software: {names[0]}, Mesa {mesa or 'of unknown version'}"


def check_assets() -> str:
    """Asset packs: every file against its checksum."""
    from vlapost.assets.pack import open_pack, verify

    packs = ["procedural"] + (["paper"] if os.environ.get("VLAPOST_ASSETS") else [])
    counts = [f"{name}: {verify(open_pack(name))} files intact" for name in packs]
    return ", ".join(counts) + ("" if len(packs) == 2 else "; paper: VLAPOST_ASSETS is not set (not needed)")


def check_simulator() -> str:
    """A real episode start and some steps."""
    import torch

    from vlapost.envs.vector import make_env

    torch.set_num_threads(1)
    start = perf_counter()
    env = make_env(config.load("base").env, num_envs=1)
    image = env.reset(torch.tensor([0])).image
    ready = perf_counter()
    for _ in range(20):
        env.step(torch.tensor([[0.0, 0, 0, 0, 0, 0, 1]]))
    milliseconds = (perf_counter() - ready) / 20 * 1000
    env.close()
    if image.float().std() < 1:
        raise UserError("the simulator draws an empty picture; run make setup to install another Vulkan driver.")
    height, width = image.shape[1:3]
    return f"{milliseconds:.0f} ms per step at {width}x{height}, {ready - start:.1f} s to start"


def check_planner() -> str:
    """The motion planner on the robot: 5 cm upwards from the start."""
    import numpy as np

    from vlapost.assets.pack import open_pack
    from vlapost.planner.motion import ArmPlanner

    planner = ArmPlanner(open_pack(config.load("base").env.assets))
    qpos = np.array([-0.0184, 0.0399, 0.2224, -0.0046, 1.3652, 0.0015, 0.037, 0.037])
    position, rotation = planner.pose(qpos)
    start = perf_counter()
    if planner.plan(qpos, position + np.array([0, 0, 0.05]), rotation) is None:
        raise UserError("the planner finds no way up 5 cm; run .venv/bin/pip install -e .")
    return f"mplib {version('mplib')} plans in {(perf_counter() - start) * 1000:.0f} ms"


def check_policy() -> str:
    """The default checkpoint: loads and acts."""
    import torch

    from vlapost.contracts import Observation
    from vlapost.policies.load import load_policy

    c = config.load("base")
    policy = load_policy(c.policy, "cpu", torch.float32)
    height, width = c.env.image_size
    image = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    policy.act(Observation(image, ("put carrot on plate",)), None)
    millions = sum(parameter.numel() for parameter in policy.parameters()) / 1e6
    return f"{c.policy.checkpoint} loads and acts, {millions:.1f} M parameters"


def check_machine() -> str:
    """Cores, memory, disk."""
    import psutil

    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(ROOT).free / 2**30
    if memory.available / 2**30 < 4:
        raise UserError(f"only {memory.available / 2**30:.1f} GiB of memory are free and 4 are needed; end programs.")
    if disk < 2:
        raise UserError(f"only {disk:.1f} GiB are free on the disk of {ROOT} and 2 are needed; free some space.")
    return f"{cores} cores, {memory.total / 2**30:.0f} GiB memory, {disk:.0f} GiB free on disk"


def check_tensorboard() -> str:
    """TensorBoard starts, and whether its usual port is free."""
    from tensorboard import main  # noqa: F401  (its import is the check)

    with socket.socket() as probe:
        used = probe.connect_ex(("localhost", 6006)) == 0
    note = "port 6006 is in use: make tensorboard PORT=6007" if used else "port 6006 is free"
    return f"TensorBoard {version('tensorboard')}, {note}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


_REINSTALL = "delete .venv and run make setup"
CHECKS = {
    "packages": Check(check_packages, _REINSTALL),
    "torch": Check(check_torch, _REINSTALL),
    "machine": Check(check_machine, _REINSTALL),
    "assets": Check(check_assets, "delete data/assets and run make doctor again"),
    "vulkan": Check(check_vulkan, "run make setup, which installs a Vulkan driver that works"),
    "simulator": Check(check_simulator, "run make setup, which installs a Vulkan driver that works"),
    "planner": Check(check_planner, "mplib needs numpy 1.26.4: run .venv/bin/pip install -e ."),
    "policy": Check(check_policy, "restore models/openvla-tiny from git, or make it again with make pretrain"),
    "tensorboard": Check(check_tensorboard, "run .venv/bin/pip install -e ."),
}

if __name__ == "__main__":
    cli.main(run)
