"""A run that goes on for a while and whose result is known: what is disturbed under it must not matter."""

import asyncio

import flyte

env = flyte.TaskEnvironment("steady")


@env.task
async def double(number: int) -> int:
    await asyncio.sleep(0.2)
    return 2 * number


@env.task
async def main(rounds: int = 10, width: int = 4) -> int:
    total = 0
    for r in range(rounds):
        total += sum(await asyncio.gather(*(double(r * width + i) for i in range(width))))
    return total
