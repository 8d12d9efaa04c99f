"""A task that has ended and whose process has not: a thread that nobody waits for keeps the interpreter from ending."""

import threading
import time

import flyte

env = flyte.TaskEnvironment("lingers")


@env.task
async def main(fail: bool = False) -> int:
    threading.Thread(target=time.sleep, args=(3600,)).start()
    if fail:
        raise ValueError("it went wrong before it hung")
    return 7
