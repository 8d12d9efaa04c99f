"""Actions that wait where no server is asked: what test_workers.py takes workers away under.

Each piece of work appends a line to a file when it begins and another when it returns: what, who, which attempt, its process,
and where it works, which tells the operator that runs it. It returns when there is a file called `go`.
"""

import asyncio
import os
from pathlib import Path

import flyte

env = flyte.TaskEnvironment("workers", resources=flyte.Resources(cpu=1, memory="100Mi"))


def mark(marks: str, what: str, name: str) -> None:
    """Append a line in one write, so that lines of many processes do not mix."""
    line = f"{what} {name} {flyte.ctx().attempt_number + 1} {os.getpid()} {os.getcwd()}\n"
    fd = os.open(Path(marks) / "marks", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


@env.task
async def held(marks: str, number: int) -> int:
    mark(marks, "begin", f"held-{number}")
    print(f"this is number {number}")
    while not (Path(marks) / "go").exists():
        await asyncio.sleep(0.02)
    mark(marks, "end", f"held-{number}")
    return number


@env.task
async def main(marks: str, count: int) -> int:
    mark(marks, "begin", "main")
    numbers = await asyncio.gather(*(held(marks, number) for number in range(count)))
    mark(marks, "end", "main")
    return sum(numbers)
