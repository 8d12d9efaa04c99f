"""Tasks that a test carries out locally and reports: they stumble, and they wait for what the test puts into a directory."""

import asyncio
from datetime import timedelta
from pathlib import Path

import flyte
import flyte.report

env = flyte.TaskEnvironment("tracked_work")


@env.task(retries=flyte.RetryStrategy(count=3, backoff=flyte.Backoff(base=timedelta(milliseconds=300))))
async def wobbly(marks: str) -> int:
    """Succeeds on its third try."""
    tries = Path(marks) / "tries"
    count = len(tries.read_text()) if tries.exists() else 0
    tries.write_text("x" * (count + 1))
    if count < 2:
        raise ConnectionError(f"try {count + 1} went wrong")
    return count


@env.task
async def stumble(marks: str) -> int:
    """A parent whose child is tried again."""
    return await wobbly(marks) + 40


@env.task
async def nap(marks: str) -> str:
    """Waits until the test says go."""
    (Path(marks) / "napping").touch()
    while not (Path(marks) / "go").exists():
        await asyncio.sleep(0.05)
    return "rested"


@env.task(report=True)
async def busy(marks: str) -> str:
    """Shows a first report, and goes on while its child naps."""
    await flyte.report.log.aio("<p>half done</p>")
    await flyte.report.flush.aio()
    rested = await nap(marks)
    await flyte.report.log.aio(f"<p>{rested}</p>")
    await flyte.report.flush.aio()
    return rested
