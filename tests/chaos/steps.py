"""The work that is done while everything around it is killed: rounds of children, each of which leaves a line in a file when it
begins and another when it returns.

`CHAOS_MARKS` names the file, `CHAOS_ROUNDS` says how long a run is. A child returns a number that nobody could guess, so that
what its parent sums up tells whether any of them was lost, or done again with another result.
"""

import asyncio
import os
import secrets

import flyte

env = flyte.TaskEnvironment("chaos", resources=flyte.Resources(cpu="250m", memory="150Mi"))

CHILDREN = 3


def mark(*words: object) -> None:
    """Append a line in one write, so that lines of many processes do not mix."""
    action = flyte.ctx().action
    line = " ".join(map(str, [action.run_name, action.name, flyte.ctx().attempt_number + 1, *words])) + "\n"
    fd = os.open(os.environ["CHAOS_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


@env.task
async def child(number: int) -> int:
    mark("begin")
    await asyncio.sleep(0.05 * (number % 7))
    value = secrets.randbelow(1 << 40)
    mark("end", value)
    return value


@env.task
async def main() -> int:
    mark("begin")
    values: list[int] = []
    for round in range(int(os.environ["CHAOS_ROUNDS"])):
        values += await asyncio.gather(*(child(round * CHILDREN + n) for n in range(CHILDREN)))
    mark("end", *values)
    return sum(values)
