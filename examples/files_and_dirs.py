"""Files and directories: pass them between tasks by reference.

A `File` or a `Dir` is a pointer into the object store. The bytes are uploaded by the task that
makes them and are fetched only by the task that reads them; the parent that hands them on never
touches them.

    flyte run --follow examples/files_and_dirs.py main
"""

import asyncio
import tempfile
from pathlib import Path

import flyte
from flyte.io import Dir, File

env = flyte.TaskEnvironment("files_and_dirs")

POEM = {
    "spring.txt": "The snow is going\nand the village is flooded\nwith happy children\n",
    "summer/noon.txt": "Not a single cloud\n",
    "summer/night.txt": "A firefly\nbuys the dark\nwith one small coin\n",
}


@env.task
async def write_poem() -> Dir:
    """Write a small tree of files to local disk and upload it as one directory."""
    root = Path(tempfile.mkdtemp())
    for name, text in POEM.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return await Dir.from_local(str(root))


@env.task
async def count_words(file: File) -> int:
    """Stream one remote file and count its words."""
    async with file.open("rb") as stream:
        return len(bytes(await stream.read()).split())


@env.task
async def bind(poem: Dir) -> File:
    """Download a directory and write its files, in order, into one new remote file."""
    root = Path(await poem.download())
    book: File = File.new_remote("book.txt")
    async with book.open("wb") as stream:
        for path in sorted(root.rglob("*.txt")):
            await stream.write(path.read_bytes())
    return book


@env.task
async def main() -> tuple[dict[str, int], int, File]:
    """Count the words of each file, and of the book made of all of them."""
    poem = await write_poem()
    files = {file.name: file async for file in poem.walk()}
    counts = await asyncio.gather(*(count_words(files[name]) for name in sorted(files)))
    book = await bind(poem)
    return dict(zip(sorted(files), counts)), await count_words(book), book
