"""Groups: put a name on a set of children.

Actions started inside `flyte.group(...)` carry the group's name, and lists and pages fold them
under it. Nothing else changes: not their results and not what they may do.

    flyte run --follow examples/groups.py main
"""

import asyncio

import flyte

env = flyte.TaskEnvironment("groups")


@env.task
async def roll(dice: str, seed: int) -> int:
    """Roll a die such as `d6`; the same seed always rolls the same number."""
    sides = int(dice.removeprefix("d"))
    return (seed * 7919 + 104729) % sides + 1


@env.task
async def main(rolls: int = 3) -> dict[str, list[int]]:
    """Roll two kinds of dice, each kind in a group of its own."""
    results = {}
    for dice in ("d6", "d20"):
        with flyte.group(f"roll-{dice}"):
            results[dice] = list(await asyncio.gather(*(roll(dice, seed) for seed in range(rolls))))
    return results
