"""Writes inputs_hash.tsv: what the official SDK says of some inputs. Run it with a Python that has `flyte`.

Each line: the name of the case, the serialized `flyteidl2.task.Inputs` in base64, the ignored variables separated by
commas, and the SDK's hash.
"""

import base64
import pathlib

import msgpack
from flyte._internal.runtime import convert
from flyteidl2.core import interface_pb2, literals_pb2, types_pb2
from flyteidl2.task import common_pb2
from google.protobuf import json_format, struct_pb2, timestamp_pb2


def literal(**value):
    return literals_pb2.Literal(**value)


def scalar(**value):
    return literal(scalar=literals_pb2.Scalar(**value))


def text(value):
    return scalar(primitive=literals_pb2.Primitive(string_value=value))


def integer(value):
    return scalar(primitive=literals_pb2.Primitive(integer=value))


def packed(value, **options):
    data = value if isinstance(value, bytes) else msgpack.packb(value, **options)
    return scalar(binary=literals_pb2.Binary(value=data, tag="msgpack"))


def struct(value):
    return json_format.ParseDict(value, struct_pb2.Struct())


def many(*values):
    return literal(collection=literals_pb2.LiteralCollection(literals=values))


def keyed(**values):
    return literal(map=literals_pb2.LiteralMap(literals=values))


def hashed(hash, value):
    value.hash = hash
    return value


SCHEMA = struct({"title": "A", "z": {"b": [1, {"y": None, "x": True}], "a": "s"}, "é": 1.5, "properties": {}})
UNION = scalar(
    union=literals_pb2.Union(
        value=packed({"b": 1, "a": 2}),
        type=types_pb2.LiteralType(
            simple=types_pb2.STRUCT,
            metadata=SCHEMA,
            structure=types_pb2.TypeStructure(
                tag="A",
                dataclass_type={
                    "q": types_pb2.LiteralType(simple=types_pb2.STRING),
                    "p": types_pb2.LiteralType(simple=types_pb2.STRUCT, metadata=SCHEMA),
                },
            ),
            annotation=types_pb2.TypeAnnotation(annotations=SCHEMA),
        ),
    )
)
FRAME = scalar(
    structured_dataset=literals_pb2.StructuredDataset(
        uri="s3://b/k",
        metadata=literals_pb2.StructuredDatasetMetadata(
            structured_dataset_type=types_pb2.StructuredDatasetType(
                columns=[
                    types_pb2.StructuredDatasetType.DatasetColumn(
                        name="c", literal_type=types_pb2.LiteralType(metadata=SCHEMA)
                    )
                ],
                format="parquet",
            )
        ),
    )
)

CASES = {
    "nothing": ({}, []),
    "scalars": (
        {
            "s": text("é"),
            "empty": text(""),
            "i": integer(-3),
            "zero": integer(0),
            "f": scalar(primitive=literals_pb2.Primitive(float_value=0.5)),
            "t": scalar(primitive=literals_pb2.Primitive(datetime=timestamp_pb2.Timestamp(seconds=5, nanos=7))),
            "none": scalar(none_type=literals_pb2.Void()),
            "blob": scalar(blob=literals_pb2.Blob(uri="s3://b/x")),
            "unset": literal(),
        },
        [],
    ),
    "order of names": ({"b": integer(1), "a": integer(2)}, []),
    "ignored": ({"a": integer(1), "b": integer(2)}, ["b"]),
    "all ignored": ({"a": integer(1)}, ["a", "c"]),
    "own hash": ({"a": hashed("h", text("x")), "b": many(hashed("g", text("y")), text("z"))}, []),
    "collections": ({"a": many(), "b": many(integer(1), many(text("x"))), "c": keyed(z=integer(1), a=many(text("y")))}, []),
    "metadata": ({"a": literal(metadata={"z": "1", "a": "2", "m": "3"}, scalar=text("x").scalar)}, []),
    "generic": ({"a": scalar(generic=SCHEMA)}, []),
    "union": ({"a": UNION, "b": many(UNION)}, []),
    "frame": ({"a": FRAME}, []),
    "offloaded": (
        {
            "a": literal(
                offloaded_metadata=literals_pb2.LiteralOffloadedMetadata(
                    uri="s3://b/o", size_bytes=9, inferred_type=types_pb2.LiteralType(metadata=SCHEMA)
                )
            )
        },
        [],
    ),
    "msgpack sorted": ({"a": packed({"a": 1, "b": {"c": 1, "d": [1, 2]}})}, []),
    "msgpack unsorted": ({"a": packed({"z": 1, "aa": {"y": -300, "b": [{"2": 1, "1": 2}]}, "b": "x" * 40})}, []),
    "msgpack keys": ({"a": packed({3: "i", "s": 1, None: 2, b"b": 3, 1.5: 4, False: 5, 70000: 6})}, []),
    "msgpack float32": ({"a": packed({"b": 1.5, "a": 0.1}, use_single_float=True)}, []),
    "msgpack wide numbers": ({"a": packed(bytes.fromhex("82a162d300000000000000" + "01a161cf00000000000000ff"))}, []),
    "msgpack duplicate key": ({"a": packed(bytes.fromhex("82a16101a16102"))}, []),
    "msgpack timestamp": ({"a": packed({"b": msgpack.Timestamp(1, 2), "a": msgpack.Timestamp(3), "c": msgpack.Timestamp(-1)})}, []),
    "msgpack extension": ({"a": packed({"b": msgpack.ExtType(5, b"xy"), "a": 1})}, []),
    "msgpack broken": ({"a": packed(b"\x92\x01"), "b": packed(b"\x01\x02"), "c": packed(bytes.fromhex("a1ff"))}, []),
    "msgpack unhashable key": ({"a": packed(bytes.fromhex("8291010281a1620101"))}, []),
    "msgpack empty": ({"a": packed(b"")}, []),
    "other binary": ({"a": scalar(binary=literals_pb2.Binary(value=b"\x82\xa1b\x01\xa1a\x01", tag="pickle"))}, []),
}

lines = []
for name, (literals, ignored) in CASES.items():
    inputs = common_pb2.Inputs(literals=[common_pb2.NamedLiteral(name=n, value=v) for n, v in literals.items()])
    inputs.context.add(key="not", value="hashed")
    expected = convert.generate_filtered_inputs_hash(inputs, ignored)
    data = base64.b64encode(inputs.SerializeToString()).decode()
    lines.append("\t".join([name, data, ",".join(ignored), expected]))
pathlib.Path(__file__).with_suffix(".tsv").write_text("\n".join(lines) + "\n")
