from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlapost.config import load
from vlapost.envs.vector import SceneVector, make_env

torch.set_num_threads(1)  # as in the processes of a run, whichever files are tested


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Training sets the precision of products for its whole process; the next test starts with the default."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.enable_flash_sdp(True)


@pytest.fixture(scope="session")
def env() -> Iterator[SceneVector]:
    """Two scenes of the benchmark at 128x128, shared by all tests of a process; reset it before use."""
    shared = make_env(load("base", ["env.obj_set=train", "env.image_size=[128,128]"]).env, 2)
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained openvla-tiny whose actions cover a few centimetres."""
    from vlapost.policies.tiny import write_tiny

    folder = tmp_path_factory.mktemp("models") / "openvla-tiny"
    action = {
        "q01": [-0.03] * 3 + [-0.2] * 3 + [-1.0],
        "q99": [0.03] * 3 + [0.2] * 3 + [1.0],
        "mask": [True] * 6 + [False],
    }
    write_tiny(folder, 0, {"world": {"action": action}})
    return folder


@pytest.fixture
def lowering_pays(env: SceneVector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs share the scenes of the session (a reset rebuilds them), and are paid for lowering the hand, 10 per metre.

    An untrained policy never earns a reward of the benchmark, so that nothing could be learned.
    """
    step = type(env).step
    monkeypatch.setattr(env, "step", lambda action, look=True: replace(step(env, action), reward=-10 * action[:, 2]))
    monkeypatch.setattr("vlapost.build.make_env", lambda cfg: env)
    monkeypatch.setattr(env, "close", lambda: None)
