"""The critic: a three-layer perceptron on h0, the hidden state that predicts the first action token.

Paper section 4.1: h0 is the best of the places tried. Kaiming-normal initialisation is the one the study declares
(what its code ends up with is N(0, 0.02) everywhere). The last layer starts at zero, so a new critic says 0 everywhere
and the first advantages are sums of rewards, not noise.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ValueHead(nn.Module):
    """hidden -> 512 -> 128 -> 1 with GELU; the last layer has no bias."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.head_l1 = nn.Linear(hidden, 512)
        self.head_l2 = nn.Linear(512, 128)
        self.head_l3 = nn.Linear(128, 1, bias=False)
        for layer in (self.head_l1, self.head_l2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.head_l3.weight)

    def forward(self, h0: Tensor) -> Tensor:
        """`[B, hidden]` to values `[B]`, float32."""
        x = F.gelu(self.head_l1(h0.float()))
        x = F.gelu(self.head_l2(x))
        return self.head_l3(x).squeeze(-1)
