"""Inputs and outputs, what is ignored of them, and what travels beside them."""

import os

import flyte
import flyte.report

env = flyte.TaskEnvironment("values")


@env.task(cache=flyte.Cache(behavior="override", version_override="1", ignored_inputs=("note",)))
async def noted(number: int, note: str) -> str:
    return f"{number} {note}"


@env.task
async def below() -> dict[str, str]:
    return dict(flyte.ctx().custom_context) | {"VARIABLE": os.environ.get("VARIABLE", "")}


@env.task
async def above() -> list[dict[str, str]]:
    mine = dict(flyte.ctx().custom_context) | {"VARIABLE": os.environ.get("VARIABLE", "")}
    with flyte.custom_context(added="here"):
        return [mine, await below()]


@flyte.trace
async def twice(number: int) -> int:
    return number * 2


@env.task(report=True, retries=1)
async def reported(number: int) -> int:
    attempt = flyte.ctx().attempt_number
    await flyte.report.log.aio(f"<p>attempt {attempt}</p>", do_flush=True)
    if attempt == 0:
        raise ValueError("not yet")
    return await twice(number)
