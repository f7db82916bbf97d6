"""One of several servers of a model, in a process of its own: what comes is given to the same application, and what
that says is handed on message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Message

from headwise.serve.app import make_app
from headwise.serve.guard import Guard
from headwise.serve.start import Server, Wanted
from headwise.serve.worker import Worker


class Replica:
    """Answers requests in the messages of ASGI. Who asks was let in already."""

    def __init__(self, wanted: Wanted, most_bytes: int) -> None:
        self.server = Server(wanted)
        self.worker = Worker(self.server.scheduler)
        self.app = make_app(self.server.served, self.worker, self.server.metrics, Guard(most_bytes=most_bytes))
        self.worker.start()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """What the application says to a request; when nobody listens any more, it is ended."""
        said, given = asyncio.Queue[Message | None](), [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if given:
                return given.pop()
            await asyncio.Event().wait()  # who goes is told by the end of this call
            raise AssertionError

        async def send(message: Message) -> None:
            said.put_nowait(message)

        answering = asyncio.ensure_future(self.app(scope | {"state": {}}, receive, send))
        answering.add_done_callback(lambda _: said.put_nowait(None))
        try:
            while (message := await said.get()) is not None:
                yield message
        finally:
            answering.cancel()

    async def figures(self) -> str:
        """Its figures, as Prometheus reads them."""
        return self.server.metrics.text().decode()

    async def is_there(self) -> str:
        """The name of the model."""
        return self.server.name

    def __del__(self) -> None:
        if hasattr(self, "worker"):
            self.worker.stop()
