"""Several servers of one model on Ray Serve, behind one address: which of them a request goes to, and what becomes of
it when that one dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headwise.errors import HeadwiseError
from headwise.seams.transformers.load import writes
from headwise.serve.app import Door, event_line, unless_gone
from headwise.serve.guard import Guard
from headwise.serve.metrics import joined
from headwise.serve.refusals import Refused, refusal
from headwise.serve.routing import Load, beginning, choose
from headwise.serve.start import Wanted

LOG = logging.getLogger("headwise.serve")
TRIES = 3  # servers that may die under a request, before it is told
LOOK, PATIENCE = 1.0, 10.0  # seconds between two looks at a server, and that one may take to answer them
PASSED = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path")


class Lost(Exception):
    """A server died under a request."""


class Slot:
    """One of the servers, which Ray Serve starts anew whenever it dies, and what it has to do."""

    def __init__(self, number: int, handle: Any) -> None:
        from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
        from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

        self.load, self._handle = Load(number), handle
        unavailable = DeploymentUnavailableError, ReplicaUnavailableError
        self._died = RayActorError, WorkerCrashedError, ObjectLostError, *unavailable

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Message, None]:
        """What it says to a request, in the messages of ASGI; Lost where it dies."""
        told = self._handle.options(method_name="answer", stream=True).remote(scope, body)
        self.load.busy += 1
        try:
            async for message in told:
                yield message
        except self._died as error:
            self.load.up = False
            raise Lost(type(error).__name__) from error
        finally:
            self.load.busy -= 1
            told.cancel()

    async def figures(self) -> str:
        """Its figures, as Prometheus reads them; Lost where it dies."""
        try:
            told: str = await self._handle.figures.remote()
        except self._died as error:
            raise Lost(type(error).__name__) from error
        return told

    async def watch(self) -> None:
        """Note for ever whether it is there."""
        while True:
            try:
                await asyncio.wait_for(self._look(), PATIENCE)
                self.load.up = True
            except Exception:  # whatever it says, it does not answer
                self.load.up = False
            await asyncio.sleep(LOOK)

    async def _look(self) -> None:
        await self._handle.is_there.remote()


class Front:
    """The application before the servers `slots` of the model `name`: it answers as each of them would. Behind a
    `Door`, which has let in who asks."""

    def __init__(self, name: str, slots: Sequence[Slot], guard: Guard) -> None:
        self.name, self.slots, self.guard, self.counts = name, tuple(slots), guard, Counter[str]()
        self._watching: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the beginning of all."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        request = Request(scope, receive)
        own: dict[str, Callable[[], Awaitable[Response]]] = {"/health": self._health, "/metrics": self._figures}
        if (made := own.get(scope["path"])) is not None and request.method == "GET":
            await (await made())(scope, receive, send)
            return
        body = await self.guard.body(request) if request.method == "POST" else b""
        await unless_gone(request, self._answer(scope, body, send))

    async def _live(self, receive: Receive, send: Send) -> None:
        """From start to end, look at the servers."""
        await receive()
        self._watching = [asyncio.ensure_future(one.watch()) for one in self.slots]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for one in self._watching:
            one.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        """What a server says to a request. Where it dies before anything was told, another is asked."""
        heard = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
        passed = {name: scope[name] for name in PASSED if name in scope} | {"headers": heard}
        for _ in range(TRIES):
            slot = await self._chosen(beginning(body))
            telling = _Telling(send, slot.load.number)
            messages = slot.answer(passed, body)
            try:
                async for message in messages:
                    await telling.say(message)
                return
            except Lost as error:
                kind = "lost" if telling.begun else "sent_again"
                self.counts[kind] += 1
                LOG.warning(
                    "replica_lost", extra={"told": {"replica": slot.load.number, "error": str(error)} | {kind: 1}}
                )
                if telling.begun:
                    await telling.end(_lost("while it answered; what it said is not whole"))
                    return
            finally:
                await messages.aclose()
        raise _lost(f"under the request, {TRIES} times; it is not tried again")

    async def _chosen(self, key: bytes) -> Slot:
        """The server that is asked; where none is up, one is waited for."""
        for _ in range(round(self.guard.patience / LOOK)):
            if (load := choose(key, [one.load for one in self.slots])) is not None:
                return self.slots[load.number]
            await asyncio.sleep(LOOK)
        raise _lost("and none has come back yet; come again later")

    async def _health(self) -> Response:
        up = sum(one.load.up for one in self.slots)
        told = {"status": "ok" if up else "down", "model": self.name, "replicas": len(self.slots), "up": up}
        return JSONResponse(told, 200 if up else 503)

    async def _figures(self) -> Response:
        """The figures of all that are up, each with its number."""
        found: dict[str, str] = {}
        for one in self.slots:
            if one.load.up:
                try:
                    found[str(one.load.number)] = await asyncio.wait_for(one.figures(), PATIENCE)
                except (Lost, asyncio.TimeoutError):
                    continue
        return Response(joined(found, self.counts), media_type="text/plain; version=0.0.4")


class _Telling:
    """What a client is told. A status waits for what follows it, so that until then another server can be asked."""

    def __init__(self, send: Send, number: int) -> None:
        self._send, self._number, self._start = send, number, dict[str, Any]()
        self.begun = False

    async def say(self, message: Message) -> None:
        """Hand a message on."""
        if message["type"] == "http.response.start":
            headers = [one for one in message.get("headers", ()) if one[0] != b"x-request-id"]
            self._start = {**message, "headers": [*headers, (b"x-headwise-replica", b"%d" % self._number)]}
            return
        if not self.begun:
            self.begun = True
            await self._send(self._start)
        await self._send(message)

    async def end(self, error: Refused) -> None:
        """End what has begun: a stream by an error, anything else by breaking off."""
        kinds = [value for name, value in self._start["headers"] if name == b"content-type"]
        if not any(one.startswith(b"text/event-stream") for one in kinds):
            raise error
        await self._send({"type": "http.response.body", "body": event_line(refusal(error).shown).encode()})


def _lost(how: str) -> Refused:
    return Refused(503, f"the replica that was asked died {how}", "replica_lost")


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def served_by(
    wanted: Wanted, count: int, guard: Guard, address: str, watch: Callable[[str], None]
) -> Iterator[ASGIApp]:
    """The application of so many servers on a Ray cluster, while they live. address: as `ray.init` takes it."""
    if not writes(wanted.place, wanted.remote_code):
        raise HeadwiseError(f"--replicas are of models that write, and '{wanted.name}' embeds; leave it out")
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise HeadwiseError(f"--replicas needs Ray Serve ({error}); pip install 'headwise[replicas]'") from None
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15, which leaves answers what others leave over
    started = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **started)
    except (ConnectionError, ValueError) as error:
        raise HeadwiseError(
            f"--ray {address}: {error}; start a cluster with `ray start --head`, or give local"
        ) from None
    try:
        signal.signal(signal.SIGTERM, _end)  # in the place of Ray's, which ends without an end
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"location": "NoServer"})
        share = min(1.0, ray.cluster_resources().get("CPU", 1.0) / count)
        slots = []
        for number in range(count):
            watch(f"starting replica {number + 1} of {count}")
            slots.append(Slot(number, _deployed(wanted.share(number, count), guard.most_bytes, number, share)))
        yield Door(Front(wanted.name, slots, guard), guard)
    finally:
        for number in range(count):
            serve.delete(f"headwise-{number}")
        ray.shutdown()


def _deployed(wanted: Wanted, most_bytes: int, number: int, processors: float) -> Any:
    """A server on the cluster, once it is there: what it is asked by."""
    from ray import serve

    from headwise.serve.replica import Replica

    deployment = serve.deployment(
        Replica, ray_actor_options={"num_cpus": processors}, max_ongoing_requests=10_000, health_check_period_s=2,
        max_constructor_retry_count=1, graceful_shutdown_timeout_s=10,
    )  # fmt: skip
    try:
        return serve.run(deployment.bind(wanted, most_bytes), name=f"headwise-{number}", route_prefix=None)
    except RuntimeError as error:
        told = str(error).rstrip(".")
        raise HeadwiseError(f"replica {number} does not start: {told}; Ray's logs say why (`ray logs`)") from None
