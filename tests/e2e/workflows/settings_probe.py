"""Says in its log what a task got of settings: its variables, and where its files and its metadata go."""

import json
import os

import flyte
from flyte.io import File

env = flyte.TaskEnvironment(
    name="settings_probe",
    resources=flyte.Resources(cpu=1, memory="256Mi"),
    env_vars={"FROM_TASK": "task"},
)


def say(who: str, **more: str) -> None:
    seen = {name: value for name, value in os.environ.items() if name.startswith("FROM_")}
    print(f"{who} {json.dumps(seen | more)}", flush=True)


@env.task
async def child() -> File:
    file = File.new_remote()
    async with file.open("wb") as out:
        await out.write(b"written")
    say("child", file=file.path, base=os.environ["_U_RUN_BASE"])
    return file


@env.task
async def main() -> str:
    say("main")
    file = await child()
    async with file.open("rb") as content:
        return bytes(await content.read()).decode()
