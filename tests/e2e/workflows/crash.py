"""Two hundred actions that leave marks where no server is asked: what test_crash.py kills the server under.

`main` starts three branches, each starts two twigs, each twig starts thirty leaves; every parent takes a traced note first.
Each piece of work appends a line to one file when it begins and another when it has returned, so that the test can tell
what really ran, whatever the server believes.
"""

import asyncio
import os
import time
from pathlib import Path

import flyte

env = flyte.TaskEnvironment("crash")

BRANCHES, TWIGS, LEAVES = 3, 2, 30
# main, branches, twigs, leaves, and a trace in every parent
ACTIONS = 1 + BRANCHES + BRANCHES * TWIGS + BRANCHES * TWIGS * LEAVES + (1 + BRANCHES + BRANCHES * TWIGS)


def mark(marks: str, what: str, name: str) -> None:
    """Append a line in one write, so that lines of many processes do not mix: what, who, which attempt, when."""
    ctx = flyte.ctx()
    line = f"{what} {name} {ctx.action.name} {ctx.attempt_number + 1} {time.time_ns()}\n"
    fd = os.open(Path(marks) / "marks", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def value(branch: int, twig: int, leaf: int) -> int:
    return (branch * TWIGS + twig) * LEAVES + leaf


@flyte.trace
async def note(marks: str, name: str) -> int:
    mark(marks, "begin", name)
    await asyncio.sleep(0.02)
    mark(marks, "end", name)
    return 1000


@env.task
async def leaf(marks: str, name: str, number: int, pause: float) -> int:
    mark(marks, "begin", name)
    await asyncio.sleep(pause)
    mark(marks, "end", name)
    return number


@env.task
async def twig(marks: str, branch_number: int, number: int) -> int:
    name = f"twig-{branch_number}-{number}"
    mark(marks, "begin", name)
    noted = await note(marks, f"note-of-{name}")
    # Most return at once; every sixth takes 0.1 s to 2 s.
    leaves = await asyncio.gather(
        *(
            leaf(marks, f"leaf-{n}", n, 0.1 + n * 7 % 20 / 10 if n % 6 == 0 else 0.0)
            for n in (value(branch_number, number, i) for i in range(LEAVES))
        )
    )
    mark(marks, "end", name)
    return noted + sum(leaves)


@env.task
async def branch(marks: str, number: int) -> int:
    name = f"branch-{number}"
    mark(marks, "begin", name)
    noted = await note(marks, f"note-of-{name}")
    twigs = await asyncio.gather(*(twig(marks, number, i) for i in range(TWIGS)))
    mark(marks, "end", name)
    return noted + sum(twigs)


@env.task
async def main(marks: str) -> int:
    mark(marks, "begin", "main")
    noted = await note(marks, "note-of-main")
    branches = await asyncio.gather(*(branch(marks, i) for i in range(BRANCHES)))
    mark(marks, "end", "main")
    return noted + sum(branches)


EXPECTED = sum(range(BRANCHES * TWIGS * LEAVES)) + 1000 * (1 + BRANCHES + BRANCHES * TWIGS)
