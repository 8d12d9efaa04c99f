"""`flyte.map` in ordinary, non-async code.

A synchronous task maps another task over a list. The children run concurrently, at most
`concurrency` of them at a time, and their results come back in the order of the inputs. An item
that fails comes back as an exception in its place when `return_exceptions` is set, so one bad
item does not spoil the batch.

    flyte run --follow examples/sync_map.py main
"""

from functools import partial

import flyte

env = flyte.TaskEnvironment("sync_map")

NUMERALS = [(10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]


@env.task
def to_roman(prefix: str, number: int) -> str:
    """Write a number from 1 to 39 as a Roman numeral."""
    if not 0 < number < 40:
        raise ValueError(f"{number} has no Roman numeral here")
    numeral = ""
    for value, letters in NUMERALS:
        numeral += letters * (number // value)
        number %= value
    return prefix + numeral


@env.task
def main(numbers: list[int] = [4, 9, 0, 14, 39]) -> list[str]:
    """Number some chapters; those that cannot be numbered get a dash."""
    chapters = flyte.map(
        partial(to_roman, "Chapter "), numbers, group_name="chapters", concurrency=3, return_exceptions=True
    )
    return ["-" if isinstance(chapter, Exception) else chapter for chapter in chapters]
