"""A run in which everything happens at once: what test_history.py watches.

`main` starts leaves that succeed, fail, fail and are tried again, take a while, wait to be aborted; branches with children
of their own, one of which fails while its children run; and traces.
"""

import asyncio
from datetime import timedelta

import flyte
import flyte.errors

env = flyte.TaskEnvironment("busy")

quick = flyte.RetryStrategy(count=2, backoff=flyte.Backoff(base=timedelta(milliseconds=100)))


@flyte.trace
async def note(number: int) -> int:
    return number


@env.task
async def leaf(number: int) -> int:
    await asyncio.sleep(number % 5 * 0.1)
    return number


@env.task
async def bad(number: int) -> int:
    raise flyte.errors.NonRecoverableError(f"leaf {number} is bad", code="Bad")


@env.task(retries=quick)
async def flaky(number: int) -> int:
    if flyte.ctx().attempt_number < 1 + number % 2:
        raise TimeoutError(f"leaf {number} is not ready")
    return number


@env.task
async def sleeper(number: int) -> int:
    await asyncio.sleep(600)
    return number


@env.task
async def branch(number: int, leaves: int) -> int:
    await note(number)
    return sum(await asyncio.gather(*(leaf(100 * number + i) for i in range(leaves))))


@env.task
async def broken_branch(number: int) -> int:
    """Fails while what it started still runs."""
    asyncio.gather(*(sleeper(1000 + 10 * number + i) for i in range(3)))
    await asyncio.sleep(3)
    raise flyte.errors.NonRecoverableError("the branch broke", code="Broken")


@env.task
async def main(size: int = 10) -> int:
    work = [leaf(i) for i in range(3 * size)]
    work += [bad(i) for i in range(size // 2)]
    work += [flaky(i) for i in range(size)]
    work += [sleeper(i) for i in range(4)]
    work += [branch(i, size) for i in range(3)]
    work += [broken_branch(i) for i in range(2)]
    await note(1)
    ends = await asyncio.gather(*work, return_exceptions=True)
    return sum(1 for end in ends if not isinstance(end, BaseException))
