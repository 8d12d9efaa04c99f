"""Tasks that Aloft does itself: many that sleep, and one that gives its inputs back."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import flyte
import flyte.errors
from flyte.extend import AsyncFunctionTaskTemplate, TaskPluginRegistry
from flyte.extras import Sleep


@dataclass
class Echo:
    """Route a task to what gives its inputs back."""


@dataclass(kw_only=True)
class EchoTask(AsyncFunctionTaskTemplate):
    plugin_config: Echo
    task_type: str = "echo"


TaskPluginRegistry.register(Echo, EchoTask)

naps = flyte.TaskEnvironment("inline_naps", plugin_config=Sleep())
parrots = flyte.TaskEnvironment("inline_parrots", plugin_config=Echo())
env = flyte.TaskEnvironment("inline", depends_on=[naps, parrots])


@naps.task
async def nap(duration: timedelta) -> None:
    raise AssertionError("nobody calls this")


@naps.task(timeout=flyte.Timeout(max_runtime=timedelta(seconds=1)))
async def short_nap(duration: timedelta) -> None:
    raise AssertionError("nobody calls this")


@parrots.task
async def parrot(word: str, times: int) -> tuple[str, int]:
    raise AssertionError("nobody calls this")


@env.task
async def dormitory(beds: int, seconds: float) -> int:
    await asyncio.gather(*(nap(timedelta(seconds=seconds)) for _ in range(beds)))
    return beds


@env.task
async def repeat(word: str) -> str:
    word, times = await parrot(word, 3)
    return word * times


@env.task
async def oversleep() -> str:
    try:
        await short_nap(timedelta(hours=1))
    except flyte.errors.MaxRuntimeExceededError:
        return "woken"
    return "slept"
