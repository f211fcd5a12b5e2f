"""Demonstrations as a LeRobotDataset v3.0: `python -m vlapost.export_demos out=FOLDER [key=value ...]`.

    make export-demos OUT=exports/demos ARGS="demos.path=data/demos demos.episodes=140"

The first `demos.episodes` demonstrations, filtered as training reads them (`demos.filter=none`: every step); `lerobot`
opens the folder and trains on it.
"""

from __future__ import annotations

from itertools import islice

from vlapost import cli, collect_demos, config
from vlapost.config import ROOT, UserError

OUT = "out="


def run(words: list[str]) -> None:
    """Write the folder and say what is in it."""
    out = cli.last(words, OUT)
    c = config.load(*cli.parse([word for word in words if not word.startswith(OUT)], "base"))
    if not out:
        raise UserError("Where to? Give a new folder: make export-demos OUT=exports/demos.")
    folder, source, wanted = ROOT / out, ROOT / c.demos.path, c.demos.episodes
    if folder.exists():
        raise UserError(f"{folder} is there already; delete it, or give another folder as OUT.")

    from vlapost.exchange.lerobot_writer import LeRobotWriter
    from vlapost.exchange.shards import episodes, meta_of
    from vlapost.policies.files import new_folder

    meta, bar = meta_of(source, c.demos.skip_corrupt), cli.progress("episode")
    if meta.views:
        raise UserError(f"{source} holds views, in which nothing is done; set demos.path to demonstrations.")
    task = bar.add_task("export", total=wanted, note="")
    with new_folder(folder) as new, bar:
        writer = LeRobotWriter(new, meta)
        for episode in islice(episodes(source, c.demos, collect_demos.left_out), wanted):
            writer.add(episode)
            bar.advance(task)
        if (found := len(writer.episode_ids)) < wanted:
            raise UserError(f"{source} holds {found} demonstrations, {wanted} are wanted; set demos.episodes={found}.")
        writer.finish()
    cli.console.print(
        f"Wrote {folder}: {len(writer.episode_ids)} episodes, {writer.frames} steps, {len(writer.tasks)} tasks.",
        soft_wrap=True,
    )


if __name__ == "__main__":
    cli.main(run)
