"""DBOS with workflows that do nothing: python dbos_noop.py (start | direct | queue | latency) DATABASE AMOUNT

AMOUNT is seconds, for `latency` the number of workflows. Options as in the project's own benchmark: as many as a hundred
starts at once in each process, pools of 16 connections.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import time
import uuid

from dbos import DBOS, DBOSClient

NAME, QUEUE = "bench", "bench"
WARM = 2.0
AT_ONCE = 100
# Python uses one core, so one process for each, and not more than the benchmark of the project has.
PROCESSES = min(4, os.cpu_count() or 1)


@DBOS.workflow(name="noop")
async def noop() -> int:
    return 1


def launch(url: str) -> None:
    DBOS(config={
        "name": NAME, "system_database_url": url, "sys_db_pool_size": 16, "executor_id": str(uuid.uuid4()),
        "log_level": "WARNING",
    })  # fmt: skip
    DBOS.launch()


async def starting(begins: float, ends: float) -> int:
    """Workflows that end between two moments, by clients who each start one and wait for it."""
    count = 0

    async def client() -> None:
        nonlocal count
        while time.time() < ends:
            await (await DBOS.start_workflow_async(noop)).get_result()
            count += begins <= time.time() < ends

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return count


def direct(url: str, ready, moments, counts) -> None:
    launch(url)
    ready.wait()
    counts.put(asyncio.run(starting(*moments.get())))
    DBOS.destroy()


def work(url: str, ready, moments, counts) -> None:
    launch(url)
    ready.wait()
    moments.get()
    DBOS.destroy()


async def enqueueing(url: str, seconds: float) -> float:
    """Workflows each second, from the first enqueued to the last ended."""
    client = DBOSClient(system_database_url=url)
    count = 0

    async def enqueue(ends: float) -> None:
        nonlocal count
        while time.monotonic() < ends:
            await client.enqueue_async({"queue_name": QUEUE, "workflow_name": "noop"})
            count += 1

    async def load(length: float) -> float:
        nonlocal count
        count, began = 0, time.monotonic()
        await asyncio.gather(*(enqueue(began + length) for _ in range(AT_ONCE)))
        while await client.list_workflows_async(status=["ENQUEUED", "PENDING"], limit=1):
            await asyncio.sleep(0.05)
        return count / (time.monotonic() - began)

    await load(WARM)
    found = await load(seconds)
    client.destroy()
    return found


def rate(mode: str, url: str, seconds: float) -> float:
    context = multiprocessing.get_context("spawn")
    ready, moments, counts = context.Barrier(PROCESSES + 1), context.Queue(), context.Queue()
    target = direct if mode == "direct" else work
    processes = [context.Process(target=target, args=(url, ready, moments, counts)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    ready.wait()
    begins = time.time() + WARM
    found = asyncio.run(enqueueing(url, seconds)) if mode == "queue" else 0.0
    for _ in processes:
        moments.put((begins, begins + seconds))
    if mode == "direct":
        found = sum(counts.get() for _ in processes) / seconds
    for process in processes:
        process.join()
    return found


async def latency(count: int) -> tuple[list[float], list[float]]:
    """Milliseconds until a workflow is durable, and until its result is there."""
    durable, ended = [], []
    for _ in range(count + 20):
        await asyncio.sleep(0.02)
        began = time.perf_counter()
        handle = await DBOS.start_workflow_async(noop)
        durable.append((time.perf_counter() - began) * 1000)
        await handle.get_result()
        ended.append((time.perf_counter() - began) * 1000)
    return durable[20:], ended[20:]


async def first() -> None:
    await (await DBOS.start_workflow_async(noop)).get_result()


def main() -> None:
    mode, url, amount = sys.argv[1], sys.argv[2], float(sys.argv[3])
    if mode == "start":
        launch(url)
        asyncio.run(first())
        # Whoever started this process has the time.
        print(json.dumps({"ready": True}), flush=True)
        # Registered here, once, for the measurements that follow.
        DBOS.register_queue(QUEUE, worker_concurrency=1000, polling_interval_sec=0.1, on_conflict="always_update")
        DBOS.destroy()
    elif mode == "latency":
        launch(url)
        durable, ended = asyncio.run(latency(int(amount)))
        print(json.dumps({"durable": durable, "ended": ended}))
        DBOS.destroy()
    else:
        print(json.dumps({"rate": rate(mode, url, amount)}))


if __name__ == "__main__":
    main()
