"""Literals and types as the Python SDK writes them, and the check that it reads ours.

    python sdk_literals.py write > sdk_literals.json   # the fixture; needs `pip install flyte pydantic`
    python sdk_literals.py read < ours.json            # {name: base64 of the Literal this module made from the JSON}
"""

import asyncio
import base64
import dataclasses
import datetime
import enum
import json
import sys
import typing

import pydantic
from flyte.io import Dir, File
from flyte.types import TypeEngine
from flyteidl2.core import literals_pb2


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5
    tags: typing.List[str] = dataclasses.field(default_factory=list)
    by_number: typing.Dict[int, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Circle:
    center: Point
    radius: float


class Layer(pydantic.BaseModel):
    size: int
    activation: typing.Optional[str] = None


class Model(pydantic.BaseModel):
    layers: typing.List[Layer]
    rate: float = 0.1


POINT = Point(1, 2.0, ["a"], {3: 4.0})
CASES = {
    "int": (int, 2**60),
    "float": (float, 1.5),
    "str": (str, "héllo"),
    "bool": (bool, True),
    "datetime": (datetime.datetime, datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.timezone.utc)),
    "date": (datetime.date, datetime.date(2026, 1, 31)),
    "timedelta": (datetime.timedelta, datetime.timedelta(hours=1, minutes=30)),
    "list": (typing.List[int], [1, 2]),
    "dict_str": (typing.Dict[str, typing.List[float]], {"a": [1.5]}),
    "dict_int": (typing.Dict[int, str], {1: "one"}),
    "dict": (dict, {"a": {"b": [1, None]}}),
    "enum": (Color, Color.GREEN),
    "dataclass": (Point, POINT),
    "nested_dataclass": (Circle, Circle(POINT, 2.5)),
    "pydantic": (Model, Model(layers=[Layer(size=3)])),
    "optional_none": (typing.Optional[int], None),
    "optional_some": (typing.Optional[Point], POINT),
    "union": (typing.Union[int, str, Point], POINT),
    "union_of_models": (typing.Union[Layer, Model], Model(layers=[Layer(size=3)])),
    "list_of_optional": (typing.List[typing.Optional[str]], ["a", None]),
    "file": (File, File(path="s3://b/k.csv")),
    "dir": (Dir, Dir(path="s3://b/d")),
}


def encode(message):
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()


async def write():
    cases = {}
    for name, (ty, value) in CASES.items():
        literal_type = TypeEngine.to_literal_type(ty)
        literal = await TypeEngine.to_literal(value, ty, literal_type)
        cases[name] = {"type": encode(literal_type), "literal": encode(literal)}
    json.dump(cases, sys.stdout, indent=1)


async def read():
    for name, encoded in json.load(sys.stdin).items():
        ty, value = CASES[name]
        literal = literals_pb2.Literal.FromString(base64.b64decode(encoded))
        got = await TypeEngine.to_python_value(literal, ty)
        if isinstance(value, (File, Dir)):
            got, value = got.path, value.path
        print("ok" if got == value and type(got) is type(value) else f"DIFFERS, got {got!r} for {value!r}", name)


asyncio.run({"write": write, "read": read}[sys.argv[1]]())
