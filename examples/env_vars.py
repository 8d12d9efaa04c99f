"""Environment variables: from the environment's definition and from the run.

`TaskEnvironment(env_vars=...)` sets them for every task of that environment. A run can add its
own, which go to all of its actions and win over the environment's. (A local run sets neither.)

    flyte run --follow --env MOOD=cheerful examples/env_vars.py main
    python examples/env_vars.py               # sets the run's variables in code
"""

import os

import flyte

env = flyte.TaskEnvironment("env_vars", env_vars={"COLOUR": "teal", "MOOD": "calm"})
bare = flyte.TaskEnvironment("env_vars_bare")

env.depends_on.append(bare)

NAMES = ("COLOUR", "MOOD", "SEASON")


@bare.task
async def look_around() -> dict[str, str]:
    """A task of another environment has the run's variables, but not `env`'s."""
    return {name: os.environ[name] for name in NAMES if name in os.environ}


@env.task
async def main() -> dict[str, dict[str, str]]:
    """Report what this task sees and what a child elsewhere sees."""
    here = {name: os.environ[name] for name in NAMES if name in os.environ}
    return {"here": here, "elsewhere": await look_around()}


if __name__ == "__main__":
    flyte.init_from_config()
    run = flyte.with_runcontext(env_vars={"MOOD": "cheerful", "SEASON": "autumn"}).run(main)
    print(run.url)
    run.wait()
    print(run.outputs().o0)
