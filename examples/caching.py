"""Caching: work that was done before is not done again.

`stamp` returns something that no two executions return, so equal results come from the cache. `once` is serialized: of
several identical actions one computes and the others wait for its result. `fresh_enough` takes results of the last minute
only. `greeting` ignores who asks.

    flyte run --follow examples/caching.py main
    flyte run --follow examples/caching.py main                      # the same stamps
    flyte run --overwrite-cache --follow examples/caching.py main    # new stamps, which replace the old ones
"""

import asyncio
import uuid
from datetime import timedelta

import flyte

env = flyte.TaskEnvironment("caching")


@env.task(cache=flyte.Cache(behavior="override", version_override="1"))
async def stamp(n: int) -> str:
    """A result that tells executions apart."""
    return f"{n}-{uuid.uuid4().hex[:8]}"


@env.task(cache=flyte.Cache(behavior="override", version_override="1", serialize=True))
async def once(n: int) -> str:
    """As `stamp`, but computed by one of several at a time, and slowly."""
    await asyncio.sleep(2)
    return f"{n}-{uuid.uuid4().hex[:8]}"


@env.task(cache=flyte.Cache(behavior="override", version_override="1", max_age=timedelta(minutes=1)))
async def fresh_enough(n: int) -> str:
    """As `stamp`, for a minute."""
    return f"{n}-{uuid.uuid4().hex[:8]}"


@env.task(cache=flyte.Cache(behavior="override", version_override="1", ignored_inputs=("whom",)))
async def greeting(word: str, whom: str) -> str:
    """The same for everybody."""
    return f"{word}, {whom} {uuid.uuid4().hex[:8]}"


@env.task
async def main(n: int = 1) -> list[str]:
    """One of each, twice where that tells something."""
    return [
        await stamp(n),
        *await asyncio.gather(once(n), once(n), once(n)),
        await fresh_enough(n),
        await greeting(f"hello {n}", "ann"),
        await greeting(f"hello {n}", "bob"),
    ]
