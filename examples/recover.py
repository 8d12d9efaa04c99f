"""Recovering: a run that failed goes on where it was, in a run of its own.

`main` fails as long as `broken` is true. Recovered with `broken` false, it does not repeat what had succeeded: neither the
tasks nor the traced call.

    flyte run examples/recover.py main                                # fails
    flyte rerun RUN --recover --broken false                          # goes on
    flyte rerun RUN --recover --broken false --force-rerun-action A   # repeats one action
"""

import asyncio
import uuid

import flyte

env = flyte.TaskEnvironment("recover")


@env.task
async def work(n: int) -> str:
    """A result that tells executions apart."""
    return f"{n}-{uuid.uuid4().hex[:8]}"


@flyte.trace
async def side_effect(n: int) -> str:
    """Something that must not happen twice."""
    return f"{n}-{uuid.uuid4().hex[:8]}"


@env.task(retries=0)
async def fragile(broken: bool) -> str:
    """Fails while it is broken."""
    if broken:
        raise ValueError("it is broken")
    return "mended"


@env.task
async def main(broken: bool = True) -> list[str]:
    """Some work, a side effect, and something fragile."""
    done = list(await asyncio.gather(*(work(n) for n in range(3))))
    done.append(await side_effect(7))
    done.append(await fragile(broken))
    return done
