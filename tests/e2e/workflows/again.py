"""A task that says a word, and fails if it is `bad`: what runs of the same name are told apart by."""

import flyte

env = flyte.TaskEnvironment("again")


@env.task(cache=flyte.Cache(behavior="override", version_override="1"))
async def part(word: str) -> str:
    return f"part of {word}"


@env.task
async def main(word: str) -> str:
    print(f"this is {word}")
    said = await part(word)
    if word == "bad":
        raise ValueError(f"{word} does not work")
    return said
