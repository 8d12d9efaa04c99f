"""Handling errors: a child's exception arrives in its parent, which may go on.

Whatever a child raises reaches the parent as `flyte.errors.RuntimeUserError`: `code` is the name
of the exception's class and the text is its message. The parent here tries three doors, two of
which are locked, and carries on with the one that opens.

    flyte run --follow examples/user_errors.py main
"""

import flyte
import flyte.errors

env = flyte.TaskEnvironment("user_errors")


class DoorLocked(Exception):
    """An exception class of our own; its name becomes the error code."""


@env.task
async def open_door(number: int) -> str:
    """Only door 3 opens."""
    if number == 1:
        raise ValueError("door 1 is painted on the wall")
    if number == 2:
        raise DoorLocked("door 2 is locked")
    return f"door {number} opens"


@env.task
async def main() -> list[str]:
    """Try each door, note what happened, and go on."""
    diary = []
    for number in (1, 2, 3):
        try:
            diary.append(await open_door(number))
        except flyte.errors.RuntimeUserError as error:
            diary.append(f"{error.code}: {error}")
    return diary
