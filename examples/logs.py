"""Logs: whatever a task prints is kept, in order and in colour.

Standard output and standard error both end up in the log of the attempt, ANSI colours and all.
`flyte get logs` reads the log of a finished task, and follows that of a running one.

    flyte run --follow examples/logs.py main --lines 5
    flyte get logs RUN
"""

import asyncio
import sys

import flyte

env = flyte.TaskEnvironment("logs")

COLOURS = (31, 32, 33, 34, 35, 36)


@env.task
async def main(lines: int = 30, pause: float = 0.0) -> int:
    """Print numbered lines in the colours of the rainbow, then a word on standard error."""
    for number in range(lines):
        colour = COLOURS[number % len(COLOURS)]
        print(f"\x1b[{colour}mline {number:04}\x1b[0m of {lines}")
        await asyncio.sleep(pause)
    print("that is all", file=sys.stderr)
    return lines
