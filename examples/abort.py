"""Abort: sleepers that are meant to be woken.

The parent starts a few children that tick once a second for ten minutes. Abort the run and
everything stops; abort one child, and the parent sees `ActionAbortedError` for that one alone.

    flyte run examples/abort.py main            # prints the run's name
    flyte get action RUN                        # prints the names of its actions
    flyte abort action RUN ACTION --reason "up you get"
    flyte abort run RUN --reason "school"
"""

import asyncio

import flyte
import flyte.errors

env = flyte.TaskEnvironment("abort")


@env.task
async def sleep(sleeper: str, seconds: int) -> str:
    """Tick until the time is up."""
    for second in range(seconds):
        print(f"{sleeper} sleeps, {seconds - second} s to go")
        await asyncio.sleep(1)
    return f"{sleeper} slept well"


@env.task
async def main(sleepers: list[str] = ["Ada", "Bob"], seconds: int = 600) -> list[str]:
    """Watch the sleepers, and note whether each woke or was woken."""
    naps = [sleep(sleeper, seconds) for sleeper in sleepers]
    endings = await asyncio.gather(*naps, return_exceptions=True)
    notes = []
    for sleeper, ending in zip(sleepers, endings):
        if isinstance(ending, flyte.errors.ActionAbortedError):
            ending = f"{sleeper} was woken"
        elif isinstance(ending, BaseException):
            raise ending
        notes.append(ending)
    return notes
