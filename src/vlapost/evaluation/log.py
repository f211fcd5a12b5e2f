"""The log of finished episodes: one JSON object per line, appended as they finish, read again when a run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path

from vlapost.config import UserError
from vlapost.evaluation.episodes import EpisodeResult

DAMAGE = "\N{REPLACEMENT CHARACTER}"  # what bytes become that are no text
_STORED = [item.name for item in fields(EpisodeResult) if item.name != "frames"]

Labels = Mapping[int, Mapping[str, str | int]]


def read(path: Path) -> dict[int, EpisodeResult]:
    """Finished episodes by id. A last line that was cut off while it was written is passed over.

    Raises:
        UserError: another line cannot be read.
    """
    if not path.is_file():
        return {}
    text = path.read_text(errors="replace")
    whole = text[: text.rfind("\n") + 1]
    finished = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            values = json.loads(line if DAMAGE not in line else "")
            result = EpisodeResult(**{name: values[name] for name in _STORED})
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(
                f"Line {number} of {path} is not a finished episode; delete that line, and the episode is run again."
            ) from None
        finished[result.episode_id] = result
    return finished


def mend(path: Path) -> None:
    """Remove a last line that was cut off while it was written; only for who appends to the log."""
    if path.is_file():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def append(path: Path, results: Iterable[EpisodeResult], labels: Labels) -> None:
    """Add finished episodes, each with its labels (setup, seed, object, receptacle, table, ...)."""
    lines = [
        json.dumps({name: getattr(result, name) for name in _STORED} | dict(labels.get(result.episode_id, {})))
        for result in results
    ]
    with path.open("a") as file:
        file.write("".join(line + "\n" for line in lines))
