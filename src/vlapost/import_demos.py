"""Demonstrations from elsewhere: `python -m vlapost.import_demos from=FORMAT source=WHAT [key=value ...]`.

    make import-demos FROM=lerobot SOURCE=FOLDER ARGS="demos.path=data/theirs"
    make import-demos FROM=rlds SOURCE=bridge_orig/1.0.0 ARGS="demos.path=data/bridge exchange.gripper=[1,0] ..."
    make import-demos FROM=maniskill SOURCE=trajectory.h5 ARGS="demos.path=data/theirs exchange.instruction='...'"
    make import-demos FROM=npz SOURCE=FOLDER ...      # a file per episode, written by any program
    make import-demos FROM=vlapost SOURCE=data/demos ARGS="demos.path=data/warmup exchange.episodes=70"
    make import-demos FROM=actor SOURCE=module:function ARGS="demos.path=data/warmup exchange.episodes=70"

Imports go one behind the other into `demos.path`; then `make train-sft ARGS="demos.path=..."`. What the source's
conventions are is declared with `exchange.*` (docs/exchange.md). The same command continues after an interruption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from sys import maxsize
from typing import TYPE_CHECKING, Any

from rich.table import Table

from vlapost import cli, collect_demos, config, evaluate
from vlapost.config import ROOT, Config, UserError
from vlapost.evaluation.summary import write_json
from vlapost.limits import check_values

if TYPE_CHECKING:
    from vlapost.exchange.folder import ImportWriter, Source
    from vlapost.exchange.trajectory import Trajectory
    from vlapost.experience.shards import DemoEpisode, Failure

FROM, SOURCE = "from=", "source="
FORMATS = ("lerobot", "rlds", "maniskill", "npz", "vlapost", "actor")
SHARD = 20  # episodes per shard file
# Settings that change nothing of what an actor's episodes are.
ELSEWHERE = ("env.num_envs", "evaluation.actor", "evaluation.episodes", "evaluation.workers", "evaluation.videos")


def run(words: list[str]) -> None:
    """Import and say what the folder holds now."""
    format_, source = (cli.last(words, prefix) for prefix in (FROM, SOURCE))
    c = config.load(*cli.parse([word for word in words if not word.startswith((FROM, SOURCE))], "base"))
    if format_ not in FORMATS or not source:
        raise UserError(
            f"FROM is '{format_}' and SOURCE is '{source}'; FROM must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, "
            "and SOURCE a folder or file (of an actor: policy, planner, random or module:name)."
        )
    if format_ == "actor" and not c.exchange.episodes:
        raise UserError("exchange.episodes is 0, but an actor has no end; say how many successful episodes to record.")
    from vlapost.exchange.folder import ImportWriter, claim, finish, read_sources

    folder = ROOT / c.demos.path
    if format_ != "actor":
        source = str((ROOT / Path(source).expanduser()).resolve())  # however it is spelt, it is the same source
        if source == str(folder.resolve()):
            raise UserError(f"SOURCE and demos.path are both {folder}; import into another folder with demos.path=...")
    writer = ImportWriter(folder, (c.env.image_size[0], c.env.image_size[1]), c.demos.skip_corrupt)
    try:
        entry = claim(folder, format_, source, settings(c, format_, source), writer.next)
        if not entry.finished or (c.exchange.episodes and entry == read_sources(folder)[-1]):
            taken = bring_in(c, entry, writer)
            finish(folder, entry)
            if taken < c.exchange.episodes:
                cli.console.print(
                    f"{source} gave {taken} of exchange.episodes={c.exchange.episodes}; when more stand behind those, "
                    "and no other import followed, the same command goes on."
                )
        write_statistics(c, folder)
        cli.console.print(report(folder, c.demos.skip_corrupt))
    finally:
        writer.close()


def write_statistics(c: Config, folder: Path) -> None:
    """The ranges of all actions of the folder, under its name, for `policy.statistics`."""
    from vlapost.experience.demos import DemoDataset
    from vlapost.policies.checkpoint import STATISTICS

    d = c.demos
    data = DemoDataset(folder, d.filter, d.min_translation, d.min_rotation, skip_corrupt=d.skip_corrupt)
    write_json(folder / STATISTICS, {folder.name: data.statistics()})


def settings(c: Config, format_: str, source: str) -> dict[str, Any]:
    """What two commands must share to be the same import."""
    found = asdict(c.exchange)
    if format_ == "vlapost":
        found |= {key: getattr(c.demos, key) for key in ("filter", "min_translation", "min_rotation")}
    if format_ == "actor":
        for name in ("env", "policy", "evaluation"):
            found |= {f"{name}.{key}": value for key, value in asdict(getattr(c, name)).items()}
        found |= {"seed": c.seed, "demos.seed": c.demos.seed}
        found = {key: value for key, value in found.items() if key not in ELSEWHERE}
        if source == "policy":
            found["weights"] = evaluate.fingerprint(c)
    return found


def bring_in(c: Config, entry: Source, writer: ImportWriter) -> int:
    """Write what is still missing of an import; returns how many episodes it has then.

    Raises:
        UserError: the source is not what its format asks for, or gives nothing.
    """
    from vlapost.exchange.folder import forget, shares
    from vlapost.experience.shards import DemoEpisode

    wanted = c.exchange.episodes or maxsize
    taken = next(share.episodes for source, share in shares(writer.folder, c.demos.skip_corrupt) if source == entry)
    episodes: list[DemoEpisode] = []
    failures: list[Failure] = []
    left_out: Counter[str] = Counter()
    bar = cli.progress("episode")
    task = bar.add_task(f"from {entry.format}", total=c.exchange.episodes or None, completed=taken, note="")

    def store() -> None:
        if taken and episodes + failures:
            writer.write(episodes, failures)
            episodes.clear()
            failures.clear()

    try:
        with bar:
            for result in demos(c, entry, writer.next) if taken < wanted else ():
                if isinstance(result, DemoEpisode):
                    episodes.append(result)
                    taken += 1
                else:
                    failures.append(result)
                    left_out[result.cause] += 1
                bar.update(task, completed=taken, note=f"{left_out.total()} left out" if left_out else "")
                if taken == wanted:
                    break
                if len(episodes) == SHARD:
                    store()
    finally:
        store()  # what is finished is kept
        if not taken:
            forget(writer.folder, entry)
    if not taken:
        causes = ", ".join(f"{count} {cause}" for cause, count in left_out.most_common())
        raise UserError(f"{entry.source} gave no episode to learn from ({causes or 'it is empty'}).")
    return taken


def demos(c: Config, entry: Source, first: int) -> Iterator[DemoEpisode | Failure]:
    """The episodes of a source from candidate `first` on as demonstrations, or why one is none.

    Raises:
        UserError: pictures of several sizes.
    """
    import numpy as np
    import torch

    from vlapost.exchange.folder import to_demo
    from vlapost.policies.preprocess import fit

    size, theirs = (c.env.image_size[0], c.env.image_size[1]), None
    for candidate, trajectory in enumerate(read(c, entry, first - entry.begin), first):
        here = trajectory.image[0].shape[:2]
        if here != (theirs := theirs or here):
            raise UserError(
                f"The pictures of {trajectory.where} have {here[0]}x{here[1]} pixels, those before it "
                f"{theirs[0]}x{theirs[1]}; one import has pictures of one size."
            )
        images = fit(torch.from_numpy(np.stack(trajectory.image)), size).numpy()
        yield to_demo(trajectory, c.exchange, candidate, images)


def read(c: Config, entry: Source, first: int) -> Iterator[Trajectory]:
    """The episodes of a source from number `first` on."""
    from vlapost.exchange import lerobot, maniskill, npz, rlds, shards

    if entry.format == "actor":
        return record(c, entry.source, first)
    place = ROOT / Path(entry.source).expanduser()
    if entry.format == "vlapost":
        return shards.read(place, first, c.demos, collect_demos.left_out)
    reader = {"lerobot": lerobot, "rlds": rlds, "maniskill": maniskill, "npz": npz}[entry.format]
    return reader.read(place, first, c.exchange)


def record(c: Config, actor: str, first: int) -> Iterator[Trajectory]:
    """Episodes of an actor on training starts, never held-out ones."""
    from vlapost.build import build_actor
    from vlapost.envs.vector import make_env
    from vlapost.exchange.rollouts import roll_out

    c = replace(c, evaluation=replace(c.evaluation, actor=actor))
    check_values(c)
    built, env = build_actor(c), make_env(c.env)
    try:
        yield from roll_out(built, env, lambda attempt: collect_demos.episode_of(c, attempt), c.seed, first)
    finally:
        env.close()


def report(folder: Path, skip_corrupt: bool) -> Table:
    """What a folder holds of which source. Wrong units show in the last columns."""
    import numpy as np

    from vlapost.exchange.folder import shares

    view = Table("source", "episodes", "left out", "99 % of steps below", "gripper open", title=f"Imported in {folder}")
    for source, share in shares(folder, skip_corrupt):
        if not share.actions and not share.left_out:  # stopped before its first episode
            continue
        sizes = opened = ""
        if share.actions:
            actions = np.concatenate(share.actions)
            metres, radians = (
                np.quantile(np.linalg.norm(actions[:, part], axis=1), 0.99) for part in (np.s_[:3], np.s_[3:6])
            )
            sizes, opened = f"{metres:.3f} m, {radians:.3f} rad", f"{(actions[:, 6] > 0).mean():.0%}"
        view.add_row(
            f"{source.format}: {source.source}" + ("" if source.finished else " (interrupted)"),
            str(share.episodes),
            ", ".join(f"{count} {cause}" for cause, count in share.left_out.most_common()),
            sizes,
            opened,
        )
    return view


if __name__ == "__main__":
    cli.main(run)
