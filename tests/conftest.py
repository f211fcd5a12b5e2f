from collections.abc import Iterator

import pytest
import torch

from vlapost.config import load
from vlapost.envs.vector import SceneVector, make_env


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Training sets the precision of products for its whole process; the next test starts with the default."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.enable_flash_sdp(True)


@pytest.fixture(scope="session")
def env() -> Iterator[SceneVector]:
    """Two scenes of the benchmark at 128x128, shared by all tests of a process; reset it before use."""
    torch.set_num_threads(1)
    shared = make_env(load("base", ["env.obj_set=train", "env.image_size=[128,128]"]).env, 2)
    yield shared
    shared.close()
