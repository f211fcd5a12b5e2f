"""The simulator's benchmark: what it reports, and that a failing process ends it."""

from __future__ import annotations

import pytest
from benchmarks import simulator

from vlapost.config import UserError, load


@pytest.mark.sim
def test_a_failing_process_shows_its_reason_and_nothing_hangs() -> None:
    cfg = load("base", ["env.shader=rt"]).env
    with pytest.raises(UserError, match=r"env\.shader is 'rt'"):
        simulator.measure(cfg, (32, 32), 2)
