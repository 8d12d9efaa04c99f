"""What run.py measures with: tasks that do nothing, and one that starts them one by one."""

import asyncio
import json
import time
from pathlib import Path

import flyte

env = flyte.TaskEnvironment("bench")
# More than any machine has: it is given all there is, and nothing else starts as long as it runs.
blocking = flyte.TaskEnvironment("blocking", resources=flyte.Resources(memory="4000Gi"))


@env.task
async def noop(number: int) -> int:
    return number


@env.task
async def arrival(number: int) -> int:
    return time.time_ns()


@env.task
async def stamp(path: str) -> int:
    now = time.time_ns()
    Path(path).write_text(str(now))
    return now


@env.task
async def one_by_one(count: int, path: str) -> int:
    """For each child: from the call of the task function to the child's first line, and to its result."""
    found = []
    for number in range(count):
        sent = time.time_ns()
        arrived = await arrival(number)
        found.append([arrived - sent, time.time_ns() - sent])
    Path(path).write_text(json.dumps(found))
    return count


@env.task
async def fan_out(count: int) -> int:
    return sum(await asyncio.gather(*(noop(number) for number in range(count))))


@blocking.task
async def block(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds
