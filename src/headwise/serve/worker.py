"""The thread that runs the scheduler, and how handlers of requests hear from it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator

from headwise.serve.request import Embedded, Ended, Event, Failed, Look, Piece, Request, Scored, Ticket, Usage
from headwise.serve.scheduler import Scheduler

LOG = logging.getLogger("headwise.serve")
NAP = 0.2  # seconds between two looks at requests that wait or are late, where there is nothing else to do


class Worker:
    """Runs a scheduler in a thread of its own until `stop`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._woken, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="headwise-serve", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Let go of all that is not answered, and end the thread."""
        self._stopping = True
        self._woken.set()
        self._thread.join()

    def wake(self) -> None:
        """There is something to do."""
        self._woken.set()

    def _run(self) -> None:
        while not self._stopping:
            try:
                worked = self.scheduler.advance()
            except Exception as error:
                LOG.exception("step_failed")
                self.scheduler.abandon(error)
                continue
            if not worked:
                self._woken.wait(NAP)
                self._woken.clear()
        self.scheduler.abandon(InterruptedError())
        self.scheduler.close()


def _cancel(taking: asyncio.Future[Ticket]) -> None:
    if not taking.cancelled() and taking.exception() is None:
        taking.result().cancel()


class Listener:
    """What happens to one request, for a handler to wait for."""

    def __init__(self, worker: Worker, request: Request) -> None:
        self.worker, self.request = worker, request
        self.ticket: Ticket | None = None
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def _tell(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def submit(self) -> None:
        """Hand the request over. HeadwiseError where it is not taken."""
        taking = asyncio.ensure_future(asyncio.to_thread(self.worker.scheduler.submit, self.request, self._tell))
        try:
            self.ticket = await asyncio.shield(taking)
        except asyncio.CancelledError:  # it is taken all the same, and nobody will wait for it
            taking.add_done_callback(_cancel)
            raise
        self.worker.wake()

    async def events(self) -> AsyncIterator[Look | Scored | Embedded | Piece | Ended | Usage]:
        """What happens, up to what it took; the error that ended it is raised."""
        while True:
            event = await self._events.get()
            if isinstance(event, Failed):
                raise event.error
            yield event
            if isinstance(event, Usage):
                return

    def close(self) -> None:
        """Nobody waits any more."""
        if self.ticket is not None:
            self.ticket.cancel()
            self.worker.wake()
