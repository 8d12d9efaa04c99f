"""Hello from ten places at once: one parent, ten children, one stumble and one trace.

`main` asks ten children to say hello in ten languages, all at the same time. The child that
speaks Klingon loses its nerve on its first attempt and is retried. Pinning the ten answers on one
board is a traced function: it runs inside the parent, yet it is recorded as an action of its own,
so the run shows twelve actions.

    flyte run --follow examples/hello.py main --whom world
    python examples/hello.py                  # the same, and prints the board
"""

import asyncio

import flyte

env = flyte.TaskEnvironment("hello")

HELLOS = {
    "Basque": "Kaixo",
    "English": "Hello",
    "Esperanto": "Saluton",
    "Finnish": "Hei",
    "French": "Bonjour",
    "German": "Hallo",
    "Italian": "Ciao",
    "Klingon": "nuqneH",
    "Spanish": "Hola",
    "Welsh": "Helo",
}


@env.task(retries=1)
async def greet(language: str, whom: str) -> str:
    """Say hello in one language."""
    ctx = flyte.ctx()
    # A local run has no attempt numbers, so the stumble is kept for a real server.
    if language == "Klingon" and ctx.is_in_cluster() and ctx.attempt_number == 0:
        raise ConnectionError("the Klingon hung up; a retry should reach a calmer one")
    greeting = f"{HELLOS[language]}, {whom}!"
    print(f"{language}: {greeting}")
    return greeting


@flyte.trace
async def pin_up(languages: list[str], greetings: list[str]) -> str:
    """Lay the greetings out as a framed board."""
    lines = [f"{language:<10} {greeting}" for language, greeting in zip(languages, greetings)]
    width = max(map(len, lines))
    rule = f"+-{'-' * width}-+"
    return "\n".join([rule, *(f"| {line:<{width}} |" for line in lines), rule])


@env.task
async def main(whom: str = "world") -> str:
    """Collect ten greetings at once and pin them on a board."""
    languages = list(HELLOS)
    greetings = await asyncio.gather(*(greet(language, whom) for language in languages))
    board = await pin_up(languages, list(greetings))
    print(board)
    return board


if __name__ == "__main__":
    flyte.init_from_config()
    run = flyte.run(main, whom="world")
    print(run.url)
    run.wait()
    print(run.outputs().o0)
