"""RLDS data sets of TensorFlow Datasets (Open-X, Bridge), read without TensorFlow.

    <name>/1.0.0/dataset_info.json, features.json, <name>-train.tfrecord-00000-of-00008, ...

A record is an episode; its steps are flattened, so that `steps/action` holds 7 T numbers and
`steps/observation/image` T pictures. Where an action has parts, as `steps/action/world_vector` with 3 T numbers,
`exchange.action` names those that are translation, rotation and gripper.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vlapost.config import ExchangeConfig, UserError
from vlapost.contracts import ACTION_DIM
from vlapost.exchange.tfrecord import parse, records
from vlapost.exchange.trajectory import Trajectory, choose, decode, need, read_json, single

WHAT = "a version folder of TensorFlow Datasets, with dataset_info.json, features.json and tfrecord files"
OBSERVATION, ACTION = "steps/observation/", "steps/action"
SENTENCES = ("steps/language_instruction", "steps/observation/natural_language_instruction")


def read(source: Path, first: int, declared: ExchangeConfig) -> Iterator[Trajectory]:
    """The episodes of a split, from number `first` on.

    Raises:
        UserError: files, fields or a camera are missing; a file is damaged; actions are not 7 numbers.
    """
    info, features = read_json(source / "dataset_info.json", WHAT), read_json(source / "features.json", WHAT)
    leaves = dict(_leaves(features, "", source / "features.json"))
    cameras = [name.removeprefix(OBSERVATION) for name, leaf in leaves.items() if _is_picture(name, leaf)]
    camera = OBSERVATION + choose(cameras, declared.camera, source / "features.json")
    action = _action(leaves, declared.action, source / "features.json")
    number = 0
    for path, count in _files(source, info, declared.split):
        found = 0
        for record in records(path):
            found += 1
            if number >= first:
                where = f"record {found} of {path}"
                yield _trajectory(parse(record, where), camera, action, where)
            number += 1
        if found != count:
            raise UserError(f"{path} holds {found} records, dataset_info.json says {count}; get the file again.")


def _trajectory(example: dict[str, list[Any]], camera: str, action: dict[str, int], where: str) -> Trajectory:
    for name in (camera, *action):
        if name not in example:
            raise UserError(f"{where} has no {name}; it has: {', '.join(sorted(example))}.")
    pictures = example[camera]
    for name, width in action.items():
        if len(example[name]) != width * len(pictures):
            raise UserError(
                f"{where} holds {len(example[name])} numbers in {name} for {len(pictures)} pictures; a step is {width} "
                "of them, and each has one picture."
            )
    parts = [np.array(example[name], np.float32).reshape(-1, width) for name, width in action.items()]
    sentences = next((example[name] for name in SENTENCES if name in example), [])
    return Trajectory(
        where=where,
        image=[decode(data, where) for data in pictures],
        action=np.concatenate(parts, axis=1),
        instruction=single(data.decode("utf-8", "replace") for data in sentences),
    )


def _files(source: Path, info: dict[str, Any], split: str) -> list[tuple[Path, int]]:
    """Files of a split with their numbers of records, all of them there."""
    if (format_ := info.get("fileFormat", "tfrecord")) != "tfrecord":
        raise UserError(f"{source} is stored as {format_}; only tfrecord is read: convert it with tfds.")
    path = source / "dataset_info.json"
    splits = {
        need(entry, "name", f"A split of {path}"): [int(n) for n in entry.get("shardLengths", [])]
        for entry in need(info, "splits", path)
    }
    if split not in splits:
        raise UserError(f"exchange.split is '{split}', but {source} has: {', '.join(sorted(splits))}.")
    lengths = splits[split]
    name = need(info, "name", path)
    if (stem := Path(f"{name}-{split}")).is_absolute() or ".." in stem.parts:
        raise UserError(f"{path} names the files '{stem}', which leads out of the data set; get the data set again.")
    names = [f"{name}-{split}.tfrecord-{i:05d}-of-{len(lengths):05d}" for i in range(len(lengths))]
    for name in names:
        if not (source / name).is_file():
            raise UserError(f"{source / name} is missing; get the whole split, {len(names)} files.")
    return [(source / name, length) for name, length in zip(names, lengths)]


def _leaves(feature: dict[str, Any], name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The features of features.json by their flattened names."""
    if "featuresDict" in feature:
        for key, inner in need(feature["featuresDict"], "features", path).items():
            yield from _leaves(inner, f"{name}/{key}" if name else key, path)
    elif "sequence" in feature:
        yield from _leaves(need(feature["sequence"], "feature", path), name, path)
    else:
        yield name, feature


def _is_picture(name: str, leaf: dict[str, Any]) -> bool:
    dimensions = leaf.get("image", {}).get("shape", {}).get("dimensions", [])
    return name.startswith(OBSERVATION) and [str(n) for n in dimensions[-1:]] == ["3"]


def _action(leaves: dict[str, dict[str, Any]], parts: list[str], path: Path) -> dict[str, int]:
    """The features that make an action, in order, and how many numbers of a step are in each."""
    widths = {}
    for name in [f"{ACTION}/{part}" for part in parts] or [ACTION]:
        if name not in leaves:
            inside = [other.removeprefix(ACTION + "/") for other in leaves if other.startswith(ACTION + "/")]
            hint = f"; name three of its parts in exchange.action: {', '.join(inside)}" if inside else ""
            raise UserError(f"{path} has no {name}{hint or '; it has: ' + ', '.join(leaves)}.")
        tensor = leaves[name].get("tensor", {})
        if (encoding := tensor.get("encoding", "none")) != "none":
            raise UserError(f"{name} of {path} has the encoding {encoding}; only plain numbers are read.")
        widths[name] = prod(int(n) for n in tensor.get("shape", {}).get("dimensions", []))
    if sum(widths.values()) != ACTION_DIM:
        found = ", ".join(f"{name} [{width}]" for name, width in widths.items())
        raise UserError(
            f"{path} gives {found} as an action; {ACTION_DIM} numbers are needed: translation, rotation and gripper."
        )
    return widths
