"""Conditions: a run that waits for a person's word.

    flyte run examples/conditions.py main
    flyte get condition RUN
    flyte signal condition RUN ACTION true
"""

from datetime import timedelta

import flyte
import flyte.errors

env = flyte.TaskEnvironment("conditions")


@env.task
async def main(report: str = "All is **well**.") -> str:
    """Ask whether to publish, and at which price."""
    approve = await flyte.new_condition.aio(
        "approve", prompt=f"# Publish?\n\n{report}", prompt_type="markdown", data_type=bool
    )
    if not await approve.wait.aio():
        return "kept back"
    price = await flyte.new_condition.aio("price", prompt="At which price?", data_type=float)
    return f"published at {await price.wait.aio():.2f}"


@env.task
async def impatient(seconds: float = 1.0) -> str:
    """Ask, and go on without an answer."""
    approve = await flyte.new_condition.aio("approve", data_type=bool, timeout=timedelta(seconds=seconds))
    try:
        return f"answered {await approve.wait.aio()}"
    except flyte.errors.ConditionTimedoutError:
        return "nobody answered"


@env.task
async def called(url: str) -> int:
    """Ask a program: it is called at `url`, and answers at the callback that it is told."""
    webhook = flyte.ConditionWebhook(url=url, payload={"answer_at": "{callback_uri}", "question": "how many?"})
    how_many = await flyte.new_condition.aio("how_many", data_type=int, webhook=webhook)
    return await how_many.wait.aio()
