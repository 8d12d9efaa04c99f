"""Limits: how many actions of a run, or of a queue, run at a time.

Each `step` says from when to when it ran; `main` tells how many ran at the same time at most. A parent that waits for its
children does not count.

    flyte run --follow --max-action-concurrency 2 examples/concurrency.py main
    aloft create queue narrow --action-concurrency 1
    flyte run --follow examples/concurrency.py main --queue narrow
"""

import asyncio
import time

import flyte

env = flyte.TaskEnvironment("concurrency")


@env.task
async def step(n: int, seconds: float) -> tuple[float, float]:
    """Take a while."""
    began = time.time()
    await asyncio.sleep(seconds)
    return began, time.time()


@env.task
async def main(count: int = 5, seconds: float = 1.0, queue: str = "") -> int:
    """The largest number of steps that ran at the same time."""
    one = step.override(queue=queue) if queue else step
    spans = await asyncio.gather(*(one(n, seconds) for n in range(count)))
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)
