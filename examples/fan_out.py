"""Fan out: cut a job into pieces, run a child per piece, add up what they return.

The job is counting primes. Each child counts those in its own slice of the number line; the
parent starts all of them with `asyncio.gather` and waits for all of them at once.

    flyte run --follow examples/fan_out.py main --limit 10000 --pieces 8
"""

import asyncio
from math import isqrt

import flyte

env = flyte.TaskEnvironment("fan_out")


@env.task
async def count_primes(start: int, stop: int) -> int:
    """Count the primes p with start <= p < stop, by trial division."""
    primes = sum(n > 1 and all(n % d for d in range(2, isqrt(n) + 1)) for n in range(start, stop))
    print(f"[{start}, {stop}): {primes} primes")
    return primes


@env.task
async def main(limit: int = 10_000, pieces: int = 8) -> int:
    """Count the primes below `limit` with `pieces` children."""
    edges = [limit * i // pieces for i in range(pieces + 1)]
    counts = await asyncio.gather(*(count_primes(a, b) for a, b in zip(edges, edges[1:])))
    return sum(counts)
