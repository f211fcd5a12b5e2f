"""Actions as 7 tokens of 256 bins (Kim et al. 2024, OpenVLA, section 3.2).

A dimension is scaled from its 1 % .. 99 % range `q01..q99` to -1..1 and cut at 256 equally spaced edges. Bins count
from the lowest value; the vocabulary id of bin b is `31999 - b`. The 256 edges enclose 255 intervals, so the two
highest bins decode to the same number, and no bin decodes to exactly -1 or +1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlapost.config import UserError
from vlapost.contracts import ACTION_BINS, ACTION_DIM

FIRST_ID, LAST_ID = 31744, 31999
GRIPPER = 6
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
MOST_LOST = 0.1  # 0.02 of what the statistics are of; `merge` joins small steps to larger ones


def bin_centres() -> np.ndarray:
    """`[256]` float64: the normalised value of every bin."""
    edges = np.linspace(-1.0, 1.0, ACTION_BINS)
    centres = (edges[:-1] + edges[1:]) / 2.0
    return centres[np.clip(np.arange(ACTION_BINS), 0, ACTION_BINS - 2)]


class ActionTokens(nn.Module):
    """Encode and decode with one data set's statistics.

    Args:
        statistics: data set name to statistics; those of an entry's `action` are used: `q01`, `q99` and `mask`
            (dimensions left as they are when False; all are scaled when it is absent).
        key: the data set (configuration key policy.unnorm_key).

    Raises:
        UserError: unknown key, or no statistics of seven dimensions.
    """

    values: Tensor
    actions: Tensor

    def __init__(self, statistics: dict[str, Any], key: str) -> None:
        super().__init__()
        if key not in statistics:
            known = ", ".join(sorted(statistics)) or "none"
            raise UserError(f"policy.unnorm_key '{key}' is not in the checkpoint's statistics; there are: {known}.")
        try:
            action = {"mask": [True] * ACTION_DIM} | statistics[key]["action"]
            self.low, self.high = (np.array(action[name], dtype=np.float64) for name in ("q01", "q99"))
            self.scaled = np.array(action["mask"], dtype=bool)
            fits = self.low.shape == self.high.shape == self.scaled.shape == (ACTION_DIM,)
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise UserError(
                f"Statistics '{key}' need lists q01 and q99 of {ACTION_DIM} numbers under 'action', and as many "
                "of mask where there is one."
            )
        # [A, V]: what each bin means, before and after the gripper is made +1 or -1.
        values = np.tile(bin_centres(), (ACTION_DIM, 1))
        unscaled = 0.5 * (values + 1.0) * (self.high - self.low)[:, None] + self.low[:, None]
        values = np.where(self.scaled[:, None], unscaled, values)
        actions = values.copy()
        actions[GRIPPER] = np.where(values[GRIPPER] > 0.5, 1.0, -1.0)
        self.register_buffer("values", torch.from_numpy(values), persistent=False)
        self.register_buffer("actions", torch.from_numpy(actions).float(), persistent=False)

    def decode(self, bins: Tensor) -> Tensor:
        """Bins `[B, A]` to actions `[B, A]` float32: metres, radians, gripper +1 open / -1 closed."""
        return self.actions.gather(1, bins.T).T

    def encode(self, action: Tensor) -> Tensor:
        """Actions `[B, A]` to bins `[B, A]` int64; values outside q01..q99 take the outermost bin."""
        raw = action.detach().cpu().numpy().astype(np.float64)
        scaled = 2.0 * (raw - self.low) / (self.high - self.low + 1e-8) - 1.0
        normalised = np.clip(np.where(self.scaled, scaled, raw), -1.0, 1.0)
        bins = np.digitize(normalised, np.linspace(-1.0, 1.0, ACTION_BINS)) - 1
        return torch.from_numpy(bins).to(action.device)

    def lost(self, action: Tensor) -> str:
        """In words, of which dimensions more than `MOST_LOST` of the actions `[B, A]` lie outside q01..q99."""
        raw = action.double().numpy()
        shares = ((raw < self.low) | (raw > self.high)).mean(0) * self.scaled
        return ", ".join(f"{name} {share:.0%}" for name, share in zip(NAMES, shares) if share > MOST_LOST)
