"""Attempts that end in every way, and what the next one makes of it."""

import asyncio
import os
import signal
from datetime import timedelta

import flyte
import flyte.errors

env = flyte.TaskEnvironment("ends")


@env.task(retries=2)
async def stumble() -> int:
    number = int(os.environ["FLYTE_ATTEMPT_NUMBER"])
    print(f"this is attempt number {number}", flush=True)
    assert number == flyte.ctx().attempt_number
    if number < 2:
        raise ValueError(f"stumbled on {number}")
    return number


@env.task(retries=3)
async def climb(how: str) -> int:
    """Saves three steps and falls, however it is told; then says where it went on from."""
    checkpoint = flyte.ctx().checkpoint
    previous = await checkpoint.load()
    start = int(previous.read_bytes()) if previous else 0
    if start:
        return start
    for step in range(1, 4):
        await checkpoint.save(str(step).encode())
    print("three steps are saved", flush=True)
    match how:
        case "raise":
            raise ValueError("fell")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(600)
    return -1


@env.task(retries=2)
async def fall_twice() -> int:
    """Saves on its first attempt, and dies on its second before it can."""
    checkpoint = flyte.ctx().checkpoint
    previous = await checkpoint.load()
    match flyte.ctx().attempt_number:
        case 0:
            await checkpoint.save(b"7")
            raise ValueError("fell once")
        case 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return int(previous.read_bytes()) if previous else 0


@env.task(retries=1, timeout=flyte.Timeout(max_runtime=timedelta(seconds=5)))
async def interrupted() -> int:
    """Saves when it is asked to stop, which takes it a while."""
    checkpoint = flyte.ctx().checkpoint
    if previous := await checkpoint.load():
        return int(previous.read_bytes())
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print("ready to be stopped", flush=True)
    await stopped.wait()
    await asyncio.sleep(2)
    await checkpoint.save(b"42")
    print("saved after it was stopped", flush=True)
    return -1


@env.task
async def hungry(group: str) -> int:
    """Joins a control group that holds less than it takes."""
    with open(os.path.join(group, "cgroup.procs"), "w") as procs:
        procs.write(str(os.getpid()))
    return len(bytearray(256 << 20))


@env.task
async def feeds(group: str) -> str:
    try:
        await hungry(group)
    except flyte.errors.OOMError as error:
        return error.code
    return "it was enough"


@env.task
async def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@env.task
async def leaf() -> int:
    return 1


@env.task
async def waits_for(path: str) -> int:
    print("waiting", flush=True)
    while not os.path.exists(path):
        await asyncio.sleep(0.1)
    return await leaf()
