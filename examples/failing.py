"""Failing: runs that end badly, to see what an error looks like from outside.

`main` raises after its child has done its part; `passed_on` lets a child's error through;
`crash` dies without a word, the way a process does when it is killed.

    flyte run --follow examples/failing.py main
    flyte run --follow examples/failing.py passed_on
    flyte run --follow examples/failing.py crash --code 42
"""

import os

import flyte

env = flyte.TaskEnvironment("failing")


class OutOfHay(Exception):
    """Becomes the error code of the run."""


@env.task
async def load(straws: int) -> int:
    """Load a camel, within reason."""
    if straws > 1000:
        raise ValueError(f"{straws} straws are too many")
    return straws


@env.task
async def main() -> int:
    """Fail, although the child succeeds."""
    straws = await load(999)
    print(f"loaded {straws} straws")
    raise OutOfHay(f"only {straws} straws left")


@env.task
async def passed_on() -> int:
    """Fail because a child does."""
    return await load(1001)


@env.task
async def crash(code: int = 42) -> int:
    """Leave at once: no exception, no outputs, only an exit code."""
    print("goodbye", flush=True)
    os._exit(code)
