"""What run.py measures with: tasks that do nothing, and one that starts them one by one."""

import asyncio
import json
import time
from datetime import timedelta
from pathlib import Path

import flyte
from flyte.extras import Sleep

env = flyte.TaskEnvironment("bench")
# More than any machine has: it is given all there is, and nothing else starts as long as it runs.
blocking = flyte.TaskEnvironment("blocking", resources=flyte.Resources(memory="4000Gi"))
# The children of the stress test: their worker does them itself, without a process.
sleeping = flyte.TaskEnvironment("sleeping", plugin_config=Sleep())
# Its parents: with the limits that the SDK has by itself, and with limits that nothing here reaches.
limited = flyte.TaskEnvironment("limited", depends_on=[sleeping])
UNLOCKED = {"_F_MAX_QPS": "2000", "_F_CTRL_WORKERS": "100", "_F_P_CNC": "5000"}
unlocked = flyte.TaskEnvironment("unlocked", depends_on=[sleeping], env_vars=UNLOCKED)


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


@sleeping.task
async def sleep(duration: timedelta) -> None:
    return None


async def hold(count: int, seconds: float) -> int:
    """Children that sleep, all at once as far as the SDK lets them."""
    return len(await asyncio.gather(*(sleep(timedelta(seconds=seconds)) for _ in range(count))))


@limited.task
async def hold_limited(count: int, seconds: float) -> int:
    return await hold(count, seconds)


@unlocked.task
async def hold_unlocked(count: int, seconds: float) -> int:
    return await hold(count, seconds)
