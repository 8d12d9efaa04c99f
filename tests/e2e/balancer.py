"""What stands before several servers of one fleet and knows nothing of them."""

from __future__ import annotations

import asyncio
import itertools
import threading


class Balancer(threading.Thread):
    """Passes each connection on to the next server that takes it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.behind: dict[int, int] = {}
        self.turn = itertools.count()
        self.loop = asyncio.new_event_loop()
        self.port = 0
        listening = threading.Event()

        async def listen() -> None:
            server = await asyncio.start_server(self.passed_on, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            listening.set()

        def body() -> None:
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(listen())
            self.loop.run_forever()

        self.run = body  # type: ignore[method-assign]
        self.start()
        assert listening.wait(10)

    async def passed_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports = list(self.behind.values())
        first = next(self.turn)
        for n in range(len(ports)):
            try:
                there = await asyncio.open_connection("127.0.0.1", ports[(first + n) % len(ports)])
            except OSError:
                continue
            await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))
            return
        writer.close()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while some := await reader.read(65536):
            writer.write(some)
            await writer.drain()
    except OSError:
        pass
    writer.close()
