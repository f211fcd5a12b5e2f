"""Where a checkpoint is: a folder here, or a repository of the Hugging Face Hub, of which only data is fetched."""

from __future__ import annotations

import errno
import re
from functools import cache
from pathlib import Path

from vlapost.config import UserError

DATA_ONLY = ["*.json", "*.safetensors"]  # never code, never a pickle
_OWNER_AND_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def locate(checkpoint: str, root: Path) -> Path:
    """The folder of a checkpoint; 'owner/name' that is no folder below `root` is fetched from the Hub (once).

    Raises:
        UserError: the Hub cannot be reached or has no such repository; the sentence says what to put where.
    """
    folder = root / checkpoint
    return _fetch(checkpoint, folder) if on_hub(checkpoint, root) else folder


def on_hub(checkpoint: str, root: Path) -> bool:
    """Whether 'owner/name' is no folder below `root`, nor one that is missing beside others of the owner."""
    if not _OWNER_AND_NAME.fullmatch(checkpoint):
        return False
    return not (root / checkpoint).is_dir() and not (root / checkpoint.split("/")[0]).is_dir()


def name_of(folder: Path) -> str:
    """What to call a checkpoint folder: its name, or owner/name of a folder that came from the Hub."""
    repository = next((part for part in folder.parts if part.startswith("models--")), None)
    return folder.name if repository is None else repository.removeprefix("models--").replace("--", "/")


@cache
def _fetch(checkpoint: str, folder: Path) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, allow_patterns=DATA_ONLY))
    except Exception as error:  # of the library, of its HTTP client, of the operating system: the remedy is the same
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"policy.checkpoint is '{checkpoint}', which is no folder here, and the Hugging Face Hub does not give it "
            f"({reason}); put its config.json, preprocessor_config.json, tokenizer.json, *.safetensors and "
            f"model.safetensors.index.json into {folder}."
        ) from None
