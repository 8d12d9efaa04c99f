"""Traces: record the steps inside a task without giving each a process of its own.

A function under `@flyte.trace` runs where it is called, but its inputs, output, duration and error
are recorded as an action below the task. Should the task be retried, the recorded steps are
replayed instead of run again. Coroutines and plain functions can be traced; one step here fails,
and that is recorded too.

    flyte run --follow examples/traces.py main
"""

import flyte

env = flyte.TaskEnvironment("traces")


@flyte.trace
async def spell(word: str) -> list[str]:
    """A traced coroutine."""
    return list(word.upper())


@flyte.trace
async def divide(total: int, parts: int) -> float:
    """Fails if asked to divide by zero, and the error is recorded."""
    return total / parts


@flyte.trace
def measure(word: str) -> int:
    """A traced plain function; call it from a plain task, since it blocks."""
    return len(word)


@env.task
def survey(word: str) -> int:
    """A plain task with one traced step."""
    return measure(word)


@env.task
async def main(word: str = "aloft") -> list[str]:
    """Run three traced steps, the last of which fails and is forgiven, and a child with one of its own."""
    letters = await spell(word)
    length = await survey.aio(word)
    half = await divide(length, 2)
    try:
        await divide(length, 0)
        verdict = "dividing by zero worked"
    except Exception as error:
        verdict = f"no: {error}"
    return ["-".join(letters), str(length), str(half), verdict]
