"""Retries: try again with growing pauses, unless trying again is pointless.

`flaky` fails twice and succeeds on its third attempt; its retries wait 0.2 s, then 0.4 s.
`hopeless` may be retried five times, but raises `NonRecoverableError`, which ends it at once.

Only a server counts attempts (a local run always sees attempt 0), so on a local run `flaky` keeps
quiet and succeeds straight away.

    flyte run --follow examples/retries.py main
"""

from datetime import timedelta

import flyte
import flyte.errors

env = flyte.TaskEnvironment("retries")

patient = flyte.RetryStrategy(
    count=3,
    backoff=flyte.Backoff(base=timedelta(milliseconds=200), factor=2.0, cap=timedelta(seconds=1)),
)


@env.task(retries=patient)
async def flaky(good_attempt: int) -> str:
    """Fail until attempt number `good_attempt`, counting from zero."""
    attempt = flyte.ctx().attempt_number
    if flyte.ctx().is_in_cluster() and attempt < good_attempt:
        raise TimeoutError(f"attempt {attempt} timed out")
    return f"done on attempt {attempt}"


@env.task(retries=5)
async def hopeless() -> str:
    """Fail for good on the first attempt, retries or not."""
    raise flyte.errors.NonRecoverableError("the well is dry", code="DryWell")


@env.task
async def main(good_attempt: int = 2) -> list[str]:
    """Run both and say how each ended."""
    report = [await flaky(good_attempt)]
    try:
        report.append(await hopeless())
    except flyte.errors.RuntimeUserError as error:
        report.append(f"{error.code}: {error}")
    return report
