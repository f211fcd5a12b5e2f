"""Episodes by number: one integer names everything that is drawn, from the object to the yaw.

An id is a number in mixed radix whose digits are those of `Setup.radix`, the most significant first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlapost.config import UserError
from vlapost.envs.places import OBJECT, RECEPTACLE, THIRD
from vlapost.envs.setup import Setup
from vlapost.envs.setups import PROTOCOLS, declare, find_setup

HELD_OUT_COUNT = 1024
HELD_OUT_SEED = 18  # one with which no id comes twice
PAPER_SEEDS, PAPER_COUNT = 3, 64  # the study evaluates 64 episodes with each of 3 seeds
SOLVED = Path(str(files(__package__))) / "solved.json"
NONE = -1
PARKED = (0.4, 0.55)  # metres, world: behind the camera


@dataclass(frozen=True)
class EpisodeSpec:
    """Decoded episodes.

    object, receptacle, table: `[E]` int64 indices into the asset pack. other_object, other_receptacle, texture: the
    same, or -1 where the setup has none. template: `[E]` index into the task's sentences. places: `[E, n, 2]` float32,
    where object, receptacle and third place are, world frame, metres. yaw, receptacle_yaw: `[E]` float32, turn of
    objects and of the receptacle about z, radians. arm_offset: `[E, 6]` float32 radians.
    """

    object: Tensor
    other_object: Tensor
    texture: Tensor
    template: Tensor
    arm_offset: Tensor
    receptacle: Tensor
    other_receptacle: Tensor
    table: Tensor
    places: Tensor
    yaw: Tensor
    receptacle_yaw: Tensor

    def __len__(self) -> int:
        return len(self.object)


def digits_of(setup: Setup, ids: Tensor) -> dict[str, Tensor]:
    """Digits of `[E]` int64 ids, each counted from 0; ids are taken modulo the number of episodes."""
    rest = ids % setup.total
    digits: dict[str, Tensor] = {}
    for name, base in reversed(setup.radix.items()):
        digits[name] = rest % base
        rest = rest // base
    return digits


def decode(setup: Setup, ids: Tensor) -> EpisodeSpec:
    """What `[E]` int64 ids stand for.

    Raises:
        UserError: there is no such episode (in protocol paper ids are taken modulo the number of episodes).
    """
    wrong = ids[(ids < 0) | (ids >= setup.total)]
    if len(wrong) and not setup.paper:
        raise UserError(f"Episode {int(wrong[0])} does not exist; this setup has episodes 0 to {setup.total - 1}.")
    digits = digits_of(setup, ids)
    object_ = digits["object"] + setup.objects.start
    twice = setup.objects.start if setup.paper else 0  # the authors' code adds the start of the pool twice
    other = _other(setup.objects, digits["object"] + twice, setup.other_objects, digits["other_object"])
    places = setup.places.table.to(ids.device)[digits["place"]]
    if setup.other_objects:  # by that mistake, the same object twice: there it stands at the third place, alone
        alone = (other == object_)[:, None]
        first, third = places[:, OBJECT], places[:, THIRD]
        parked = torch.tensor(PARKED, device=ids.device).expand_as(third)
        moved = torch.where(alone, third, first), places[:, RECEPTACLE], torch.where(alone, parked, third)
        places = torch.stack(moved, dim=1)
    return EpisodeSpec(
        object=object_,
        other_object=other,
        texture=digits["texture"] + setup.textures.start if setup.textures else torch.full_like(ids, NONE),
        template=digits["template"] + setup.templates.start,
        arm_offset=torch.tensor(setup.arm_offsets, device=ids.device)[digits["arm_offset"]],
        receptacle=digits["receptacle"] + setup.receptacles.start,
        other_receptacle=_other(
            setup.receptacles, digits["receptacle"], setup.other_receptacles, digits["other_receptacle"]
        ),
        table=digits["table"] + setup.tables.start,
        places=places,
        yaw=torch.tensor(setup.yaws, device=ids.device)[digits["yaw"]],
        receptacle_yaw=torch.tensor(setup.receptacle_yaws, device=ids.device)[digits["receptacle_yaw"]],
    )


def _other(pool: range, chosen: Tensor, others: range, digit: Tensor) -> Tensor:
    """Index of the second body: `digit` + 1 places after the `chosen` one of the same pool, or that of another pool."""
    if not others:
        return torch.full_like(digit, NONE)
    if others == pool:
        return (chosen + digit + 1) % len(pool) + pool.start
    return digit + others.start


def encode(setup: Setup, digits: dict[str, Tensor]) -> Tensor:
    """Ids `[E]` of digits `[E]`, each counted from 0; a digit that is not given is 0."""
    ids = torch.zeros(len(next(iter(digits.values()))), dtype=torch.int64)
    for name, base in setup.radix.items():
        ids = ids * base + digits.get(name, 0)
    return ids


@cache  # asked for at every attempt of a demonstration
def reserved(env_id: str, obj_set: str, protocol: str = "v2") -> Tensor:
    """Ids from which training never starts: the held-out list of this set, and of every other that starts alike.

    Alike are setups that differ only in which objects and tables they draw: an episode of one may be one of another.
    They may be of the other protocol, but where there is a third place: its grid is another one there.
    """
    setup = find_setup(env_id, obj_set, protocol)
    found = [held_out(env_id, obj_set, protocol)]
    for other_protocol, name, set_name, other in _declared():
        same: dict[str, Any] = {key: getattr(setup, key) for key in ("objects", "tables", "places", "paper")}
        alike = replace(other, **same) == setup and torch.equal(other.places.table, setup.places.table)
        if alike and (other_protocol, name, set_name) != (protocol, env_id, obj_set):
            digits = digits_of(other, held_out(name, set_name, other_protocol))
            digits["object"] += other.objects.start - setup.objects.start
            digits["table"] += other.tables.start - setup.tables.start
            inside = [(digits[key] >= 0) & (digits[key] < setup.radix[key]) for key in ("object", "table")]
            found.append(encode(setup, digits)[inside[0] & inside[1]])
    return torch.cat(found).unique()


def _declared() -> Iterator[tuple[str, str, str, Setup]]:
    """Every setup with its protocol, environment and set."""
    for protocol in PROTOCOLS:
        for name, sets in declare(protocol).items():
            for set_name, setup in sets.items():
                yield protocol, name, set_name, setup


class Order:
    """All episodes of a setup but those in `exclude`, in a random order that `seed` decides; `order[k]` is the k-th."""

    def __init__(self, total: int, exclude: Tensor, seed: int) -> None:
        excluded = set(exclude.tolist())
        self._length = total - len(excluded)
        self._known: list[int] = []
        self._coming = self._draw(total, excluded, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> int:
        """The episode at place `number`; IndexError where there is none."""
        while len(self._known) <= number:
            coming = next(self._coming, None)
            if coming is None:
                raise IndexError(number)
            self._known.append(coming)
        return self._known[number]

    @staticmethod
    def _draw(total: int, seen: set[int], generator: torch.Generator) -> Iterator[int]:
        while len(seen) < total:
            for id_ in torch.randint(total, (1000,), generator=generator).tolist():
                if id_ not in seen:
                    seen.add(id_)
                    yield id_


def draw(setup: Setup, count: int, generator: torch.Generator, exclude: Tensor) -> Tensor:
    """`[count]` ids, uniform over all episodes but those in `exclude` (see `reserved`).

    Raises:
        UserError: no episode is left.
    """
    if len(exclude) >= setup.total:
        raise UserError(f"All {setup.total} episodes of this setup are held out; start from env.obj_set=train.")
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        more = torch.randint(setup.total, (count - len(drawn),), generator=generator)
        drawn = torch.cat([drawn, more[~torch.isin(more, exclude)]])
    return drawn


def chosen(setup: Setup, named: tuple[str, str, str], asked: Any, count: int, generator: torch.Generator) -> Tensor:
    """`[count]` ids to start: those `asked` for, or for None any that are not held out, if there are such.

    named: environment, object set and protocol of the setup.

    Raises:
        UserError: not `count` are asked for.
    """
    if asked is None:
        exclude = reserved(*named)
        return draw(setup, count, generator, exclude if len(exclude) < setup.total else exclude[:0])
    ids = torch.as_tensor(asked).flatten()
    if len(ids) != count:
        raise UserError(f"options['episode_id'] holds {len(ids)} ids; give one for each of {count} scenes.")
    return ids


def held_out(env_id: str, obj_set: str, protocol: str = "v2") -> Tensor:
    """Ids for evaluation, which takes the first N of them.

    Protocol v2: the committed int64, `[1024]` or as many as the setup holds out. Protocol paper: 3 x 64 ids drawn as
    the study draws them, without order or balance (its own draws hang on the state of its random numbers and cannot be
    repeated).

    Raises:
        UserError: a setup whose list has not been made.
    """
    setup = find_setup(env_id, obj_set, protocol)
    if setup.paper:
        generators = [torch.Generator().manual_seed(seed) for seed in range(PAPER_SEEDS)]
        return torch.cat([torch.randint(setup.total, (PAPER_COUNT,), generator=g) for g in generators])
    path = held_out_file(env_id, obj_set)
    if not path.is_file():
        raise UserError(
            f"{path} is missing, the held-out episodes of {env_id} {obj_set}; "
            ".venv/bin/python -m vlapost.envs.episodes writes the lists of new setups."
        )
    return torch.tensor(json.loads(path.read_text()), dtype=torch.int64)


def held_out_file(env_id: str, obj_set: str) -> Path:
    """Where the list is; setups that draw the same episodes have the same list under their own names."""
    return Path(str(files(__package__))) / "held_out" / f"{env_id}_{obj_set}.json"


def solved(env_id: str, obj_set: str) -> list[int]:
    """Ids that are solved at their start with one of the packs; `python -m vlapost.solved_starts` finds them."""
    ids: list[int] = json.loads(SOLVED.read_text()).get(f"{env_id}_{obj_set}", [])
    return ids


def make_held_out(setup: Setup, never: Sequence[int] = ()) -> Tensor:
    """The list that was committed: the setup's own, or one balanced so that a prefix of 200 or more nearly is too.

    Objects come in permutations of all objects, places in permutations of all choices. Every other digit is each time
    the value that this object has met least often, and of those the one that occurred least often at all; a yaw that
    would make an episode come twice is passed over. An id in `never` exchanges its place with a later one.
    """
    if setup.held_out:
        return torch.arange(setup.held_out)
    rng = np.random.default_rng(HELD_OUT_SEED)
    first = ("receptacle", "table", "yaw")  # drawn in this order before there were others
    later = (name for name, base in setup.radix.items() if base > 1 and name not in (*first, "object", "place"))
    met = {name: np.zeros((len(setup.objects), setup.radix[name]), dtype=int) for name in (*first, *later)}
    rows: list[dict[str, int]] = []
    seen = set()
    for object_, place in zip(_permutations(rng, setup.radix["object"]), _permutations(rng, setup.radix["place"])):
        row = {"object": object_, "place": place}
        for name, counts in met.items():
            order = np.lexsort((rng.random(counts.shape[1]), counts.sum(axis=0), counts[object_]))
            if name == "yaw":
                order = [value for value in order if (*row.values(), value) not in seen]
                if not order:
                    raise UserError(
                        f"A setup has too few different starts for a list of {HELD_OUT_COUNT} episodes; declare it "
                        "with held_out=N, so that its first N are those of evaluations."
                    )
                seen.add((*row.values(), order[0]))
            counts[object_, order[0]] += 1
            row[name] = order[0]
        rows.append(row)
    digits = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    unwanted, following = torch.tensor(never, dtype=torch.int64), 0
    while len(wrong := torch.isin(ids := encode(setup, digits), unwanted).nonzero()):
        following += 1  # not the same one twice, which would give the place back
        pair = torch.tensor([int(wrong[0]), (int(wrong[0]) + following) % HELD_OUT_COUNT])
        digits["place"][pair] = digits["place"][pair.flip(0)]
    return ids


def _permutations(rng: np.random.Generator, count: int) -> np.ndarray:
    """`[1024]` numbers below `count`, one permutation of all of them after another."""
    rounds = -(-HELD_OUT_COUNT // count)
    return np.concatenate([rng.permutation(count) for _ in range(rounds)])[:HELD_OUT_COUNT]


if __name__ == "__main__":  # python -m vlapost.envs.episodes: write the lists again
    for id_, sets in declare("v2").items():
        for set_name, declared in sets.items():
            ids = make_held_out(declared, solved(id_, set_name))
            held_out_file(id_, set_name).write_text(json.dumps(ids.tolist()) + "\n")
