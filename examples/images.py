"""Images: a task that brings its own packages.

The `farm` environment adds a small package from PyPI to the base image; the parent's environment
does not have it. With `image.builder: remote` in the config, the image is built by the server when
the run is submitted, once, so neither Docker nor a registry is needed on this side. (A local run
uses no images: it needs `pip install cowsay`.)

    flyte --image-builder remote run --follow examples/images.py main
"""

import importlib.util
import os

import flyte

farm = flyte.TaskEnvironment(
    "images_farm",
    image=flyte.Image.from_debian_base(name="farm")
    .with_pip_packages("cowsay==6.1")
    .with_env_vars({"FARM": "green acres"}),
)
env = flyte.TaskEnvironment("images", depends_on=[farm])


@farm.task
async def moo(text: str) -> str:
    """Runs where cowsay is installed."""
    import cowsay

    return f"{os.environ.get('FARM', 'nowhere')}\n{cowsay.get_output_string('cow', text)}"


@env.task
async def main(text: str = "moo") -> tuple[bool, str]:
    """Say whether this task has cowsay, and what the task that has it says."""
    return importlib.util.find_spec("cowsay") is not None, await moo(text)
