from collections.abc import Iterator

import pytest
import torch

from vlapost.config import load
from vlapost.envs.vector import SceneVector, make_env


@pytest.fixture(scope="session")
def env() -> Iterator[SceneVector]:
    """Two scenes of the benchmark at 128x128, shared by all tests of a process; reset it before use."""
    torch.set_num_threads(1)
    shared = make_env(load("base", ["env.image_size=[128,128]"]).env, 2)
    yield shared
    shared.close()
