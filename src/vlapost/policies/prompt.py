"""Instructions to token ids.

The prompt is `In: What action should the robot take to {instruction}?\\nOut: ` whose last space is a token of its own,
id 29871: the position that predicts the first action token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vlapost.config import UserError

BOS, SPACE, PAD = 1, 29871, 32000


class Prompts:
    """Tokenises each instruction once.

    Args:
        tokenizer: path of the checkpoint's `tokenizer.json`.

    Raises:
        UserError: the file is missing or unreadable, or its prompts do not start with BOS (id 1).
    """

    def __init__(self, tokenizer: Path) -> None:
        if not tokenizer.is_file():
            raise UserError(f"{tokenizer} is missing; a checkpoint folder in OpenVLA's layout must contain it.")
        try:
            self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
        except Exception as error:  # the Rust parser raises bare Exception
            raise UserError(f"{tokenizer} is not a tokenizer file ({error}); copy it again.") from None
        self.path = tokenizer
        self.cache: dict[str, list[int]] = {}
        if self.ids("")[0] != BOS:
            raise UserError(f"{tokenizer} does not put BOS (id {BOS}) first; it is not a Llama-2 tokenizer.")

    def ids(self, instruction: str) -> list[int]:
        """Token ids of the whole prompt, BOS first, 29871 last."""
        if instruction not in self.cache:
            text = f"In: What action should the robot take to {instruction}?\nOut:"
            self.cache[instruction] = [*self._tokenizer(text)["input_ids"], SPACE]
        return self.cache[instruction]

    def batch(self, instructions: Sequence[str], device: torch.device, multiple: int = 1) -> tuple[Tensor, Tensor]:
        """Prompts without BOS, padded on the left to the longest, or on to the next multiple of `multiple`.

        Returns:
            ids: `[B, L]` int64. mask: `[B, L]` bool, False at padding.
        """
        rows = [self.ids(instruction)[1:] for instruction in instructions]
        length = -(-max(len(row) for row in rows) // multiple) * multiple
        ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(length, device=device) >= (length - lengths)[:, None]
        return ids, mask
