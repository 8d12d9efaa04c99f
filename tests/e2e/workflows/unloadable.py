"""A module that can be loaded by whoever submits it and not by whoever runs it."""

import os

import flyte

if "ACTION_NAME" in os.environ:
    import a_package_that_nobody_has  # noqa: F401

env = flyte.TaskEnvironment("unloadable")


@env.task(retries=1)
async def main() -> int:
    return 1
