"""TensorFlow's TFRecord files and `tf.train.Example` messages, without TensorFlow.

A record is its length (uint64), a checksum of that, the data, a checksum of the data; little endian. A checksum is the
CRC-32C rotated right by 15 bits plus a constant. (tensorflow/core/lib/io/record_writer.h, example/feature.proto)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from vlapost.config import UserError

MASK = 0xA282EAD8
KINDS = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}  # numbers 1, 2, 3


def records(path: Path) -> Iterator[bytes]:
    """The data of every record of a file.

    Raises:
        UserError: the file ends within a record, or a checksum is wrong.
    """
    with open(path, "rb") as file:
        number = 0
        while head := file.read(12):
            number += 1
            length = _checked(head, 8, path, number)
            size = struct.unpack("<Q", length)[0]
            yield _checked(file.read(size + 4), size, path, number)


def _checked(data: bytes, size: int, path: Path, number: int) -> bytes:
    if len(data) < size + 4:
        raise UserError(f"{path} ends within its record {number}, so it is truncated; get the file again.")
    content, (stored,) = data[:size], struct.unpack("<I", data[size:])
    crc = google_crc32c.value(content)
    if ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF != stored:
        raise UserError(f"{path} is damaged: the checksum of its record {number} is wrong; get the file again.")
    return content


def parse(record: bytes, where: str) -> dict[str, list[Any]]:
    """The features of a serialised `tf.train.Example`: name -> bytes, floats or integers; without those left empty.

    Raises:
        UserError: the record, which `where` names, is something else.
    """
    try:
        features = example_class().FromString(record).features.feature  # type: ignore[attr-defined]
    except DecodeError as error:
        raise UserError(f"{where} is no tf.train.Example ({error}); get the data set again.") from None
    kinds = {name: feature.WhichOneof("kind") for name, feature in features.items()}
    return {name: list(getattr(features[name], kind).value) for name, kind in kinds.items() if kind}


@cache
def example_class() -> type[Any]:
    """The message class of `tf.train.Example`."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="vlapost/example.proto", package="vlapost", syntax="proto3")
    values = {"BytesList": field.TYPE_BYTES, "FloatList": field.TYPE_FLOAT, "Int64List": field.TYPE_INT64}
    for name, kind in values.items():
        message = file.message_type.add(name=name)
        message.field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)

    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(KINDS.items(), 1):
        _refer(feature, name, number, kind).oneof_index = 0

    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    _refer(entry, "value", 2, "Feature")
    _refer(features, "feature", 1, "Features.FeatureEntry").label = field.LABEL_REPEATED

    _refer(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vlapost.Example"))


def _refer(message: Any, name: str, number: int, to: str) -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    return message.field.add(
        name=name, number=number, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL, type_name=f".vlapost.{to}"
    )
