"""RLDS data sets of TensorFlow Datasets (Open-X, Bridge), read without TensorFlow.

    <name>/1.0.0/dataset_info.json, features.json, <name>-train.tfrecord-00000-of-00008, ...

A record is an episode; its steps are flattened, so that `steps/action` holds 7 T numbers and
`steps/observation/image` T pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    _check_action(leaves, source / "features.json")
    number = 0
    for path, count in _files(source, info, declared.split):
        found = 0
        for record in records(path):
            found += 1
            if number >= first:
                where = f"record {found} of {path}"
                yield _trajectory(parse(record, where), camera, where)
            number += 1
        if found != count:
            raise UserError(f"{path} holds {found} records, dataset_info.json says {count}; get the file again.")


def _trajectory(example: dict[str, list[Any]], camera: str, where: str) -> Trajectory:
    for name in (camera, ACTION):
        if name not in example:
            raise UserError(f"{where} has no {name}; it has: {', '.join(sorted(example))}.")
    pictures, numbers = example[camera], np.array(example[ACTION], np.float32)
    if len(numbers) != ACTION_DIM * len(pictures):
        raise UserError(
            f"{where} holds {len(numbers)} numbers in {ACTION} for {len(pictures)} pictures; an action is "
            f"{ACTION_DIM} numbers, and each has one picture."
        )
    sentences = next((example[name] for name in SENTENCES if name in example), [])
    return Trajectory(
        where=where,
        image=[decode(data, where) for data in pictures],
        action=numbers.reshape(-1, ACTION_DIM),
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


def _check_action(leaves: dict[str, dict[str, Any]], path: Path) -> None:
    if ACTION not in leaves:
        raise UserError(f"{path} has no {ACTION}; it has: {', '.join(leaves)}.")
    tensor = leaves[ACTION].get("tensor", {})
    shape = [str(n) for n in tensor.get("shape", {}).get("dimensions", [])]
    if shape != [str(ACTION_DIM)] or tensor.get("encoding", "none") != "none":
        raise UserError(
            f"{ACTION} of {path} has the shape [{', '.join(shape)}] and the encoding {tensor.get('encoding', 'none')}; "
            f"plain [{ACTION_DIM}] is needed: translation, rotation and gripper."
        )
