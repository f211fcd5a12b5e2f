"""Two results on the same episodes: `AGAINST=` of `make evaluate` and `make generalization`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from vlapost.config import Config, UserError

if TYPE_CHECKING:
    from vlapost.evaluation.episodes import EpisodeResult

AGAINST = "against="
SCENES = ("protocol", "assets", "image_size", "shader", "sim_freq", "backend")  # settings that decide what a start is


def split(words: Sequence[str]) -> tuple[list[str], str]:
    """The words of a command without `against=FOLDER`, and that folder; empty where none is given."""
    folders = [word.removeprefix(AGAINST) for word in words if word.startswith(AGAINST)]
    others = [word for word in words if not word.startswith(AGAINST)]
    return others, str(Path(folders[-1]).expanduser()) if any(folders) else ""


def same_scenes(c: Config, path: Path, keys: Sequence[str] = SCENES) -> None:
    """Make sure that the report at `path` is of the scenes of `c`.

    Raises:
        UserError: it is of others, or of a version that did not say, or no report.
    """
    from vlapost.assets.pack import exact_edition, open_pack

    open_pack(c.env.assets)  # says so where there is none
    try:
        report = json.loads(path.read_text())
        other = report["config"]["env"] | {"assets": report["edition"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is damaged, or of an earlier version, which did not say all that is compared; run it again."
        ) from None
    here = asdict(c.env) | {"assets": exact_edition(c.env.assets)}
    for key in keys:
        if other.get(key) != here[key]:
            raise UserError(
                f"{path.parent} was made with env.{key}={other.get(key)}; only the same scenes can be compared."
            )


def episodes(c: Config, place: Path, ids: Sequence[int]) -> list[EpisodeResult]:
    """Episodes `ids` of another result of `make evaluate`, or of a recipe.

    Raises:
        UserError: they are not there, or are of other scenes.
    """
    from vlapost.evaluation import log

    path = place / "report.json"
    if not path.is_file():
        raise UserError(f"{place} holds no report; give the folder that make evaluate printed at its end.")
    same_scenes(c, path, ("id", "obj_set", *SCENES))
    finished = log.read(place / "episodes.jsonl")
    if missing := [id_ for id_ in ids if id_ not in finished]:
        raise UserError(f"{place} lacks {len(missing)} of the {len(ids)} episodes; set evaluation.episodes to less.")
    return [finished[id_] for id_ in ids]


def table(found: Mapping[str, Mapping[str, float]], other: str) -> Table:
    """What `evaluation.report.compare` found, to print."""
    chances = {"p": "p (McNemar)"} | ({"q": "q (of all setups)"} if len(found) > 1 else {})
    columns = ("setup", "difference", "95 %", "better", "worse", *chances.values())
    view = Table(*columns, title=f"Success at end against {other}")
    for name, d in found.items():
        interval = f"{d['low']:+.3f}, {d['high']:+.3f}" if "low" in d else ""
        row = (name, f"{d['difference']:+.3f}", interval, f"{d['better']}", f"{d['worse']}")
        view.add_row(*row, *(f"{d[key]:.3g}" for key in chances))
    return view
