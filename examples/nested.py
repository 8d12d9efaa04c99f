"""Nested parents: a task that calls itself, so that children have children of their own.

A merge sort in which every half is sorted by another action. Eight numbers make a tree of seven
actions, three levels deep; each parent stays alive while its halves are being sorted.

    flyte run --follow examples/nested.py main
"""

import asyncio
from heapq import merge

import flyte

env = flyte.TaskEnvironment("nested")


@env.task
async def sort(numbers: list[int]) -> list[int]:
    """Sort by handing each half to a child, until two numbers or fewer are left."""
    if len(numbers) <= 2:
        return sorted(numbers)
    middle = len(numbers) // 2
    left, right = await asyncio.gather(sort(numbers[:middle]), sort(numbers[middle:]))
    return list(merge(left, right))


@env.task
async def main(numbers: list[int] = [31, 4, 15, 92, 65, 35, 89, 79]) -> list[int]:
    """Sort a list with a tree of actions."""
    return await sort(numbers)
