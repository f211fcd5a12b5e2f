"""Starts that are solved though nobody acts: large objects that touch their receptacle once they have come to rest.

    python -m vlapost.solved_starts [procedural|paper ...]   # look at every held-out start; then
    python -m vlapost.envs.episodes                          # write the held-out lists again, without them

Both again until nothing new is found: what takes the place of a solved start has to be looked at, too. Writes
envs/solved.json, {environment_set: ids}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vlapost import config
from vlapost.cli import progress
from vlapost.disk import write_text
from vlapost.envs.episodes import SOLVED, decode, held_out, solved
from vlapost.envs.places import OBJECT, RECEPTACLE, THIRD
from vlapost.envs.setups import declare, find_setup

if TYPE_CHECKING:
    from vlapost.envs.scene import PutOnPlateScene

WITHIN = 0.14  # metres: bodies that start further apart do not meet; success wants 0.07 at most
FALL = 3  # control steps after which an object that was put elsewhere lies (ten find no other starts)


def is_solved(scene: PutOnPlateScene, id_: int) -> bool:
    """Whether an episode counts as solved at any step though the arm stands still: the first one, and where the object
    is put elsewhere all until it has fallen there.
    """
    scene.reset(options={"episode_id": torch.tensor([id_])})
    for _ in range(scene.setup.reposition + FALL if scene.setup.reposition else 1):
        scene.advance(torch.tensor([[0.0, 0, 0, 0, 0, 0, 1]]))
        scene.measure()
    return bool(scene.progress.metrics.success_once)


def look(name: str, obj_set: str, pack: str, seen: dict[object, bool]) -> list[int]:
    """Held-out episodes of a set that are solved; `seen`: the verdicts on starts with the same bodies and places."""
    from vlapost.envs.vector import free_memory, make_env

    ids, env = held_out(name, obj_set), config.load("base", []).env
    setup = find_setup(name, obj_set)
    spec, stands = decode(setup, ids), [OBJECT, THIRD] if setup.reposition else [OBJECT]
    bodies = torch.stack([spec.object, spec.receptacle, spec.other_object, spec.other_receptacle], 1)
    where = torch.cat([spec.places.flatten(1), spec.yaw[:, None], spec.receptacle_yaw[:, None]], 1)
    keys = [(pack, setup.reposition, *b, *w) for b, w in zip(bodies.tolist(), where.tolist())]
    apart = (spec.places[:, stands] - spec.places[:, RECEPTACLE, None]).norm(dim=-1).amin(1)
    seen |= {key: False for key, far in zip(keys, (apart > WITHIN).tolist()) if far}
    vector = make_env(replace(env, id=name, obj_set=obj_set, assets=pack, image_size=[16, 16]), num_envs=1)
    with progress("start") as bar:
        task = bar.add_task(f"{pack}, {name} {obj_set}", total=len(ids), note="")
        looked = 0
        for id_, key in zip(ids.tolist(), keys):
            if key not in seen:
                seen[key] = is_solved(vector.scenes[0], id_)
                looked += 1
                if looked % 16 == 0:
                    free_memory()
            bar.advance(task)
    vector.close()
    return [id_ for id_, key in zip(ids.tolist(), keys) if seen[key]]


def sets_of(pack: str) -> list[tuple[str, str]]:
    """Environment and set wherever a held-out list is drawn for this pack."""
    sets = [(name, key, setup) for name, by_key in declare("v2").items() for key, setup in by_key.items()]
    return [(name, key) for name, key, setup in sets if pack in setup.task.packs and not setup.held_out]


if __name__ == "__main__":
    verdicts: dict[object, bool] = {}
    for pack in sys.argv[1:] or ["procedural", "paper"]:
        for name, obj_set in sets_of(pack):
            found = look(name, obj_set, pack, verdicts)
            if found:
                known = json.loads(SOLVED.read_text()) | {f"{name}_{obj_set}": sorted({*solved(name, obj_set), *found})}
                write_text(SOLVED, json.dumps(dict(sorted(known.items())), indent=1) + "\n")
            print(f"{pack} {name} {obj_set}: {len(found)} solved", flush=True)
