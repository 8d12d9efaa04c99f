"""Structured values: dataclasses and pydantic models as inputs and outputs.

Both travel between tasks as themselves: nested, in lists and dicts, with optional fields and
enumerations, and pydantic's validation runs again wherever a model is read.

    flyte run --follow examples/dataclasses_and_pydantic.py main
"""

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

import flyte
from pydantic import BaseModel, Field

env = flyte.TaskEnvironment("dataclasses_and_pydantic")


class Size(str, Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Topping:
    name: str
    cents: int


@dataclass
class Pizza:
    size: Size
    toppings: list[Topping] = field(default_factory=list)
    note: Optional[str] = None


class Line(BaseModel):
    text: str
    cents: int = Field(ge=0)


class Bill(BaseModel):
    table: int
    lines: list[Line]
    total_cents: int
    by_size: dict[str, int] = {}


@env.task
async def price(pizza: Pizza) -> Line:
    """A dataclass goes in, a pydantic model comes out."""
    base = {Size.SMALL: 600, Size.LARGE: 900}[pizza.size]
    names = ", ".join(topping.name for topping in pizza.toppings) or "plain"
    note = f" ({pizza.note})" if pizza.note else ""
    return Line(text=f"{pizza.size.value}: {names}{note}", cents=base + sum(t.cents for t in pizza.toppings))


@env.task
async def add_up(table: int, pizzas: list[Pizza], lines: list[Line]) -> Bill:
    """Lists of either kind are fine too."""
    by_size: dict[str, int] = {}
    for pizza in pizzas:
        by_size[pizza.size.value] = by_size.get(pizza.size.value, 0) + 1
    return Bill(table=table, lines=lines, total_cents=sum(line.cents for line in lines), by_size=by_size)


@env.task
async def main(table: int = 7) -> Bill:
    """Take an order and write the bill."""
    basil, olives = Topping("basil", 50), Topping("olives", 120)
    pizzas = [
        Pizza(Size.SMALL),
        Pizza(Size.LARGE, [basil, olives], note="well done"),
        Pizza(Size.LARGE, [olives]),
    ]
    lines = await asyncio.gather(*(price(pizza) for pizza in pizzas))
    return await add_up(table, pizzas, list(lines))
