"""The critic: a three-layer perceptron on h0, the hidden state that predicts the first action token.

Paper section 4.1: h0 is the best of the places tried. Kaiming-normal initialisation is the one the study declares
(what its code ends up with is N(0, 0.02) everywhere). The last layer starts at zero, so a new critic says 0 everywhere
and the first advantages are sums of rewards, not noise.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlapost.config import UserError
from vlapost.contracts import ACTION_DIM, STATE_DIM
from vlapost.policies.files import read_notes, read_tensors, write_tensors

VALUE_HEAD, TRAINING_STATE = "value_head.safetensors", "training_state.pt"


def critic_width(critic: str, hidden: int) -> int:
    """How many numbers a critic reads that is of the kind `policy.critic`."""
    return {"all": hidden * ACTION_DIM, "state": STATE_DIM}.get(critic, hidden)


def critic_input(critic: str, hidden_BAD: Tensor, state: Tensor | None) -> Tensor:
    """What a critic of that kind reads: of the hidden states that predict the action tokens, or the state."""
    if critic == "state":
        assert state is not None
        return state.to(hidden_BAD.device)
    return {"hn": hidden_BAD[:, -1], "all": hidden_BAD.flatten(1)}.get(critic, hidden_BAD[:, 0])


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


def save_value_head(head: ValueHead, folder: Path, critic: str) -> None:
    """Write a critic of the kind `policy.critic` beside an adapter."""
    tensors = {name: tensor.cpu() for name, tensor in head.state_dict(prefix="value_head.").items()}
    write_tensors(tensors, folder / VALUE_HEAD, {"critic": critic})


def load_value_head(head: ValueHead, folder: Path, critic: str) -> None:
    """Give a critic of the kind `critic` the weights that lie beside an adapter; without any it stays as it is.

    Ours are in value_head.safetensors; the study's are in training_state.pt under 'vh' (beside optimiser states, which
    are not read). That file is a pickle: it is read with `weights_only`, which makes tensors and runs nothing.

    Raises:
        UserError: the file is damaged, holds more than tensors, a critic of another kind, or does not fit the
            checkpoint.
    """
    path = folder / VALUE_HEAD
    if path.is_file():
        found = {name.removeprefix("value_head."): tensor for name, tensor in read_tensors(path).items()}
        if (kind := read_notes(path).get("critic", critic)) != critic:
            raise UserError(
                f"{path} is a critic of the kind {kind}, but policy.critic is {critic}; set policy.critic={kind}, or "
                "delete the file to start with a new critic."
            )
    elif (path := folder / TRAINING_STATE).is_file():
        found = _from_training_state(path)
    else:
        return
    if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in head.state_dict().items()}:
        raise UserError(f"{path} does not fit the checkpoint; delete it to start with a new critic.")
    head.load_state_dict(found)


def _from_training_state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise UserError(
            f"{path} is truncated, of PyTorch's old format, or holds more than tensors; nothing in it is executed: "
            "delete it to start with a new critic, or copy it again."
        ) from None
    head = state.get("vh") if isinstance(state, dict) else None
    if not isinstance(head, dict) or not all(torch.is_tensor(value) for value in head.values()):
        raise UserError(f"{path} has no value head under 'vh'; delete it to start with a new critic.")
    return head
